"""The verbs fit and schedule: a config becomes a run, or a drawing of its learning rate."""

import itertools
import math
import os
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import DistError

from lmtemplate import callbacks as ours
from lmtemplate import plug, redact, run_dir
from lmtemplate.callbacks.preemption import EXIT_CODES
from lmtemplate.checkpoint import compatibility as restore
from lmtemplate.checkpoint import files
from lmtemplate.checkpoint.resume import ResumeMode, resolve, resume_from
from lmtemplate.cli import TrainingCLI, configure_parsing
from lmtemplate.crash import is_out_of_memory
from lmtemplate.data.datamodule import TokenData
from lmtemplate.errors import (
    CheckpointError,
    ConfigError,
    LostProcessError,
    NumbersError,
    OutOfMemoryError,
    UserError,
)
from lmtemplate.hardware import device_name
from lmtemplate.record import is_recorded, read_record
from lmtemplate.streams import forgiving
from lmtemplate.trainer import (
    Machine,
    build_trainer,
    check,
    check_room,
    describe,
    make_plan,
    quieten,
)


def is_finished(run: Path, before: files.Checkpoint, cli: TrainingCLI, steps: int) -> bool:
    """Whether the run ended as planned, and neither its length nor its patience has changed."""
    summary = run_dir.read_json(run / "summary.json") or {}
    step, reason = before["global_step"], summary.get("stop_reason")
    if step >= steps:
        return bool(summary)  # else it was killed between its last step and its end
    if summary.get("step") != step or reason in ("interrupted", "numbers"):
        return False
    patient = before["config"]["early_stopping"] != cli.settings["early_stopping"]
    return steps <= summary.get("max_steps", steps) and not (reason == "early_stopping" and patient)


