"""Command line -> a trained model in a run directory. Read `fit`, the last function, first.

It parses the settings, locks the run directory, finds where to go on, checks all that can be
checked, assembles Lightning's Trainer, trains, goes back where numbers turned bad, and says what
came of the run.
"""

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lmtemplate import plug, redact, run_dir
from lmtemplate.callbacks.checkpointing import SafeCheckpointIO
from lmtemplate.callbacks.exact_resume import ExactResume
from lmtemplate.callbacks.loggers import RecordLogger, TensorBoard
from lmtemplate.callbacks.progress import ProgressBar
from lmtemplate.callbacks.run_end import RunEnd
from lmtemplate.callbacks.run_summary import RunSummary
from lmtemplate.checkpoint import compatibility, files
from lmtemplate.checkpoint.resume import ResumeMode, resolve, resume_from
from lmtemplate.cli import TrainingCLI, check_settings
from lmtemplate.cli_classes import to_yaml
from lmtemplate.errors import SIGNALS, CheckpointError, ConfigError, NumbersError, SignalError
from lmtemplate.record import last_points
from lmtemplate.run_length import RunLength, accumulation, measure_step, only_limit, run_length
from lmtemplate.terminal import forgiving
from lmtemplate.trainer import as_list, build_trainer, mistake_in


@dataclass(frozen=True)
class Plan:
    """What tokens, epochs and seconds of a config come to on this machine."""

    accumulate: int  # micro-batches per optimizer step
    length: RunLength


def measured_seconds(cli: TrainingCLI) -> float:
    """Seconds that one micro-batch takes here. Raises ConfigError on several devices."""
    machine, model, size = cli.machine, cli.model, cli.datamodule.batch_size
    if machine.world_size > 1:  # each would measure its own speed
        raise ConfigError("max_seconds works on one device; give trainer.max_steps or max_tokens")
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(machine.precision)
    return measure_step(model.net, model.recipe, machine.device, batch_size=size, autocast=dtype)


def make_plan(cli: TrainingCLI, before: files.CheckpointDict | None = None) -> Plan:
    """Convert what the config says into optimizer steps; `before` is what the run continues."""
    config, trainer, data = cli.config, cli.config.trainer, cli.datamodule
    per_batch = data.batch_size * data.block_size * cli.machine.world_size
    accumulate = accumulation(config.tokens_per_step, trainer.accumulate_grad_batches, per_batch)
    limit, value = only_limit(config)
    known = before["length"] if before else {}
    if limit == "max_seconds" and (known.get("limit"), known.get("value")) == (limit, value):
        return Plan(accumulate, RunLength(**known))  # as measured when the run began
    seconds = accumulate * measured_seconds(cli) if limit == "max_seconds" else None
    length = run_length(
        limit,
        value,
        net=cli.model.net,
        tokens_per_step=per_batch * accumulate,
        sequences=data.train_sequences,
        block_size=data.block_size,
        seconds_per_step=seconds,
    )
    return Plan(accumulate, length)


def describe(cli: TrainingCLI, length: RunLength) -> dict[str, Any]:
    """What joins every checkpoint, so that one file is enough to use it or to go on."""
    data = cli.datamodule
    return {
        "config": cli.settings,
        "vocab_size": data.vocab_size,
        "block_size": data.block_size,
        "tokenizer": data.tokenizer_json,
        "fingerprint": data.fingerprint or "",
        "length": asdict(length),
        "environment": run_dir.environment(cli.hardware(length.steps)),
    }


def is_finished(
    run: Path, before: files.CheckpointDict, cli: TrainingCLI, length: RunLength
) -> bool:
    """Whether the run ended as planned, and neither its length nor its patience has changed.

    Raises ConfigError where the run has gone further than it should.
    """
    summary = run_dir.read_json(run / "summary.json")
    step, steps, reason = before["global_step"], length.steps, summary.get("stop_reason")
    if step > steps:
        raise ConfigError(
            f"{length} ends at step {steps:,}, and {run} is at step {step:,} already; give it a "
            "greater length, or name another run with --run_dir"
        )
    if step == steps:
        return summary.get("step") == step  # else it was killed between its last step and its end
    if summary.get("step") != step or reason in ("interrupted", "numbers"):
        return False
    if reason == "early_stopping" and before["config"].get(reason) != cli.settings.get(reason):
        return False
    planned = summary.get("max_steps")
    return isinstance(planned, int) and steps <= planned


