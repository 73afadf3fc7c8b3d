"""Command line -> a trained model in a run directory. Read `fit`, the last function, first."""

import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint

from lmtemplate import plug, redact, run_dir
from lmtemplate.callbacks.checkpointing import SafeCheckpointIO
from lmtemplate.callbacks.exact_resume import ExactResume
from lmtemplate.callbacks.loggers import RecordLogger, TensorBoard
from lmtemplate.callbacks.progress import ProgressBar
from lmtemplate.callbacks.run_end import RunEnd
from lmtemplate.callbacks.run_summary import RunSummary
from lmtemplate.checkpoint import compatibility, files
from lmtemplate.checkpoint.resume import ResumeMode, clear_leftovers, resolve, resume_from
from lmtemplate.cli import TrainingCLI, check_settings
from lmtemplate.cli_classes import to_yaml
from lmtemplate.errors import INTERRUPTED, SIGNALS, ConfigError, NumbersError, SignalError
from lmtemplate.plain_file import at_home
from lmtemplate.record import last_points
from lmtemplate.run_length import RunLength, accumulation, measure_step, only_limit, steps_in
from lmtemplate.terminal import forgiving
from lmtemplate.trainer import as_list, in_lightnings_units, mistake_in


def measured_seconds(cli: TrainingCLI) -> float:
    """Seconds that one micro-batch takes here. Raises ConfigError on several devices."""
    machine, model, size = cli.machine, cli.model, cli.datamodule.batch_size
    if machine.world_size > 1:  # each would measure its own speed
        raise ConfigError("max_seconds works on one device; give trainer.max_steps or max_tokens")
    device, autocast = machine.device, machine.autocast
    return measure_step(model.net, model.recipe, device, batch_size=size, autocast=autocast)


def make_plan(cli: TrainingCLI, before: files.CheckpointDict | None = None) -> RunLength:
    """Convert what the config says into optimizer steps; `before` is what the run continues."""
    config, data = cli.config, cli.datamodule
    per_batch = data.batch_size * data.block_size * cli.machine.world_size
    given = config.trainer.accumulate_grad_batches
    accumulate = accumulation(config.tokens_per_step, given, per_batch)
    limit, value = only_limit(config)
    known = (before or {}).get("length", {})
    if limit == "max_seconds" and (known.get("limit"), known.get("value")) == (limit, value):
        return RunLength(limit, value, known["steps"], accumulate)  # measured when the run began
    steps = steps_in(
        limit,
        value,
        net=cli.model.net,
        tokens_per_step=per_batch * accumulate,
        tokens_per_epoch=data.train_sequences and data.train_sequences * data.block_size,
        seconds_per_step=accumulate * measured_seconds(cli) if limit == "max_seconds" else None,
    )
    return RunLength(limit, value, steps, accumulate)


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
    step, reason = before["global_step"], summary.get("stop_reason")
    if step > length.steps:
        raise ConfigError(
            f"{length} ends at step {length.steps:,}, and {run} is at step {step:,} already; give "
            "it a greater length, or name another run with --run_dir"
        )
    if summary.get("step") != step:
        return False  # it was killed between its last save and its end
    if step == length.steps:
        return True
    changed = before["config"].get("early_stopping") != cli.settings.get("early_stopping")
    if reason in ("interrupted", "numbers") or (reason == "early_stopping" and changed):
        return False
    planned = summary.get("max_steps")
    return isinstance(planned, int) and length.steps <= planned


def load_first_weights(source: str, cli: TrainingCLI) -> None:
    """Begin with the weights of another run or file. Raises CheckpointError if they do not fit."""
    path = Path(source)
    state = files.read(resolve(path, "best") if os.path.isdir(source) else path)
    compatibility.check_same_tokenizer(state, cli.datamodule.tokenizer_json, cli.datamodule.name)
    compatibility.load_net(cli.model.net, state)


def write_run_files(
    cli: TrainingCLI, run: Path, description: dict[str, Any], start: dict[str, Any] | None
) -> None:
    """manifest.json, and config.yaml as the user gave it but for secrets."""
    data, environment = cli.datamodule, description["environment"]
    (run / "summary.json").unlink(missing_ok=True)  # it describes the start before
    source = {"path": data.name, "fingerprint": data.fingerprint}
    source["tokenizer_sha256"] = data.tokenizer.digest if data.tokenizer else None
    manifest = run_dir.manifest(cli.config.seed_everything, environment["hardware"], source)
    manifest.update(settings=cli.settings, command=redact.words(manifest["command"]))
    run_dir.write_manifest(run, manifest, start)  # first: without it the folder is no run
    run_dir.write_text(run / "config.yaml", to_yaml(cli.settings))


