"""Training state <-> file: the only place that writes and loads checkpoints.

A checkpoint is a dictionary of tensors and plain types. To Lightning's keys (state_dict,
global_step, optimizer_states ...) it adds the run's description: config, tokenizer, vocab_size,
block_size, fingerprint, length, environment, version, and the number of its format. SHA256SUMS
beside the files has their checksums, in the format of `sha256sum -c`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from lmtemplate import __version__
from lmtemplate.data.shards import file_sha256
from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.plain_file import DEEPEST, read_plain
from lmtemplate.run_dir import sync_folder, write_text

CheckpointDict = dict[str, Any]

NEWEST_FORMAT = 1  # of what a checkpoint holds; it grows when an older program would misread it
SUMS = "SHA256SUMS"
MOST_SHARED = 20  # times its file, at most, are its tensors: tied weights count each time
MOST_PARTS = 10_000_000  # values of a checkpoint, however deep: a run's own has some thousands
ROOM = 2.2  # a run needs free space for so many checkpoints: the newest, and one being written


def file_name(step: int) -> str:
    return f"step-{step:09d}.ckpt"


class _Digesting:
    """A file that hashes what is written to it, and keeps the error that torch would hide."""

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
    text = read_plain(path, errors="replace") if path.is_file() else ""
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64}) [ *](.+)$", text, re.M)}


def set_sum(folder: Path, name: str = "", digest: str | None = None) -> None:
    """List a file's checksum (None: no longer), and forget those of deleted files."""
    sums = {k: v for k, v in _read_sums(folder).items() if k != name and (folder / k).is_file()}
    if digest is not None:
        sums[name] = digest
    write_text(folder / SUMS, "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)))


def parts_of(content: Any) -> Iterator[Any]:
    """Every key and value in a nest. Raises ValueError where it is too large or too deep."""
    level = [content]
    for _ in range(DEEPEST):
        inner = list[Any]()
        for part in level:
            yield part
            if isinstance(part, torch.Tensor | dict):
                inner += getattr(part, "__dict__", {}).values()
            if isinstance(part, dict | list | tuple | set | frozenset):
                inner += [*part, *part.values()] if isinstance(part, dict) else part
            if len(inner) > MOST_PARTS:
                raise ValueError(f"it has more than {MOST_PARTS:,} parts")
        level = inner
    if level:
        raise ValueError("it nests too deep")


def size(content: Any) -> int:
    """Bytes of all tensors in a nest: about what its file takes. Raises what `parts_of` raises."""
    return sum(part.nbytes for part in parts_of(content) if isinstance(part, torch.Tensor))


def hidden_methods(part: Any) -> list[str]:
    """Names of methods that an object's own attributes replace: a file can give some to a tensor."""
    return [k for k in getattr(part, "__dict__", {}) if callable(getattr(type(part), k, None))]


def check_room(run: Path, net: nn.Module) -> None:
    """Raises DiskError where the first two checkpoints of a new run will not fit."""
    needed = ROOM * 3 * size(net.state_dict())  # weights and two moments, at most
    free = shutil.disk_usage(run).free
    if free < needed:
        raise DiskError(
            f"{run} has {free / 1e6:,.1f} MB free, and saving needs about {needed / 1e6:,.1f} MB: "
            "make room, or name another --run_dir"
        )


def write(checkpoint: CheckpointDict, path: Path) -> None:
    """Write atomically, durably, and read back. Raises DiskError; an older file is then untouched."""
    temporary, folder = path.parent / f".{path.name}.tmp", path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a link could lead anywhere
        with temporary.open("xb") as file:
            digesting = _Digesting(file)
            own = {"format": NEWEST_FORMAT, "version": __version__}
            torch.save({**checkpoint, **own}, digesting)  # type: ignore[arg-type]
            if digesting.error is not None:
                raise digesting.error
            file.flush()
            os.fsync(file.fileno())
        digest = digesting.sha256.hexdigest()
        if file_sha256(temporary) != digest:
            raise OSError("it does not read back as it was written; check the disk")
        replaces = path.exists()
        # Write the checksum before a new file gets its name. While a file is replaced, list no
        # checksum for it, so that a crash cannot leave a wrong one.
        set_sum(folder, path.name, None if replaces else digest)
        temporary.replace(path)
        sync_folder(folder)
        if replaces:
            set_sum(folder, path.name, digest)
    except (OSError, DiskError) as error:
        with contextlib.suppress(OSError):  # what it took is free again
            temporary.unlink(missing_ok=True)
        if isinstance(error, DiskError):
            raise
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            needed, free = size(checkpoint) / 1e6, shutil.disk_usage(folder).free / 1e6
            reason += f" (it takes {needed:,.1f} MB, {free:,.1f} MB are free)"
        raise DiskError(f"cannot write {path}: {reason}") from error


def _lies(archive: zipfile.ZipFile, path: Path) -> bool:
    """Whether a zip directory says what `torch.save` never writes."""
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)  # more than the file would fill the memory
    # torch reads an entry that a flipped bit has marked as a folder as no numbers, without an error
    return unpacked > path.stat().st_size or any(entry.external_attr for entry in entries)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, in words; None if it is sound."""
    expected = _read_sums(path.parent).get(path.name)
    try:
        if path.exists() and not path.is_file():  # a link may lead to a device, which never ends
            return "it is no file"
        if expected is not None:
            found = file_sha256(path)
            same = found == expected
            return None if same else f"sha256 is {found[:8]}.., {SUMS} says {expected[:8]}.."
        # a file from elsewhere: its zip entries carry CRC-32 sums, which torch does not look at
        with zipfile.ZipFile(path) as archive:
            if _lies(archive, path):
                return "its zip directory has wrong sizes or attributes"
            broken = archive.testzip()
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # of a damaged file, zipfile raises what it stumbles over
        return str(error) or type(error).__name__
    return None if broken is None else f"entry {broken} fails its CRC"


DESCRIPTION = ("config", "length", "environment")  # plain types, without tensors
NAMED = ("state_dict", "current_model_state", "latest", "callbacks")  # name -> value
STATES = ("callbacks", "optimizer_states", "lr_schedulers")  # of dictionaries
# Key of a checkpoint -> type that its value has.
TYPES: dict[str, type] = {
    **dict.fromkeys((*NAMED, *DESCRIPTION), dict),
    **dict.fromkeys(STATES[1:], list),
    **dict.fromkeys(("global_step", "vocab_size", "block_size", "format"), int),
    **dict.fromkeys(("tokenizer", "fingerprint", "version"), str),
}


@contextlib.contextmanager
def plain_globals() -> Iterator[None]:
    """Forbid what torch's own modules allow in files: to make a DeviceMesh opens connections."""
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    homes = [getattr(one, "__module__", "torch").partition(".")[0] for one in known]
    of_users = [one for one, home in zip(known, homes, strict=True) if home != "torch"]
    torch.serialization.add_safe_globals(of_users)
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(known)


