"""Configs and flags -> Trainer, module and data: the verbs fit, validate, test."""

import argparse
import dataclasses
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

from lmtemplate import callbacks as ours
from lmtemplate import checkpoint as files
from lmtemplate import run as run_files
from lmtemplate.data.datamodule import TokenData
from lmtemplate.errors import CheckpointError, ConfigError, OutOfMemoryError
from lmtemplate.hardware import auto_precision, device_name
from lmtemplate.length import RunLength, accumulation, measure_step, only_limit, run_length
from lmtemplate.models import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import AdamW
from lmtemplate.parsing import OWNED, Parser, configure_parsing, parse
from lmtemplate.schedules import WarmupCosine

Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true", "bf16-true", "16-true", "64-true"]


RUN_LENGTHS = {
    "max_epochs": "passes over the training data",
    "max_tokens": "tokens",
    "max_flops": "model FLOPs, forward and backward",
    "max_seconds": "seconds, at the speed measured before step 1; also a hard limit",
    "tokens_per_parameter": "tokens / parameters (20 is Chinchilla's: Hoffmann et al. 2022)",
}

# Callbacks of every run, each under a key of its own.
CALLBACKS = {
    "early_stopping": ours.EarlyStopping,
    "lr_monitor": ours.LRMonitor,
    "checkpoint": ours.Checkpoint,
    "throughput": ours.Throughput,
    "samples": ours.Samples,
}


class Trainer(lightning.Trainer):
    """Lightning's Trainer, whose precision may be `auto`.

    Args:
        precision: numbers to compute with; auto takes bf16-mixed where the device has it in
            hardware.
        max_steps: optimizer steps; -1 where another limit gives the run its length.
        val_check_interval: optimizer steps between validations.
        log_every_n_steps: optimizer steps between logged values.
        num_sanity_val_steps: validation batches before step 1; -1 for all of them.
    """

    def __init__(
        self,
        *,
        precision: Precision = "auto",
        max_steps: int = -1,
        val_check_interval: int = 100,
        log_every_n_steps: int = 10,
        num_sanity_val_steps: int = -1,
        **kwargs: Any,
    ) -> None:
        assert precision != "auto", "cli.py chooses before it builds the Trainer"
        super().__init__(
            precision=precision,
            max_steps=max_steps,
            val_check_interval=val_check_interval,
            log_every_n_steps=log_every_n_steps,
            num_sanity_val_steps=num_sanity_val_steps,
            **kwargs,
        )


def class_spec(kind: type) -> dict[str, Any]:
    """How a config names a class."""
    return {"class_path": f"{kind.__module__}.{kind.__name__}"}


@dataclasses.dataclass
class Plan:
    """A config translated for Lightning: what `auto`, tokens, passes and seconds come to here."""

    device: torch.device
    world_size: int
    precision: str
    accumulate: int
    length: RunLength


