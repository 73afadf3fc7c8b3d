"""A config in steps, tokens and `auto` -> Lightning's Trainer, in its units, on these devices."""

import copy
import dataclasses
import logging
import os
import shutil
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from lmtemplate import callbacks as ours
from lmtemplate import plug
from lmtemplate.checkpoint import files
from lmtemplate.cli import RUN_LENGTHS, Trainer, TrainingCLI
from lmtemplate.errors import ConfigError, DiskError
from lmtemplate.hardware import auto_precision
from lmtemplate.optimizers import SGD
from lmtemplate.run_length import RunLength, accumulation, measure_step, only_limit, run_length


def quieten() -> None:
    """Silence what Lightning says that is no news to a user."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        # tips and adverts; the card says what counts
        logging.getLogger(name).setLevel(logging.WARNING)
    harmless = (
        ".*LeafSpec",
        ".*many workers",
        ".*dataloader is not resumable",
        ".*sync_dist=True",
        ".*smaller than the logging interval",
    )
    for message in harmless:
        warnings.filterwarnings("ignore", message)


@dataclasses.dataclass
class Machine:
    """Where a run computes, and with which numbers."""

    device: torch.device
    world_size: int
    precision: str


@dataclasses.dataclass
class Plan:
    """A config translated for Lightning: what `auto`, tokens, passes and seconds come to here."""

    machine: Machine
    accumulate: int
    length: RunLength


def machine_settings(cli: TrainingCLI) -> dict[str, Any]:
    """The part of the Trainer's settings that decides where it computes."""
    settings = cli.config_init.trainer.as_dict()
    names = ("accelerator", "devices", "strategy", "num_nodes")
    return {name: copy.deepcopy(settings[name]) for name in names}


def find_machine(cli: TrainingCLI) -> Machine:
    """Ask Lightning what `auto` comes to. Raises ConfigError where there is no such device."""
    try:
        probe = lightning.Trainer(
            **machine_settings(cli),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        raise ConfigError(
            "trainer.accelerator, devices or strategy is not to be had here: "
            f"{' '.join(str(error).split())[:300]}{hidden}"
        ) from error
    device, precision = probe.strategy.root_device, cli.config.trainer.precision
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return Machine(
        device, probe.world_size, auto_precision(device) if precision == "auto" else precision
    )


def measured_seconds(cli: TrainingCLI, machine: Machine, accumulate: int) -> float:
    """Seconds that one optimizer step takes here. Raises ConfigError on several devices."""
    if machine.world_size > 1:
        raise ConfigError(
            "max_seconds works on one device, since each would measure its own speed; "
            "give trainer.max_steps or max_tokens"
        )
    autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(machine.precision)
    batch = cli.datamodule.batch_size
    recipe = cli.model.recipe
    return accumulate * measure_step(
        cli.model.net, recipe, machine.device, batch_size=batch, autocast=autocast
    )


def make_plan(cli: TrainingCLI, before: files.Checkpoint | None) -> Plan:
    """Convert what the config says into devices, precision and steps.

    Args:
        cli: parsed and built.
        before: the checkpoint that the run continues.
    """
    config, data, machine = cli.config, cli.datamodule, find_machine(cli)
    per_batch = data.batch_size * data.block_size * machine.world_size
    accumulate = accumulation(
        config.tokens_per_step, config.trainer.accumulate_grad_batches, per_batch
    )
    steps = config.trainer.max_steps
    limits = {"trainer.max_steps": None if steps == -1 else steps}
    limit, value = only_limit({**limits, **{name: config[name] for name in RUN_LENGTHS}})
    known = before["length"] if before else {}
    if limit == "max_seconds" and (known.get("limit"), known.get("value")) == (limit, value):
        # measured when the run began, and the schedule depends on it
        return Plan(machine, accumulate, RunLength(**known))
    seconds = measured_seconds(cli, machine, accumulate) if limit == "max_seconds" else None
    length = run_length(
        limit,
        value,
        net=cli.model.net,
        tokens_per_step=per_batch * accumulate,
        sequences=len(data.blocks("train")),
        block_size=data.block_size,
        seconds_per_step=seconds,
    )
    return Plan(machine, accumulate, length)


def check(cli: TrainingCLI, steps: int) -> None:
    """Raises ConfigError for settings that contradict each other, before anything is written."""
    trainer, warmup = cli.config.trainer, cli.model.schedule.warmup_steps
    for name in ("val_check_interval", "log_every_n_steps"):
        if trainer[name] < 1:
            raise ConfigError(f"trainer.{name}={trainer[name]} has to be 1 or more")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val <= 0:
        raise ConfigError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} has to be above 0, or null"
        )
    if warmup > steps:
        raise ConfigError(
            f"model.schedule.warmup_steps={warmup} is longer than the run of {steps} steps; "
            "lower it"
        )
    share = trainer.limit_val_batches
    if isinstance(share, float) and share < 1:
        share *= len(cli.datamodule.val_dataloader())
    if share is not None and share < 1:
        raise ConfigError(
            f"validation would never happen: trainer.limit_val_batches={trainer.limit_val_batches} "
            "is less than one batch; for a short validation lower data.max_val_blocks"
        )
    if trainer.val_check_interval > steps:
        raise ConfigError(
            "validation would never happen: trainer.val_check_interval="
            f"{trainer.val_check_interval} in a run of {steps} steps; lower it to "
            f"{max(1, steps // 10)}, say"
        )
    stopping = cli.config_init.early_stopping
    logged = [f"val/{name}" for name in ("loss", "perplexity", "accuracy", "bits_per_byte")]
    if stopping is not None and stopping.monitor not in logged and not trainer.callbacks:
        raise ConfigError(
            f"early_stopping.monitor: {stopping.monitor!r} is never logged; validation logs "
            f"{', '.join(logged)}"
        )


