"""The verbs fit, validate, test: a config becomes a run, or a run a number."""

import argparse
import itertools
import logging
import math
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import DistError

from lmtemplate import callbacks as ours
from lmtemplate import checkpoint as files
from lmtemplate import redact, restore
from lmtemplate import run as run_files
from lmtemplate.errors import (
    CheckpointError,
    ConfigError,
    LostProcessError,
    NumbersError,
    OutOfMemoryError,
)
from lmtemplate.hardware import device_name
from lmtemplate.parsing import TrainingCLI, configure_parsing
from lmtemplate.record import is_recorded, read_record
from lmtemplate.study.schedule import drawing
from lmtemplate.trainer import (
    Machine,
    build_trainer,
    check,
    describe,
    find_machine,
    machine_settings,
    make_plan,
)


def is_finished(run: Path, before: files.Checkpoint, cli: TrainingCLI, steps: int) -> bool:
    """Whether the run ended as planned, and neither its length nor its patience has changed."""
    summary = run_files.read_json(run / "summary.json") or {}
    step, reason = before["global_step"], summary.get("stop_reason")
    if step >= steps:
        return bool(summary)  # else it was killed between its last step and its end
    if summary.get("step") != step or reason in ("interrupted", "numbers"):
        return False
    patient = before["config"]["early_stopping"] != cli.settings["early_stopping"]
    return steps <= summary["max_steps"] and not (reason == "early_stopping" and patient)