def announce(
    run: Path, before: files.Checkpoint | None, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Say where the run goes on and which settings differ; returns that, for the manifest."""
    if before is None:
        if run_dir.is_used(run):
            print(f"no checkpoint in {run} yet: starting at step 0")
        return None
    changed = restore.differences(before["config"], settings)
    print(f"continuing {run} at step {before['global_step']:,}")
    for key, (old, new) in changed.items():
        print(f"  changed: {key}: {old} -> {new}")
    return {"step": before["global_step"], "changed": {k: list(v) for k, v in changed.items()}}


def start_weights(source: str, cli: TrainingCLI) -> None:
    """Begin with the weights of another run or file. Raises CheckpointError if they do not fit."""
    path = Path(files.check_local(source))
    state = files.read(resolve(path, "best") if os.path.isdir(source) else path)
    restore.check_tokenizer(state, cli.datamodule.tokenizer.to_json(), cli.datamodule.path)
    restore.load_net(cli.model.net, state)


def write_run_files(
    cli: TrainingCLI, machine: Machine, run: Path, start: dict[str, Any] | None
) -> None:
    """config.yaml, as the user gave it but for secrets, and manifest.json."""
    data = cli.datamodule
    (run / "summary.json").unlink(missing_ok=True)  # it tells of the start before
    run_dir.write_text(run / "config.yaml", yaml.safe_dump(cli.settings, sort_keys=False))
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
    manifest = run_dir.manifest(cli.config.seed_everything, hardware, source)
    manifest.update(settings=cli.settings, command=redact.words(manifest["command"]))
    run_dir.write_manifest(run, manifest, start)


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


def mistake_in(error: Exception, trainer: lightning.Trainer, data: TokenData) -> UserError | None:
    """What a user can do about an error of torch, where that is known."""
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"too little memory for data.batch_size={data.batch_size} x data.block_size="
            f"{data.block_size}; halve the batch and double trainer.accumulate_grad_batches, or "
            "shrink the model"
        )
    if worker := re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)", str(error)):
        return OutOfMemoryError(
            f"data worker {worker[1]} was killed, as when memory or /dev/shm runs out; lower "
            "data.num_workers (0 reads in the training process)"
        )
    what = re.sub(r"^\[.*?\] ", "", " ".join(str(error).split())).partition(". ")[0][:200]
    if trainer.world_size > 1 and (isinstance(error, DistError) or "gloo" in str(error)):
        return LostProcessError(
            f"process {trainer.global_rank} of {trainer.world_size} has lost another one at step "
            f"{trainer.global_step:,}, which died or stands still (see what that one said); go on "
            f"with --resume auto. {what}"
        )
    return None


def train(trainer: lightning.Trainer, path: Path | None, cli: TrainingCLI) -> None:
    """Run Lightning's loop. What ends it early becomes a line and an exit code."""
    signals = cli.config_init.signals
    try:
        with signals.listening() if signals else nullcontext():
            trainer.fit(cli.model, cli.datamodule, ckpt_path=path, weights_only=True)
    except ours.SignalError as stop:
        sys.exit(stop.exit_code)
    except (NumbersError, SystemExit) as error:
        if signals and signals.received:  # it came first
            sys.exit(EXIT_CODES[signals.received])
        if isinstance(error, SystemExit) and trainer.interrupted:
            sys.exit(130)  # Lightning ends with 1 after a Ctrl-C before the first step
        raise
    except (RuntimeError, MemoryError) as error:
        if signals and signals.received and "DataLoader worker" in str(error):
            sys.exit(EXIT_CODES[signals.received])  # which the worker, just started, got as well
        if mistake := mistake_in(error, trainer, cli.datamodule):
            raise mistake from error
        raise


def build(
    cli: TrainingCLI, run: Path, resume: ResumeMode, lock: run_dir.Lock | None
) -> tuple[lightning.Trainer, Path | None] | None:
    """Check all that can be checked, then build the Trainer and write the run's own files.

    Returns the Trainer and the checkpoint to go on from; None where the run is finished already.

    Args:
        cli: parsed and instantiated.
        run: the run directory.
        resume: whether to go on there.
        lock: of the first process, which alone writes.
    """
    path = resume_from(run, resume)
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
    elif lock:
        check_room(cli, run)
    if before is None and cli.config.init_from:
        start_weights(cli.config.init_from, cli)
    trainer = build_trainer(cli, planned, run, before["global_step"] + 1 if before else 0)
    if lock:
        write_run_files(cli, planned.machine, run, announce(run, before, cli.settings))
    return trainer, path


def last_points(run: Path, count: int = 5) -> str:
    """The end of a run's record: ". Before: step 50: loss 3.1, rate 0.01, gradient 4.2; ..."."""
    record = read_record(run) if is_recorded(run) else None
    if not record:
        return ""
    norms = record.values.get("optim/grad_norm", record.train_loss * math.nan)
    columns = (record.steps, record.train_loss, record.learning_rate, norms)
    rows = zip(*(column[-count:] for column in columns), strict=True)
    return ". Before: " + "; ".join(
        f"step {s}: loss {x:.4g}, rate {r:.3g}, gradient {n:.3g}" for s, x, r, n in rows
    )


def train_on(cli: TrainingCLI, words: list[str], run: Path, lock: run_dir.Lock | None) -> bool:
    """Train; where numbers go bad, go back to the last checkpoint and leave out what led there.

    Returns whether there was anything to do. Raises NumbersError when going back has not helped.
    """
    resume: ResumeMode = cli.config.resume if lock else "auto"
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
                    f"{error}{last_points(run)}. Lower the learning rate, add warmup, or set "
                    "trainer.gradient_clip_val 1.0, and start again"
                ) from error
            sequences, resume = cli.datamodule.sequences, "auto"
            if lock:
                count = f"{gone_back}/{guard.rewinds}"
                print(f"{error}: going back ({count}) and leaving out what was read", flush=True)
            cli = TrainingCLI(words)
            cli.datamodule.skip_to(sequences)
            cli.config_init.guard.went_back = True
    return True


def explain(run: Path, cli: TrainingCLI, lock: run_dir.Lock | None, allowed: list[str]) -> None:
    """Say what came of the run, unless that is switched off; the first process speaks."""
    if lock and cli.config.report:
        plug.close(run, allowed)


def run_directory(cli: TrainingCLI) -> Path:
    """Raises ConfigError for a name that cannot be one."""
    name = str(cli.config.run_dir)
    try:
        name.encode()
        run = Path(name).expanduser()
        os.stat(run)
        is_file = run.is_file()
    except (FileNotFoundError, NotADirectoryError):  # the lock says what is in the way
        return run
    except (OSError, ValueError, RuntimeError) as error:  # too long; a NUL, not UTF-8; ~nobody
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"run_dir {ascii(name)[:60]} cannot be a folder here: {reason}; name another"
        ) from error
    if is_file:
        raise ConfigError(f"run directory {run} is a file; name another with --run_dir")
    return run


def fit(words: list[str], allowed: list[str]) -> None:
    """Train. Nothing stays written before all that can be checked is."""
    quieten()
    configure_parsing(allowed)
    cli = TrainingCLI(words)
    run, first_process = run_directory(cli), getattr(rank_zero_only, "rank", 0) == 0
    with run_dir.Lock(run) if first_process else nullcontext() as lock, forgiving():
        try:
            has_trained = train_on(cli, words, run, lock)
        except NumbersError:
            explain(run, cli, lock, allowed)
            raise
        if has_trained:
            explain(run, cli, lock, allowed)