class TrainingCLI(LightningCLI):
    """LightningCLI that parses and instantiates; the verbs below do the rest.

    Stock `--ckpt_path` lets the checkpoint's settings beat the command line, hence no subcommands.

    Args:
        words: of the command line, after the verb.
    """

    def __init__(self, words: list[str]) -> None:
        super().__init__(
            LitLanguageModel,
            TokenData,
            save_config_callback=None,
            trainer_class=Trainer,
            seed_everything_default=1337,
            parser_class=Parser,
            parser_kwargs={"prog": "lmtemplate fit"},
            args=words,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir", type=str, default="runs/default", help="where the run leaves everything"
        )
        parser.add_argument(
            "--resume",
            type=files.ResumeMode,
            default="never",
            help="continue the run in run_dir: never, auto (if it has a checkpoint) or must",
        )
        parser.add_argument(
            "--init_from", type=str | None, help="run or checkpoint to take the first weights from"
        )
        for name, text in RUN_LENGTHS.items():
            parser.add_argument(f"--{name}", type=float | None, help=f"run length in {text}")
        parser.add_argument(
            "--tokens_per_step",
            type=int | None,
            help="tokens of one optimizer step, instead of trainer.accumulate_grad_batches",
        )
        parser.add_class_arguments(
            Trainer,
            "trainer",
            skip=set(OWNED),
            instantiate=False,
            sub_configs=True,
            fail_untyped=False,
        )
        parser.add_lightning_class_args(LitLanguageModel, "model")
        parser.add_lightning_class_args(TokenData, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # one key each at the top, so that a second config changes one value and loses none of them
        for name, kind in CALLBACKS.items():
            default = class_spec(kind)
            parser.add_argument(f"--{name}", type=kind | None, default=default, help="null: off")
        parser.set_defaults(
            {
                "model.net": class_spec(GPT),
                "model.optimizer": class_spec(AdamW),
                "model.schedule": class_spec(WarmupCosine),
            }
        )
        parser.link_arguments("data.block_size", "model.net.init_args.block_size")
        parser.link_arguments(
            "data.vocab_size", "model.net.init_args.vocab_size", apply_on="instantiate"
        )
        parser.link_arguments("seed_everything", "data.seed")

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=int,
            default=self.seed_everything_default,
            help="seed of weights, dropout and the order of the data",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, Parser)
        self.config = parse(parser, args)

    def instantiate_trainer(self, **_: Any) -> Trainer:
        return None  # type: ignore[return-value]  # built by the verb, when it knows the Plan

    @property
    def settings(self) -> dict[str, Any]:
        """The config as plain types, defaults included, what is linked left out."""
        dumped = self.parser.dump(self.config, skip_unset=False)
        settings: dict[str, Any] = yaml.safe_load(dumped)
        settings.pop("resume")
        return settings


