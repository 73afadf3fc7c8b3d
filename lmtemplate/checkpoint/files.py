"""Training state <-> file: alone writes and loads checkpoints.

A checkpoint is a dictionary of tensors and plain types. Lightning's keys (state_dict, global_step,
optimizer_states ...) are joined by the run's description: config, tokenizer, vocab_size,
block_size, fingerprint, length. Checksums stand in SHA256SUMS beside the files, in the format of
`sha256sum -c`.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from lmtemplate.data.shards import file_sha256
from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.run_dir import sync_folder, write_text

Checkpoint = dict[str, Any]

SUMS = "SHA256SUMS"
ROOM = 2.2  # checkpoints that a run needs room for: the one being written, and the one before it


def file_name(step: int) -> str:
    return f"step-{step:09d}.ckpt"


class _Digesting:
    """A file that hashes what is written to it; `torch.save` writes front to back.

    Of a full disk torch would only say "unexpected pos": the first error is kept for `_save`.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            if self.error is None:
                self.sha256.update(data)
                self.file.write(data)
        except OSError as error:
            self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        self.file.flush()


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    rows = re.findall(r"^([0-9a-f]{64}) [ *](.+)$", text, re.MULTILINE)
    return {name: digest for digest, name in rows}


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def _sums_beside(path: Path) -> dict[str, str]:
    """Checksums of the other files in the folder; a kill may have left some of files now gone."""
    sums = _read_sums(path.parent).items()
    return {k: v for k, v in sums if k != path.name and (path.parent / k).is_file()}


def drop_sums(folder: Path) -> None:
    """Forget the checksums of files that are gone. Raises DiskError."""
    sums = _read_sums(folder).items()
    _write_sums(folder, {name: digest for name, digest in sums if (folder / name).is_file()})


def size(content: Any) -> int:
    """Bytes of all tensors in a nest: about what its file takes."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    values = content.values() if isinstance(content, dict) else content
    return sum(map(size, values)) if isinstance(content, dict | list | tuple) else 0


def check_room(run: Path, net: nn.Module) -> None:
    """Raises DiskError where the first two checkpoints of a new run will not fit."""
    needed = ROOM * 3 * size(net.state_dict())  # weights and two moments, at most
    free = shutil.disk_usage(run).free
    if free < needed:
        raise DiskError(
            f"{run} has {free / 1e6:,.1f} MB free, and saving needs about {needed / 1e6:,.1f} MB: "
            "make room, or name another --run_dir"
        )


def _reason(error: OSError, checkpoint: Checkpoint, temporary: Path) -> str:
    """Why it could not be written, with the room that it takes where that is why."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        begun = temporary.stat().st_size if temporary.exists() else 0
        free = shutil.disk_usage(temporary.parent).free + begun
        reason += f" (it takes {size(checkpoint) / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free)"
    return reason


def _save(checkpoint: Checkpoint, path: Path) -> str:
    """Write a file, synchronise it, read it back; returns its SHA-256. Raises OSError."""
    with path.open("wb") as file:
        digesting = _Digesting(file)
        torch.save(checkpoint, digesting)  # type: ignore[arg-type]
        if digesting.error is not None:
            raise digesting.error
        file.flush()
        os.fsync(file.fileno())
    digest = digesting.sha256.hexdigest()
    if file_sha256(path) != digest:
        raise OSError("it does not read back as it was written; check the disk")
    return digest


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write atomically, durably, and read back. A file under its final name is always whole.

    Raises DiskError; a file that stood there before is then untouched.
    """
    temporary = path.parent / f".{path.name}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _save(checkpoint, temporary)
        before, others = _read_sums(path.parent), _sums_beside(path)
        replaces = path.exists()
        # a new file has its sum before its name; of two that a crash may leave, neither has one
        _write_sums(path.parent, others if replaces else {**others, path.name: digest})
        try:
            temporary.replace(path)
        except OSError:
            _write_sums(path.parent, before)
            raise
        sync_folder(path.parent)
        if replaces:
            _write_sums(path.parent, {**others, path.name: digest})
    except OSError as error:
        reason = _reason(error, checkpoint, temporary)
        raise DiskError(f"cannot write {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _foreign(entries: list[zipfile.ZipInfo], size: int) -> str | None:
    """Why a zip file of this size is none of `torch.save`; None if it may be one."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        return "its entries are compressed"
    if sum(entry.file_size for entry in entries) > size:
        return "its entries unpack to more than it holds"
    if any(entry.external_attr for entry in entries):  # torch reads "a folder" as no numbers
        return "its entries have attributes"
    if any(Path(entry.filename).name == "constants.pkl" for entry in entries):
        return "it is a TorchScript program"
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None if it is sound."""
    expected = _read_sums(path.parent).get(path.name)
    try:
        if expected is not None:
            found = file_sha256(path)
            same = found == expected
            return None if same else f"sha256 is {found[:8]}.., {SUMS} says {expected[:8]}.."
        # a file from elsewhere: its zip entries carry CRC-32 sums, which torch does not look at
        with zipfile.ZipFile(path) as archive:
            if problem := _foreign(archive.infolist(), path.stat().st_size):
                return problem
            broken = archive.testzip()
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # of a damaged file, zipfile raises what it stumbles over
        return str(error) or type(error).__name__
    return None if broken is None else f"entry {broken} fails its CRC"


def _load(path: Path) -> Any:
    """Unpickle tensors and plain types. Raises CheckpointError for anything else."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # else torch takes it for its old format, or a tar
    what = "it is not a torch checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            problem = _foreign(archive.infolist(), path.stat().st_size)
        if is_zip and problem is None:
            with warnings.catch_warnings(action="ignore"):  # of what the error says better
                return torch.load(path, map_location="cpu", weights_only=True)
        what = problem or what
    except Exception as error:  # a hostile file finds its way to any error of these parsers
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it contains the global {found[1]}" if found else what
    raise CheckpointError(f"{path} is refused: {what}; only tensors and plain types load")


# What a checkpoint says -> of which kind it has to be, where it is there.
KINDS: dict[str, type] = {
    **dict.fromkeys(("state_dict", "config", "length"), dict),
    **dict.fromkeys(("global_step", "vocab_size", "block_size"), int),
    **dict.fromkeys(("tokenizer", "fingerprint"), str),
}


def check_local(source: str) -> str:
    """Raises CheckpointError for an address."""
    if re.match(r"\w{2,}:/|\\\\", source):
        raise CheckpointError(
            f"remote checkpoints are not loaded; download {source}, compare its sha256 with one "
            "that you trust, and give its path"
        )
    return source


def read(path: Path) -> Checkpoint:
    """Verify and load onto the CPU; nothing in the file is ever run.

    Raises CheckpointError if it is missing, damaged, or holds more than tensors and plain types.
    """
    check_local(str(path))
    try:
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path}; give best, latest, or a file")
        if problem := damage(path):
            raise CheckpointError(f"checkpoint {path} is damaged ({problem}); use an earlier one")
        checkpoint = _load(path)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from error
    for key in ("state_dict", "global_step"):
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            raise CheckpointError(f"{path} is not a checkpoint: it has no {key}")
    weights = checkpoint["state_dict"]
    wrong = [k for k, kind in KINDS.items() if not isinstance(checkpoint.get(k, kind()), kind)]
    if wrong or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        key = [*wrong, "state_dict"][0]
        raise CheckpointError(f"{path} is not a checkpoint: its {key} is of another kind")
    return checkpoint