def announce(
    run: Path, before: files.Checkpoint | None, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Say where the run goes on and which settings differ; returns that, for the manifest."""
    if before is None:
        if run_files.is_used(run):
            print(f"no checkpoint in {run} yet: starting at step 0")
        return None
    changed = restore.differences(before["config"], settings)
    print(f"continuing {run} at step {before['global_step']:,}")
    for key, (old, new) in changed.items():
        print(f"  changed: {key}: {old} -> {new}")
    return {"step": before["global_step"], "changed": {k: list(v) for k, v in changed.items()}}


def start_weights(source: str, cli: TrainingCLI) -> None:
    """Begin with the weights of another run or file. Raises CheckpointError if they do not fit."""
    path = Path(source)
    state = files.read(files.resolve(path, "best") if os.path.isdir(source) else path)
    restore.check_tokenizer(state, cli.datamodule.tokenizer.to_json(), cli.datamodule.path)
    restore.load_net(cli.model.net, state)


def quieten_and_allow(allowed: list[str]) -> None:
    """Silence what is no news to a user, and let configs name classes of these packages."""
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
        warnings.filterwarnings("ignore", message)  # of Lightning, to its own developers
    configure_parsing(allowed)


def write_run_files(
    cli: TrainingCLI, machine: Machine, run: Path, start: dict[str, Any] | None
) -> None:
    """config.yaml, as the user gave it but for secrets, and manifest.json."""
    data = cli.datamodule
    (run / "summary.json").unlink(missing_ok=True)  # it tells of the start before
    run_files.write_text(run / "config.yaml", yaml.safe_dump(cli.settings, sort_keys=False))
    hardware = {
        "device": machine.device.type,
        "name": device_name(machine.device),
        "devices": machine.world_size,
        "precision": machine.precision,
        "compiled": cli.model.compiles(machine.device),
        "threads": torch.get_num_threads(),
    }
    source = {
        "path": str(data.path),
        "fingerprint": data.index["fingerprint"],
        "tokenizer_sha256": data.index["tokenizer"]["sha256"],
    }
    manifest = run_files.manifest(cli.config.seed_everything, hardware, source)
    manifest.update(settings=cli.settings, command=redact.words(manifest["command"]))
    run_files.write_manifest(run, manifest, start)


def read_start(path: Path) -> files.Checkpoint:
    """What a checkpoint says of its run, without the tensors, which would stay in memory."""
    state = files.read(path)
    said = (
        "global_step",
        "config",
        "length",
        "vocab_size",
        "block_size",
        "tokenizer",
        "fingerprint",
    )
    if missing := [key for key in said if key not in state]:
        raise CheckpointError(f"{path} does not describe its run (no {', '.join(missing)} in it)")
    return {key: state[key] for key in said}


def train(trainer: lightning.Trainer, path: Path | None, cli: TrainingCLI) -> None:
    """Run Lightning's loop. What ends it early becomes a line and an exit code."""
    signals = cli.config_init.signals
    try:
        with signals.listening() if signals else nullcontext():
            trainer.fit(cli.model, cli.datamodule, ckpt_path=path, weights_only=True)
    except torch.OutOfMemoryError as error:
        data = cli.datamodule
        raise OutOfMemoryError(
            f"too little memory for data.batch_size={data.batch_size} x data.block_size="
            f"{data.block_size}; halve the batch and double trainer.accumulate_grad_batches, or "
            "shrink the model"
        ) from error
    except ours.SignalError as stop:
        sys.exit(stop.exit_code)
    except RuntimeError as error:
        if trainer.world_size == 1 or not (isinstance(error, DistError) or "gloo" in str(error)):
            raise
        raise LostProcessError(
            f"process {trainer.global_rank} of {trainer.world_size} has lost another one at step "
            f"{trainer.global_step:,}, which died or stands still (see what that one said); go on "
            f"with --resume auto. {' '.join(str(error).split())[:200]}"
        ) from error
    except SystemExit:
        if trainer.interrupted:  # Lightning ends with 1 after a Ctrl-C before the first step
            sys.exit(130)
        raise


def build(
    cli: TrainingCLI, run: Path, resume: files.ResumeMode, lock: run_files.Lock | None
) -> tuple[lightning.Trainer, Path | None] | None:
    """Check all that can be checked, then build the Trainer and write the run's own files.

    Returns the Trainer and the checkpoint to go on from; None where the run is finished already.

    Args:
        cli: parsed and instantiated.
        run: the run directory.
        resume: whether to go on there.
        lock: of the first process, which alone writes.
    """
    path = files.resume_from(run, resume)
    before = read_start(path) if path else None
    cli.datamodule.setup("fit")
    planned = make_plan(cli, before)
    check(cli, planned.length.steps)
    if before is not None:
        restore.check_same_model_and_data(before, describe(cli, planned.length))
        if is_finished(run, before, cli, planned.length.steps):
            print(f"{run} is finished at step {before['global_step']:,}; raise its length to go on")
            print("for other settings, name another run: make train RUN=runs/NAME (or --run_dir)")
            return None
    elif cli.config.init_from:
        start_weights(cli.config.init_from, cli)
    trainer = build_trainer(cli, planned, run, before["global_step"] + 1 if before else 0)
    if lock:
        lock.acquire()
        write_run_files(cli, planned.machine, run, announce(run, before, cli.settings))
    return trainer, path


def last_points(run: Path, count: int = 5) -> str:
    """The end of a run's record in words: "step 50: loss 3.1, rate 0.01, gradient 4.2; ..."."""
    record = read_record(run) if is_recorded(run) else None
    if not record:
        return "nothing was logged"
    norms = record.values.get("optim/grad_norm", record.train_loss * math.nan)
    columns = (record.steps, record.train_loss, record.learning_rate, norms)
    rows = zip(*(column[-count:] for column in columns), strict=True)
    return "; ".join(
        f"step {s}: loss {x:.4g}, rate {r:.3g}, gradient {n:.3g}" for s, x, r, n in rows
    )


def train_on(cli: TrainingCLI, words: list[str], run: Path, lock: run_files.Lock | None) -> bool:
    """Train; where numbers go bad, go back to the last checkpoint and leave out what led there.

    Returns whether there was anything to do. Raises NumbersError when going back has not helped.
    """
    resume: files.ResumeMode = cli.config.resume if lock else "auto"
    for gone_back in itertools.count(1):
        if (built := build(cli, run, resume, lock)) is None:
            return False
        try:
            train(*built, cli)
            break
        except NumbersError as error:
            guard = cli.config_init.guard
            if guard is None or gone_back > guard.rewinds:
                raise NumbersError(
                    f"{error}. Before: {last_points(run)}. Lower the learning rate, add warmup, or "
                    "set trainer.gradient_clip_val 1.0, and start again"
                ) from error
            sequences, resume = cli.datamodule.sequences, "auto"
            if lock:
                count = f"{gone_back}/{guard.rewinds}"
                print(f"{error}: going back ({count}) and leaving out what was read", flush=True)
            cli = TrainingCLI(words)
            cli.datamodule.leave_out(sequences)
            cli.config_init.guard.went_back = True
    return True


def explain(run: Path, cli: TrainingCLI, lock: run_files.Lock | None, allowed: list[str]) -> None:
    """Say what came of the run, unless that is switched off; the first process speaks."""
    if lock and cli.config.report:
        from lmtemplate.study import closing  # loads what no other process needs

        closing.explain(run, allowed)


def fit(words: list[str], allowed: list[str]) -> None:
    """Train. Nothing is written before all that can be checked is."""
    quieten_and_allow(allowed)
    cli = TrainingCLI(words)
    run, first_process = Path(cli.config.run_dir), getattr(rank_zero_only, "rank", 0) == 0
    lock = run_files.Lock(run) if first_process else None
    try:
        if lock and lock.path.is_file():  # a refusal below should leave an unlocked one untouched
            lock.acquire()
        if train_on(cli, words, run, lock):
            explain(run, cli, lock, allowed)
    except NumbersError:
        explain(run, cli, lock, allowed)
        raise
    finally:
        if lock:
            lock.release()


def schedule(words: list[str], allowed: list[str]) -> None:
    """Draw the learning rate of a planned run."""
    quieten_and_allow(allowed)
    cli = TrainingCLI(words, "schedule")
    steps = make_plan(cli, None).length.steps
    check(cli, steps)
    groups = cli.model.recipe.build(cli.model.net).param_groups
    peaks = {str(group.get("name", number)): group["lr"] for number, group in enumerate(groups)}
    print(drawing(cli.model.schedule, steps, peaks))


class RunReader(argparse.ArgumentParser):
    """Reads the words that `validate` and `test` take beside the flags of `fit`."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def evaluate(words: list[str], allowed: list[str], verb: Literal["validate", "test"]) -> None:
    """Print the metrics of a run's checkpoint on one split, in its training precision."""
    quieten_and_allow(allowed)
    reader = RunReader(
        prog=f"lmtemplate {verb}", description="Any flag of `lmtemplate fit` may follow, too."
    )
    reader.add_argument("run", metavar="RUN", type=Path, help="run directory")
    reader.add_argument("--checkpoint", default="best", help="best, latest, or a file")
    asked, flags = reader.parse_known_args(words)
    path = files.resolve(asked.run, asked.checkpoint)
    state = files.read(path)
    cli = TrainingCLI(["--config", str(asked.run / "config.yaml"), *flags])
    cli.datamodule.setup(verb)
    restore.check_tokenizer(state, cli.datamodule.tokenizer.to_json(), cli.datamodule.path)
    restore.load_net(cli.model.net, state)
    settings = cli.config_init.trainer.as_dict()
    trainer = lightning.Trainer(
        **machine_settings(cli),
        **{key: settings[key] for key in ("limit_val_batches", "limit_test_batches")},
        precision=find_machine(cli).precision,  # type: ignore[arg-type]
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        callbacks=[ours.ProgressBar()],
    )
    run_split = trainer.validate if verb == "validate" else trainer.test
    run_split(cli.model, cli.datamodule, verbose=False)
    if not trainer.is_global_zero:
        return
    print(f"{path} (step {state['global_step']:,})")
    for name, value in cli.model.latest.items():
        print(f"  {name:<20} {value:.6f}")


def validate(words: list[str], allowed: list[str]) -> None:
    """Loss of a run's checkpoint on the validation split."""
    evaluate(words, allowed, "validate")


def test(words: list[str], allowed: list[str]) -> None:
    """Loss of a run's checkpoint on the test split."""
    evaluate(words, allowed, "test")
