"""Training state <-> file: alone writes and loads checkpoints, and decides where to resume.

A checkpoint is a dictionary of tensors and plain types. Lightning's keys (state_dict, global_step,
optimizer_states ...) are joined by the run's description: config, tokenizer, vocab_size,
block_size, fingerprint, length. Checksums stand in SHA256SUMS beside the files, in the format of
`sha256sum -c`.
"""

import hashlib
import importlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import nn

from lmtemplate.data.shards import file_sha256
from lmtemplate.errors import CheckpointError, ConfigError, DiskError
from lmtemplate.models.base import LanguageModel
from lmtemplate.run import is_used, sync_folder, write_json

Checkpoint = dict[str, Any]
ResumeMode = Literal["never", "auto", "must"]

SUMS = "SHA256SUMS"
NET = "net."  # prefix of the net's weights in the LightningModule's state_dict


def file_name(step: int) -> str:
    return f"step-{step:09d}.ckpt"


class _Digesting:
    """A file that hashes what is written to it; `torch.save` writes front to back."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    if not path.is_file():
        return {}
    rows = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {name: digest for digest, name in rows}


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    text = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    temporary = folder / f".{SUMS}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / SUMS)


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write atomically, durably, and read back. A file under its final name is always whole.

    Raises DiskError; a file that stood there before is then untouched.
    """
    temporary = path.parent / f".{path.name}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            digesting = _Digesting(file)
            torch.save(checkpoint, digesting)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        digest = digesting.sha256.hexdigest()
        if file_sha256(temporary) != digest:
            raise DiskError(f"{path} does not read back as it was written; check the disk")
        sums = _read_sums(path.parent)
        if sums.pop(path.name, None):  # else a crash right here leaves a new file with an old sum
            _write_sums(path.parent, sums)
        temporary.replace(path)
        sync_folder(path.parent)
        _write_sums(path.parent, {**sums, path.name: digest})
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None if it is sound."""
    expected = _read_sums(path.parent).get(path.name)
    if expected is not None:
        found = file_sha256(path)
        return None if found == expected else f"sha256 is {found[:8]}.., expected {expected[:8]}.."
    try:  # a file from elsewhere: its zip entries carry CRC-32 sums, which torch does not look at
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error)
    return None if broken is None else f"entry {broken} fails its CRC"


def read(path: Path) -> Checkpoint:
    """Verify and load onto the CPU; nothing in the file is ever run.

    Raises CheckpointError if it is missing, damaged, or holds more than tensors and plain types.
    """
    if re.match(r"\w{2,}:/", str(path)):
        raise CheckpointError(
            f"remote checkpoints are not loaded; download {path} and give its path"
        )
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    if problem := damage(path):
        raise CheckpointError(f"checkpoint {path} is damaged ({problem}); use an earlier one")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it contains the global {found[1]}" if found else "it is not a torch checkpoint"
        raise CheckpointError(
            f"{path} is refused: {what}; only tensors and plain types load"
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint: it has no state_dict")
    return checkpoint


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def steps_saved(run: Path) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    names = (
        re.fullmatch(r"step-(\d{9,})\.ckpt", p.name) for p in folder_of(run).glob("step-*.ckpt")
    )
    return sorted(int(name[1]) for name in names if name)


def read_best(run: Path) -> dict[str, Any] | None:
    """What best.json says: step, val_loss, file."""
    path = folder_of(run) / "best.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_best(run: Path, step: int, val_loss: float) -> None:
    """Point at the best checkpoint so far."""
    best = {"step": step, "val_loss": val_loss, "file": file_name(step)}
    write_json(folder_of(run) / "best.json", best)


def prune(run: Path, newest: int, keep: int = 2) -> None:
    """Delete all but the `keep` newest up to step `newest`, and the best one.

    Files of later steps are from before a resume that could not read them: they stay, and do not
    count. Milestones live elsewhere.
    """
    best = read_best(run)
    steps = [step for step in steps_saved(run) if step <= newest]
    kept = {*steps[-keep:], *([best["step"]] if best else [])}
    gone = [file_name(step) for step in steps if step not in kept]
    folder = folder_of(run)
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    if gone:
        _write_sums(folder, {k: v for k, v in _read_sums(folder).items() if k not in gone})


def resolve(run: Path, which: str) -> Path:
    """`best`, `latest` or a path -> file. Raises CheckpointError if there is none."""
    if which not in ("best", "latest"):
        return Path(which)
    if not run.is_dir():
        raise CheckpointError(f"no run {run}; a run directory is what `lmtemplate fit` has made")
    best = read_best(run) if which == "best" else None
    steps = [best["step"]] if best else steps_saved(run)
    if not steps:
        raise CheckpointError(f"no checkpoint in {folder_of(run)}; train first: lmtemplate fit")
    return folder_of(run) / file_name(steps[-1])


def resume_from(run: Path, mode: ResumeMode) -> Path | None:
    """The checkpoint that a new start in this directory continues; None to begin at step 0.

    Raises ConfigError for `never` in a used directory, CheckpointError for `must` without a
    checkpoint.
    """
    if run.exists() and not run.is_dir():
        raise ConfigError(f"run directory {run} is a file; name another with --run_dir")
    if mode == "never":
        if is_used(run):
            raise ConfigError(
                f"run directory {run} is in use; continue it with make resume RUN={run} (or add "
                "--resume auto), or start anew with another --run_dir"
            )
        return None
    steps = steps_saved(run)
    for step in reversed(steps):
        path = folder_of(run) / file_name(step)
        problem = damage(path)
        if problem is None:
            return path
        print(f"checkpoint {path} is damaged ({problem}); trying the one before it")
    if steps:
        raise CheckpointError(
            f"all checkpoints in {folder_of(run)} are damaged; start anew with another --run_dir"
        )
    if mode == "must":
        raise CheckpointError(
            f"no checkpoint in {folder_of(run)}; begin it with --resume auto (as make train does), "
            "or name the directory of the run to continue with --run_dir"
        )
    return None


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        nested = isinstance(value, dict) and value
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value})
    return flat


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: key path -> (before, now); a setting that is absent counts as None."""
    old, new = flatten(before), flatten(now)
    keys = sorted({*old, *new})
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def check_same_model_and_data(checkpoint: Checkpoint, description: dict[str, Any]) -> None:
    """Refuse to continue with another architecture, optimizer, seed or corpus.

    Raises CheckpointError that names each field, before -> now.
    """

    def essence(of: dict[str, Any]) -> dict[str, Any]:
        config = of["config"]
        return {
            "seed_everything": config["seed_everything"],  # the order of the data depends on it
            "model": {
                "net": config["model"]["net"],
                "optimizer": {"class_path": config["model"]["optimizer"]["class_path"]},
            },
            "data": {k: of[k] for k in ("vocab_size", "block_size", "tokenizer", "fingerprint")},
        }

    changed = differences(essence(checkpoint), essence(description))
    if changed:
        if "data.tokenizer" in changed:  # a whole file each
            changed["data.tokenizer"] = ("..", "another")
        fields = ", ".join(
            f"{key}: {str(old)[:40]} -> {str(new)[:40]}" for key, (old, new) in changed.items()
        )
        raise CheckpointError(
            f"this run has another model, optimizer, seed or corpus ({fields}); "
            "set it back, or start a new run with another --run_dir"
        )