def assemble(
    cli: TrainingCLI, length: RunLength, run: Path, checkpoint_io: SafeCheckpointIO
) -> lightning.Trainer:
    """Lightning's Trainer with the callbacks and loggers of every run, in the order they act.

    Raises ConfigError for settings that Lightning refuses.
    """
    settings = in_lightnings_units(cli.trainer_settings, cli.machine, length)
    added, resumed = as_list(settings["callbacks"]), checkpoint_io.resumed
    first_step = resumed.checkpoint["global_step"] + 1 if resumed else 0
    own_bar = any(isinstance(callback, lightning.callbacks.ProgressBar) for callback in added)
    shows_bar = settings["enable_progress_bar"] is not False and not own_bar
    callbacks = [
        *([ProgressBar()] if shows_bar else []),
        RunEnd(length.value if length.limit == "max_seconds" else None),
        *cli.callbacks,
        *added,
        RunSummary(length, max(0, first_step - 1), cli.allowed),
        ExactResume(),
    ]
    boards = [TensorBoard(run, first_step, cli.settings)] if cli.config.tensorboard else []
    loggers = [*boards, RecordLogger(run, first_step), *as_list(settings["logger"])]
    settings |= {
        "default_root_dir": run,
        "logger": loggers if settings["logger"] is not False else False,
        "callbacks": callbacks,
        "plugins": [*settings["plugins"], checkpoint_io],
        "enable_checkpointing": any(isinstance(one, Checkpoint) for one in callbacks),
    }
    try:
        return lightning.Trainer(**settings)
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())[:300]}") from error


def train(trainer: lightning.Trainer, path: Path | None, cli: TrainingCLI) -> None:
    """Run Lightning's loop. What ends it early becomes a line and an exit code."""
    signals = cli.config_init.get("signals")
    try:
        with signals.listening() if signals else nullcontext():
            trainer.fit(cli.model, cli.datamodule, ckpt_path=path, weights_only=True)
    except SignalError as stop:
        sys.exit(stop.exit_code)
    except (Exception, SystemExit) as error:
        is_end = isinstance(error, (NumbersError, SystemExit)) or "DataLoader worker" in str(error)
        if signals and signals.received and is_end:  # the signal came first; workers got it, too
            sys.exit(SIGNALS[signals.received])
        if isinstance(error, SystemExit) and trainer.interrupted:
            sys.exit(INTERRUPTED)  # Lightning ends with 1 after a Ctrl-C before the first step
        if mistake := mistake_in(error, trainer):
            raise mistake from error
        raise
    if trainer.is_global_zero and cli.config.trainer.profiler:
        print(trainer.profiler.summary())  # type: ignore[attr-defined]


def check_and_assemble(
    cli: TrainingCLI, run: Path, resume: ResumeMode
) -> tuple[lightning.Trainer, Path | None] | None:
    """The Trainer and the checkpoint to go on from; None where the run is finished already."""
    resumed = resume_from(run, resume)
    if cli.machine.is_first:
        clear_leftovers(run)
    before = resumed.checkpoint if resumed else None
    cli.datamodule.setup("fit")
    length = make_plan(cli, before)
    check_settings(cli, length.steps)
    description = describe(cli, length)
    if before is not None:
        compatibility.check_same_model_and_data(before, description)
        if is_finished(run, before, cli, length):
            print(
                f"{run} is finished at step {before['global_step']:,}; to train longer, increase "
                f"{length.limit}; for other settings, name another run with --run_dir"
            )
            return None
    elif cli.machine.is_first and cli.config_init.get("checkpoint"):
        files.check_room(run, cli.model.net)
    if before is None and cli.config.init_from:
        load_first_weights(cli.config.init_from, cli)
    trainer = assemble(cli, length, run, SafeCheckpointIO(description, resumed))
    if cli.machine.is_first:
        start = compatibility.announce(run, before, description)
        write_run_files(cli, run, description, start)
    return trainer, resumed.path if resumed else None


def go_back(cli: TrainingCLI, words: list[str]) -> TrainingCLI:
    """New weights, moments and data, to be restored; the data that was read is left out."""
    again = TrainingCLI(words, cli.allowed)
    again.datamodule.skip_to(cli.datamodule.sequences)
    again.config_init.guard.went_back = True
    return again


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

    It parses the settings, locks the run directory, finds the checkpoint to go on from, assembles
    Lightning's Trainer, trains, goes back where numbers turn bad, and says what came of the run.

    Args:
        words: of the command line, after the verb.
        allowed: packages outside lmtemplate whose classes a config may name.
    """
    cli = TrainingCLI(words, allowed)
    run, is_first = at_home(cli.config.run_dir), cli.machine.is_first
    resume: ResumeMode = cli.config.resume if is_first else "auto"
    failure = None
    with run_dir.lock(run) if is_first else nullcontext(), forgiving():
        for attempt in itertools.count(1):
            try:
                start = check_and_assemble(cli, run, resume)
                if start is None:
                    return run
                train(*start, cli)
                break
            except NumbersError as error:
                guard = cli.config_init.get("guard")
                if guard is None or attempt > guard.rewinds:
                    says = "Lower the learning rate, add warmup, or set trainer.gradient_clip_val"
                    failure = f"{error}{last_points(run)}. {says} 1.0, and start again"
                    break
                if is_first:
                    count = f"{attempt}/{guard.rewinds}"
                    print(
                        f"{error}: going back ({count}) and leaving out what was read", flush=True
                    )
                cli, resume = go_back(cli, words), "auto"
        if is_first:
            plug.closing_words(run, allowed, cli.config.report)
    if failure:
        raise NumbersError(failure)
    return run