def load_first_weights(source: str, cli: TrainingCLI) -> None:
    """Begin with the weights of another run or file. Raises CheckpointError if they do not fit."""
    path = Path(source)
    state = files.read(resolve(path, "best") if os.path.isdir(source) else path)
    compatibility.check_same_tokenizer(state, cli.datamodule.tokenizer_json, cli.datamodule.name)
    compatibility.load_net(cli.model.net, state)


def write_run_files(cli: TrainingCLI, run: Path, start: dict[str, Any] | None, steps: int) -> None:
    """config.yaml, as the user gave it but for secrets, and manifest.json."""
    data = cli.datamodule
    (run / "summary.json").unlink(missing_ok=True)  # it describes the start before
    run_dir.write_text(run / "config.yaml", to_yaml(cli.settings))
    source = {"path": data.name, "fingerprint": data.fingerprint}
    source["tokenizer_sha256"] = data.tokenizer.digest if data.tokenizer else None
    manifest = run_dir.manifest(cli.config.seed_everything, cli.hardware(steps), source)
    manifest.update(settings=cli.settings, command=redact.words(manifest["command"]))
    run_dir.write_manifest(run, manifest, start)


def assemble(
    cli: TrainingCLI, plan: Plan, run: Path, checkpoint_io: SafeCheckpointIO
) -> lightning.Trainer:
    """Lightning's Trainer with the callbacks and loggers of every run, in the order they act."""
    settings, resumed = cli.trainer_settings, checkpoint_io.resumed
    added = as_list(settings["callbacks"])
    first_step = resumed.checkpoint["global_step"] + 1 if resumed else 0
    limit = plan.length.value if plan.length.limit == "max_seconds" else None
    own_bar = any(isinstance(callback, lightning.callbacks.ProgressBar) for callback in added)
    shows_bar = settings["enable_progress_bar"] is not False and not own_bar
    callbacks = [
        *([ProgressBar()] if shows_bar else []),
        RunEnd(limit),
        *cli.callbacks,
        *added,
        RunSummary(plan.length, max(0, first_step - 1), cli.allowed),
        ExactResume(),
    ]
    boards = [TensorBoard(run, first_step, cli.settings)] if cli.config.tensorboard else []
    return build_trainer(
        settings,
        cli.machine,
        run,
        max_steps=plan.length.steps,
        accumulate=plan.accumulate,
        loggers=[*boards, RecordLogger(run, first_step)],
        callbacks=callbacks,
        checkpoint_io=checkpoint_io,
    )