def check_tokenizer(checkpoint: Checkpoint, tokenizer_json: str, data: Path) -> None:
    """Raises CheckpointError where a checkpoint's tokens mean something else than the data's."""
    if checkpoint.get("tokenizer") != tokenizer_json:
        raise CheckpointError(
            f"the checkpoint has another tokenizer than the text in {data}; prepare it "
            "with the tokenizer.json of that run (lmtemplate prepare --tokenizer FILE)"
        )


def load_net(net: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a net. Raises CheckpointError naming what does not fit."""
    weights = {k.removeprefix(NET): v for k, v in checkpoint["state_dict"].items()}
    wanted = net.state_dict()
    for name in sorted({*weights, *wanted}):
        have = tuple(weights[name].shape) if name in weights else "missing"
        need = tuple(wanted[name].shape) if name in wanted else "unknown"
        if have != need:
            raise CheckpointError(
                f"the checkpoint is of another architecture: {name} is {have} there, {need} here"
            )
    net.load_state_dict(weights)


def check_allowed(class_path: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError unless the class is ours or of a package that was named with --allow."""
    package = class_path.split(".")[0]
    if package not in ("lmtemplate", *allowed):
        raise ConfigError(
            f"{class_path} is not of lmtemplate; add --allow {package} if you trust that package"
        )


def build_net(checkpoint: Checkpoint, allowed: Sequence[str] = ()) -> LanguageModel:
    """The net that a checkpoint describes, with its weights, ready for evaluation.

    Raises ConfigError where its class is of a package that is not allowed, and imports
    nothing then.
    """
    try:
        described = checkpoint["config"]["model"]["net"]
        sizes = {key: checkpoint[key] for key in ("vocab_size", "block_size")}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            "the checkpoint does not describe its net (no config in it)"
        ) from error
    check_allowed(described["class_path"], allowed)
    module, _, name = described["class_path"].rpartition(".")
    try:
        architecture = getattr(importlib.import_module(module), name)
        if not (isinstance(architecture, type) and issubclass(architecture, LanguageModel)):
            raise TypeError("it is not a LanguageModel")
        net = architecture(**{**described.get("init_args", {}), **sizes})
    except (ImportError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"the checkpoint's net {described['class_path']} cannot be built here: {error}; "
            "use the version of the code that trained it"
        ) from error
    load_net(net, checkpoint)
    return net.eval()