def plan(cli: TrainingCLI, before: files.Checkpoint | None) -> Plan:
    """Ask Lightning for the devices, then convert what the config says into steps and precision."""
    config, data, net = cli.config, cli.datamodule, cli.model.net
    chosen = {k: config.trainer[k] for k in ("accelerator", "devices", "strategy", "num_nodes")}
    probe = lightning.Trainer(
        **chosen, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    device, world_size = probe.strategy.root_device, probe.world_size
    precision = config.trainer.precision
    precision = auto_precision(device) if precision == "auto" else precision
    per_batch = data.batch_size * data.block_size * world_size
    accumulate = accumulation(
        config.tokens_per_step, config.trainer.accumulate_grad_batches, per_batch
    )
    steps = config.trainer.max_steps
    limit, value = only_limit(
        {"trainer.max_steps": None if steps == -1 else steps, **{n: config[n] for n in RUN_LENGTHS}}
    )
    known = before["length"] if before else {}
    if limit == "max_seconds" and (known.get("limit"), known.get("value")) == (limit, value):
        length = RunLength(**known)  # measured when the run began; the schedule depends on it
    else:
        seconds = None
        if limit == "max_seconds":
            autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
            seconds = accumulate * measure_step(
                net, cli.model.recipe, device, batch_size=data.batch_size, autocast=autocast
            )
        length = run_length(
            limit,
            value,
            net=net,
            tokens_per_step=per_batch * accumulate,
            sequences=len(data.train_blocks),
            block_size=data.block_size,
            seconds_per_step=seconds,
        )
    return Plan(device, world_size, precision, accumulate, length)


def check(cli: TrainingCLI, steps: int) -> None:
    """Raises ConfigError for settings that contradict each other, before anything is written."""
    trainer, monitored = cli.config.trainer, []
    warmup = cli.model.schedule.warmup_steps
    if warmup > steps:
        raise ConfigError(
            f"model.schedule.warmup_steps={warmup} is longer than the run of {steps} steps; "
            "lower it"
        )
    if trainer.val_check_interval < 1:
        raise ConfigError(
            f"trainer.val_check_interval={trainer.val_check_interval} has to be 1 or more"
        )
    if trainer.val_check_interval > steps or trainer.limit_val_batches == 0:
        raise ConfigError(
            "validation would never happen: trainer.val_check_interval="
            f"{trainer.val_check_interval} in a run of {steps} steps; lower it to "
            f"{max(1, steps // 10)}, say"
        )
    for key in ("early_stopping", "checkpoint"):
        callback = cli.config_init[key]
        if callback is not None:
            monitored.append((key, str(callback.monitor)))
    logged = [f"val/{name}" for name in ("loss", "perplexity", "accuracy", "bits_per_byte")]
    for key, monitor in monitored:
        if monitor not in logged and not trainer.callbacks:
            raise ConfigError(
                f"{key}.monitor: {monitor!r} is never logged; validation logs {', '.join(logged)}"
            )


def as_list(value: Any) -> list[Any]:
    """What a user may give as nothing, one thing or a list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def build_trainer(cli: TrainingCLI, plan: Plan, run: Path, first_step: int) -> Trainer:
    """Lightning's Trainer in Lightning's units, with the callbacks of every run."""
    settings = cli.config_init.trainer.as_dict()
    core = [cli.config_init[k] for k in ("early_stopping", "lr_monitor", "throughput", "samples")]
    limit = plan.length.value if plan.length.limit == "max_seconds" else None
    show_bar = settings["enable_progress_bar"] is not False
    own: list[Any] = [ours.ProgressBar()] if show_bar else []
    own += [ours.RunEnd(limit), *core, ours.Board(cli.settings), cli.config_init.checkpoint]
    loggers = settings["logger"]
    if loggers is not False:
        added = as_list(None if loggers is True else loggers)
        loggers = [ours.RunLogger(run, first_step), *added]
    settings.update(
        precision=plan.precision,
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
            ours.Cards(plan.length),
        ],
        plugins=[*as_list(settings["plugins"]), ours.SafeCheckpointIO(describe(cli, plan.length))],
    )
    return Trainer(**settings)


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


def is_finished(run: Path, before: files.Checkpoint, cli: TrainingCLI, steps: int) -> bool:
    """Whether the run ended as planned, and neither its length nor its patience has changed."""
    summary = run_files.read_json(run / "summary.json") or {}
    step, reason = before["global_step"], summary.get("stop_reason")
    if step >= steps:
        return True
    if summary.get("step") != step or reason == "interrupted":
        return False
    patient = before["config"]["early_stopping"] != cli.settings["early_stopping"]
    return steps <= summary["max_steps"] and not (reason == "early_stopping" and patient)


def announce(
    run: Path, before: files.Checkpoint | None, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Say where the run goes on and which settings differ; returns that, for the manifest."""
    if before is None:
        if run.exists() and any(run.iterdir()):
            print(f"no checkpoint in {run} yet: starting at step 0")
        return None
    changed = files.differences(before["config"], settings)
    print(f"continuing {run} at step {before['global_step']:,}")
    for key, (old, new) in changed.items():
        print(f"  changed: {key}: {old} -> {new}")
    return {"step": before["global_step"], "changed": {k: list(v) for k, v in changed.items()}}


def start_weights(source: str, cli: TrainingCLI) -> None:
    """Begin with the weights of another run or file. Raises CheckpointError if they do not fit."""
    path = Path(source)
    state = files.read(files.resolve(path, "best") if path.is_dir() else path)
    if state.get("tokenizer", "") != cli.datamodule.tokenizer.to_json():
        raise CheckpointError(
            f"init_from {source} was trained with another tokenizer than {cli.datamodule.path}; "
            "prepare the text with its tokenizer.json (lmtemplate prepare --tokenizer FILE)"
        )
    files.load_net(cli.model.net, state)


def quieten_and_allow(allowed: list[str]) -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        # tips and adverts; the card says what counts
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*LeafSpec", ".*many workers", ".*dataloader is not resumable"):
        warnings.filterwarnings("ignore", message)  # of Lightning, to its own developers
    configure_parsing(allowed)


def write_run_files(cli: TrainingCLI, plan: Plan, run: Path, start: dict[str, Any] | None) -> None:
    """config.yaml, as the user gave it, and manifest.json."""
    data = cli.datamodule
    run_files.write_text(run / "config.yaml", yaml.safe_dump(cli.settings, sort_keys=False))
    hardware = {
        "device": plan.device.type,
        "name": device_name(plan.device),
        "devices": plan.world_size,
        "precision": plan.precision,
        "compiled": cli.model.compiles(plan.device),
        "threads": torch.get_num_threads(),
    }
    source = {
        "path": str(data.path),
        "fingerprint": data.index["fingerprint"],
        "tokenizer_sha256": data.index["tokenizer"]["sha256"],
    }
    manifest = run_files.manifest(cli.config.seed_everything, hardware, source)
    manifest["settings"] = cli.settings
    run_files.write_manifest(run, manifest, start)


def fit(words: list[str], allowed: list[str]) -> None:
    """Train. Nothing is written before all that can be checked is."""
    quieten_and_allow(allowed)
    cli = TrainingCLI(words)
    run, first_process = Path(cli.config.run_dir), getattr(rank_zero_only, "rank", 0) == 0
    path = files.resume_from(run, cli.config.resume if first_process else "auto")
    before = files.read(path) if path else None
    cli.datamodule.setup("fit")
    planned = plan(cli, before)
    check(cli, planned.length.steps)
    if before is not None:
        files.check_same_model_and_data(before, describe(cli, planned.length))
        if is_finished(run, before, cli, planned.length.steps):
            print(f"{run} is finished at step {before['global_step']:,}; raise its length to go on")
            return
    elif cli.config.init_from:
        start_weights(cli.config.init_from, cli)
    first_step = before["global_step"] + 1 if before else 0
    trainer = build_trainer(cli, planned, run, first_step)
    if first_process:
        write_run_files(cli, planned, run, announce(run, before, cli.settings))
    if planned.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        trainer.fit(cli.model, cli.datamodule, ckpt_path=path, weights_only=True)
    except torch.OutOfMemoryError as error:
        data = cli.datamodule
        raise OutOfMemoryError(
            f"{planned.device.type} has too little memory for data.batch_size={data.batch_size} x "
            f"data.block_size={data.block_size}; halve the batch and double "
            "trainer.accumulate_grad_batches, or shrink the model"
        ) from error


def evaluate(words: list[str], allowed: list[str], verb: Literal["validate", "test"]) -> None:
    """Print the metrics of a run's checkpoint on one split, in its training precision."""
    quieten_and_allow(allowed)
    reader = argparse.ArgumentParser(
        prog=f"lmtemplate {verb}", description="Any flag of `lmtemplate fit` may follow, too."
    )
    reader.add_argument("run", metavar="RUN", type=Path, help="run directory")
    reader.add_argument("--checkpoint", default="best", help="best, latest, or a file")
    asked, flags = reader.parse_known_args(words)
    path = files.resolve(asked.run, asked.checkpoint)
    state = files.read(path)
    cli = TrainingCLI(["--config", str(asked.run / "config.yaml"), *flags])
    cli.datamodule.setup(verb)
    files.load_net(cli.model.net, state)
    settings = cli.config_init.trainer.as_dict()
    kept = (
        "accelerator",
        "devices",
        "strategy",
        "num_nodes",
        "precision",
        "limit_val_batches",
        "limit_test_batches",
    )
    probe = lightning.Trainer(
        accelerator=settings["accelerator"], logger=False, enable_checkpointing=False
    )
    if settings["precision"] == "auto":
        settings["precision"] = auto_precision(probe.strategy.root_device)
    trainer = lightning.Trainer(
        **{key: settings[key] for key in kept},
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        callbacks=[ours.ProgressBar()],
    )
    run_split = trainer.validate if verb == "validate" else trainer.test
    run_split(cli.model, cli.datamodule, verbose=False)
    print(f"{path} (step {state['global_step']:,})")
    for name, value in cli.model.latest.items():
        print(f"  {name:<20} {value:.6f}")


def validate(words: list[str], allowed: list[str]) -> None:
    evaluate(words, allowed, "validate")


def test(words: list[str], allowed: list[str]) -> None:
    evaluate(words, allowed, "test")