def train(trainer: lightning.Trainer, path: Path | None, cli: TrainingCLI) -> None:
    """Run Lightning's loop. What ends it early becomes a line and an exit code."""
    signals = cli.config_init.get("signals")
    try:
        with signals.listening() if signals else nullcontext():
            trainer.fit(cli.model, cli.datamodule, ckpt_path=path, weights_only=True)
    except SignalError as stop:
        sys.exit(stop.exit_code)
    except (NumbersError, SystemExit) as error:
        if signals and signals.received:  # the signal came first
            sys.exit(SIGNALS[signals.received])
        if isinstance(error, SystemExit) and trainer.interrupted:
            sys.exit(130)  # Lightning ends with 1 after a Ctrl-C before the first step
        raise
    except (ModuleNotFoundError, MisconfigurationException) as error:
        if getattr(error, "name", None):
            raise
        # Lightning says what to install for a callback or a logger, or which setting cannot be
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error
    except (RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
        if signals and signals.received and "DataLoader worker" in str(error):
            sys.exit(SIGNALS[signals.received])  # the worker, just started, got it as well
        if mistake := mistake_in(error, trainer):
            raise mistake from error
        if "checkpoint_connector.py" in str(traceback.extract_tb(error.__traceback__)):
            problem = f"holds a state that cannot be restored: {error!r:.200}"
            raise CheckpointError(f"{path} {problem}") from error
        raise
    if trainer.is_global_zero and cli.config.trainer.profiler:
        print(trainer.profiler.summary())  # type: ignore[attr-defined]


def check_and_assemble(
    cli: TrainingCLI, run: Path, resume: ResumeMode
) -> tuple[lightning.Trainer, Path | None] | None:
    """The Trainer and the checkpoint to go on from; None where the run is finished already.

    The Trainer's CheckpointIO has loaded that checkpoint, and hands it over once, so that its
    tensors do not stay in memory while training.
    """
    resumed = resume_from(run, resume)
    before = resumed.checkpoint if resumed else None
    if before is not None:
        compatibility.check_described(before)
    cli.datamodule.setup("fit")
    plan = make_plan(cli, before)
    check_settings(cli, plan.length.steps)
    description = describe(cli, plan.length)
    if before is not None:
        compatibility.check_same_model_and_data(before, description)
        if is_finished(run, before, cli, plan.length):
            print(
                f"{run} is finished at step {before['global_step']:,}; to train longer, increase "
                f"{plan.length.limit}; for other settings, name another run with --run_dir"
            )
            return None
    elif cli.machine.is_first and cli.config_init.get("checkpoint"):
        files.check_room(run, cli.model.net)
    if before is None and cli.config.init_from:
        load_first_weights(cli.config.init_from, cli)
    trainer = assemble(cli, plan, run, SafeCheckpointIO(run, description, resumed))
    if cli.machine.is_first:
        start = compatibility.announce(run, before, description)
        write_run_files(cli, run, start, plan.length.steps)
    return trainer, resumed.path if resumed else None


def train_on(cli: TrainingCLI, words: list[str], allowed: list[str], run: Path) -> bool:
    """Train, going back where numbers turn bad; returns whether there was anything to do."""
    resume: ResumeMode = cli.config.resume if cli.machine.is_first else "auto"
    gone_back = 0
    while True:
        try:
            start = check_and_assemble(cli, run, resume)
            if start is not None:
                train(*start, cli)
            return start is not None
        except NumbersError as error:
            gone_back += 1
            guard = cli.config_init.get("guard")
            if guard is None or gone_back > guard.rewinds:
                raise NumbersError(
                    f"{error}{last_points(run)}. Lower the learning rate, add warmup, or set "
                    "trainer.gradient_clip_val 1.0, and start again"
                ) from error
            if cli.machine.is_first:
                count = f"{gone_back}/{guard.rewinds}"
                print(f"{error}: going back ({count}) and leaving out what was read", flush=True)
            sequences, resume = cli.datamodule.sequences, "auto"
            cli = TrainingCLI(words, allowed)  # new weights, moments and data, to be restored
            cli.datamodule.skip_to(sequences)
            cli.config_init.guard.went_back = True


def run(
    config: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
) -> Path:
    """`lmtemplate fit` from Python; returns the run directory.

    Args:
        config: a YAML file to start from.
        settings: dotted key -> value, as {"trainer.max_steps": 50}; they win over the config.
        allow: packages outside lmtemplate whose classes may be named; "__main__" in a notebook.
    """
    words = ["--config", str(config)] if config else []
    for key, value in (settings or {}).items():
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return fit(words, list(allow))


def fit(words: list[str], allowed: list[str]) -> Path:
    """Train; returns the run directory. Nothing is written before all has been checked.

    Args:
        words: of the command line, after the verb.
        allowed: packages outside lmtemplate whose classes a config may name.
    """
    cli = TrainingCLI(words, allowed)
    run = Path(cli.config.run_dir).expanduser()
    is_first, has_trained = cli.machine.is_first, False
    with run_dir.Lock(run) if is_first else nullcontext(), forgiving():
        try:
            has_trained = train_on(cli, words, allowed, run)
        except NumbersError:
            has_trained = True
            raise
        finally:
            if has_trained and is_first:
                plug.closing_words(run, allowed, cli.config.report)
    return run