def check_content(content: CheckpointDict, path: Path) -> None:
    """Raises CheckpointError where what is read of it has another type, or is of another step."""
    found = {**dict.fromkeys(("state_dict", "global_step")), **content}
    wrong = [k for k, kind in TYPES.items() if k in found and not isinstance(found[k], kind)]
    if not wrong:
        steps = found.get("length", {"steps": 0}).get("steps")
        states = {**found, "callbacks": [*found.get("callbacks", {}).values()]}
        claims = [
            ("length", type(steps) is int and 0 <= steps < 2**53),
            ("global_step", found["global_step"] < 2**53),
            ("state_dict", all(map(torch.is_tensor, found["state_dict"].values()))),
            *((k, all(isinstance(name, str) for name in found.get(k, ()))) for k in NAMED),
            *((k, all(isinstance(state, dict) for state in states.get(k, ()))) for k in STATES),
        ]
        wrong = [key for key, is_sound in claims if not is_sound]
    if wrong:
        says = f"its {wrong[0]} is missing, or has another type"
        raise CheckpointError(f"{path} is not a checkpoint: {says}")
    named = re.fullmatch(r"step-(\d{9,})\.ckpt", path.name)
    if named and repr(step := content["global_step"]) != f"{int(named[1])}":
        raise CheckpointError(f"{path} is of step {step}; give it the name of that step")
    if content.get("format", 0) > NEWEST_FORMAT:
        later = f"use lmtemplate {content.get('version', '')[:20]}, which wrote it, or newer"
        raise CheckpointError(f"{path} has format {content['format']}, a later one; {later}")


def load_sound(path: Path) -> CheckpointDict:
    """Load a file that `damage` found sound onto the CPU; nothing in the file is ever run."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            # torch takes a file that does not begin as a zip file for one of its old formats
            if file.read(4) != b"PK\x03\x04" or _lies(archive, path):
                raise ValueError("it is not a torch checkpoint")
        with warnings.catch_warnings(action="ignore"), plain_globals():  # the error says it better
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        content = loaded if isinstance(loaded, dict) else {}
        if any(map(hidden_methods, parts_of(content))):
            raise ValueError("its tensors have attributes in the place of methods")
        if size(content) > MOST_SHARED * path.stat().st_size:  # a few numbers, repeated
            raise ValueError("its tensors are larger than the file")
        json.dumps([content.get(key) for key in DESCRIPTION])  # raises TypeError for a tensor
    except Exception as error:  # a hostile file can raise any error in these parsers
        evil = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it contains the global {evil[1]}" if evil else "it is not a torch checkpoint"
        text = f"{path} is refused: {what}; only tensors and plain types load"
        raise CheckpointError(text) from error
    check_content(content, path)
    return content


def read(path: Path) -> CheckpointDict:
    """Verify and load, once each. Raises CheckpointError if the file is missing, damaged or bad."""
    try:
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path}; give best, latest, or a file")
        if problem := damage(path):
            raise CheckpointError(f"checkpoint {path} is damaged ({problem}); use an earlier one")
        return load_sound(path)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from error
