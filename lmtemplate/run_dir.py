"""A run directory's paths, its lock and its plain files: manifest, summary, config."""

import contextlib
import errno
import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmtemplate.errors import ConfigError, DiskError, LockedError
from lmtemplate.plain_file import nests_deep, read_plain

LOCK = ".lock"
YAML_NUMBERS = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}  # JSON has none of these
# A file system that has no such call answers with one of these.
MISSING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints and its record."""
    return run / "checkpoints"


def refuse_links(run: Path) -> None:
    """Raises ConfigError where a link below a run, or a folder of runs, leads out of it.

    And where a folder below cannot be listed, which could hide one.
    """

    def stop(error: OSError) -> None:
        if os.path.isdir(run):
            raise ConfigError(f"{error.filename} cannot be listed: {error.strerror}") from error

    home = os.path.realpath(run)
    for folder, folders, names in os.walk(run, onerror=stop):
        for path in (Path(folder, name) for name in (*folders, *names)):
            # `resolve` raises for links that are a loop
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                raise ConfigError(f"{path} is a link that leaves {run}; remove it")


@functools.cache
def say_once(text: str) -> None:
    """Print what is true of the whole process."""
    print(text, flush=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where its file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in MISSING:
            raise
        say_once("this file system cannot sync folders: a power cut may take the last save")
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content at once. Raises DiskError."""
    temporary = path.parent / f".{path.name}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # it could be a link that leads anywhere
        with temporary.open("x", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def to_json(
    content: Any, indent: int | None = 2, default: Callable[[Any], Any] | None = None
) -> str:
    """Strict JSON: NaN and infinity are texts, as YAML spells them."""
    text = json.dumps(content, default=default)
    return json.dumps(json.loads(text, parse_constant=YAML_NUMBERS.get), indent=indent)


def write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    """Replace a file by strict JSON. Raises DiskError."""
    write_text(path, f"{to_json(content, indent)}\n")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds; {} where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_plain(path))
        return content if isinstance(content, dict) and not nests_deep(content) else {}
    return {}


@contextlib.contextmanager
def lock(folder: Path, path: Path | None = None, flag: str = "--run_dir") -> Iterator[None]:
    """Keep a folder to one process; the system frees it however that process dies.

    The library closes its file in forked processes, so a data worker never keeps the lock. Raises
    LockedError, with who has it, and DiskError where there can be no lock file. `flag` names
    another folder on the command line.
    """
    path, other = path or folder / LOCK, f"name another folder with {flag}"

    def holder() -> str:
        with contextlib.suppress(OSError, ValueError):
            if not path.is_symlink():  # which the library refuses to open
                return read_plain(path)[:200]
        return ""

    held = FileLock(path, timeout=0.2, fallback_to_soft=False)
    try:
        made_folder = not path.parent.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        before = holder()
        held.acquire()
    except Timeout as error:
        who = holder() or "another process"
        raise LockedError(f"{folder} is in use by {who}; wait, or {other}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if getattr(error, "errno", None) not in MISSING:
            reason = getattr(error, "strerror", None) or error
            raise DiskError(f"cannot write {path.parent}: {reason}; {other}") from error
        print(f"{folder} is not locked: its file system has no locks", flush=True)
        yield
        return
    if before:
        print(f"taking over {folder} from {before}, which has died")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.suppress(OSError):  # on a full disk, only the name of the holder is lost
        path.write_text(f"pid {os.getpid()} on host {platform.node()} since {now}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder was removed, or is not empty
            path.unlink()
            if made_folder:  # for the lock alone
                path.parent.rmdir()
        held.release()


def is_used(run: Path) -> bool:
    """Whether there is more in the directory than its lock."""
    return run.is_dir() and any(path.name != LOCK for path in run.iterdir())


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Commit of the code in a folder, and whether it had changes; nulls outside a repository.

    Not of the working directory: it may be a stranger's, whose git settings can name programs.
    """
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        commit = subprocess.run(asked, cwd=folder, **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}


def environment(hardware: dict[str, Any]) -> dict[str, Any]:
    """What decides the last digits of a loss, besides settings and data."""
    names = ("lightning", "torch", "torchmetrics", "tensorboard", "jsonargparse", "tokenizers")
    versions = {name: version(name) for name in names}
    return {"python": platform.python_version(), "versions": versions, "hardware": hardware}


def manifest(seed: Any, hardware: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """What was run, beyond its config: code, versions, machine, data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_state(),
        "platform": platform.platform(),
        **environment(hardware),
        "seed": seed,
        "data": data,
    }


def write_manifest(run: Path, content: dict[str, Any], start: dict[str, Any] | None = None) -> None:
    """Write manifest.json; a resumed run keeps its first one and adds `start` (see `announce`)."""
    first = read_json(run / "manifest.json")
    before = first.get("resumed", [])
    if start is not None and first and isinstance(before, list):
        resumed = {**start, **{key: content[key] for key in ("started", "command", "git")}}
        content = {**first, "resumed": [*before, resumed]}
    write_json(run / "manifest.json", content)