def check_room(cli: TrainingCLI, run: Path) -> None:
    """Raises DiskError where a new run's first two checkpoints will not fit."""
    if cli.config_init.checkpoint is None:
        return
    moments = 0 if isinstance(cli.model.recipe, SGD) else 2  # at most
    needed = files.ROOM * (1 + moments) * files.size(cli.model.net.state_dict())
    free = shutil.disk_usage(run).free
    if free < needed:
        raise DiskError(
            f"{run} has {free / 1e6:,.1f} MB free, and saving needs about {needed / 1e6:,.1f} MB: "
            "make room, or name another --run_dir"
        )


def as_list(value: Any) -> list[Any]:
    """What a user may give as nothing, one thing or a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def describe(cli: TrainingCLI, length: RunLength) -> dict[str, Any]:
    """What joins every checkpoint, so that one file is enough to use it or to go on."""
    data = cli.datamodule
    return {
        "config": cli.settings,
        "vocab_size": data.vocab_size,
        "block_size": data.block_size,
        "tokenizer": data.tokenizer.to_json(),
        "fingerprint": data.index["fingerprint"],
        "length": dataclasses.asdict(length),
    }


# A process that waits longer for the others has lost one. Lightning's 30 minutes are for somebody
# who sits beside it; the longest wait that is none is for the first process to save.
LONGEST_WAIT = timedelta(minutes=10)


def patient_for_so_long(strategy: Any, world_size: int) -> Any:
    """The strategy, with our timeout if it is one that a word chose."""
    chosen_by_word = strategy in ("auto", "ddp") and world_size > 1
    return DDPStrategy(timeout=LONGEST_WAIT) if chosen_by_word else strategy


def build_trainer(cli: TrainingCLI, plan: Plan, run: Path, first_step: int) -> Trainer:
    """Lightning's Trainer in Lightning's units, with the callbacks of every run."""
    settings = cli.config_init.trainer.as_dict()
    names = (
        "signals",
        "early_stopping",
        "lr_monitor",
        "throughput",
        "guard",
        "samples",
        *plug.callbacks(),
    )
    core = [cli.config_init[name] for name in names]
    limit = plan.length.value if plan.length.limit == "max_seconds" else None
    show_bar = settings["enable_progress_bar"] is not False
    own: list[Any] = [ours.ProgressBar()] if show_bar else []
    own += [ours.RunEnd(limit), *core, ours.Board(cli.settings), cli.config_init.checkpoint]
    loggers = settings["logger"]
    if loggers is not False:
        added = as_list(None if loggers is True else loggers)
        loggers = [ours.RunLogger(run, first_step), ours.RecordLogger(run, first_step), *added]
    settings.update(
        strategy=patient_for_so_long(settings["strategy"], plan.machine.world_size),
        precision=plan.machine.precision,
        max_steps=plan.length.steps,
        max_epochs=-1,
        accumulate_grad_batches=plan.accumulate,
        val_check_interval=settings["val_check_interval"] * plan.accumulate,
        check_val_every_n_epoch=None,  # one Lightning epoch is the whole run
        use_distributed_sampler=False,  # the data shards itself over ranks
        enable_model_summary=bool(settings["enable_model_summary"]),
        enable_checkpointing=cli.config_init.checkpoint is not None,
        default_root_dir=run,
        logger=loggers,
        callbacks=[
            *(callback for callback in own if callback is not None),
            *as_list(settings["callbacks"]),
            ours.Cards(plan.length, max(0, first_step - 1)),
        ],
        plugins=[*as_list(settings["plugins"]), ours.SafeCheckpointIO(describe(cli, plan.length))],
    )
    if SLURMEnvironment.detect():
        # Lightning's requeueing saves inside a signal handler, in the middle of a step
        settings["plugins"].append(SLURMEnvironment(auto_requeue=False))
    try:
        return Trainer(**settings)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error
