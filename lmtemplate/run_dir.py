"""A run directory's paths, its lock and its plain files: manifest, summary, config."""

import contextlib
import errno
import functools
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lmtemplate.errors import ConfigError, DiskError, LockedError

LOCK = ".lock"
YAML_NUMBERS = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}  # JSON has none of these
# A file system that has no such call answers with one of these.
MISSING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
PACKAGES = ("lightning", "torch", "torchmetrics", "tensorboard", "jsonargparse", "tokenizers")


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints and its record."""
    return run / "checkpoints"


def refuse_link(folder: Path) -> None:
    """Raises ConfigError where a folder inside of a run's is a link, which could lead anywhere."""
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a link, and nothing is written through it; remove it")


@functools.cache
def say_once(text: str) -> None:
    """Print what is true of the whole process."""
    print(text, flush=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where its file system can."""
    if os.name == "nt":  # Windows cannot open folders
        return
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


def write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    """Strict JSON: NaN and infinity are written as YAML spells them. Raises DiskError."""
    plain = json.loads(json.dumps(content), parse_constant=YAML_NUMBERS.get)
    write_text(path, json.dumps(plain, indent=indent) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run holds; {} where it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


class Lock:
    """Keeps a folder to one process; the system frees it however that process dies.

    The library closes its file in forked processes, so a data worker never keeps the lock.
    Entering it raises LockedError, with who has it, and DiskError where there can be no lock file.
    `flag` names another folder on the command line.
    """

    def __init__(self, folder: Path, path: Path | None = None, flag: str = "--run_dir") -> None:
        self.folder = folder
        self.path = path or folder / LOCK
        self.flag = flag
        self._lock = FileLock(self.path, timeout=0.2, fallback_to_soft=False)

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            if not self.path.is_symlink():  # which the library refuses to open
                return self.path.read_text(encoding="utf-8")[:200]
        return ""

    def __enter__(self) -> None:
        parent, other = self.path.parent, f"name another folder with {self.flag}"
        try:
            self._made_folder = not parent.exists()
            parent.mkdir(parents=True, exist_ok=True)
            before = self._holder()
            self._lock.acquire()
        except Timeout as error:
            holder = self._holder() or "another process"
            raise LockedError(f"{self.folder} is in use by {holder}; wait, or {other}") from error
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            if isinstance(error, OSError) and error.errno in MISSING:
                print(f"{self.folder} is not locked: its file system has no locks", flush=True)
                return
            reason = getattr(error, "strerror", None) or error
            raise DiskError(f"cannot write {parent}: {reason}; {other}") from error
        if before:
            print(f"taking over {self.folder} from {before}, which has died")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # on a full disk, only the name of the holder is lost
            self.path.write_text(f"pid {os.getpid()} on host {platform.node()} since {now}")

    def __exit__(self, *_: object) -> None:
        if not self._lock.is_locked:
            return
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            self.path.unlink()
            if self._made_folder:  # for the lock alone, if it is empty
                self.path.parent.rmdir()
        self._lock.release()


def is_used(run: Path) -> bool:
    """Whether there is more in the directory than its lock."""
    return run.is_dir() and any(path.name != LOCK for path in run.iterdir())


def git_state(folder: Path = Path(__file__).parent) -> dict[str, Any]:
    """Commit of the code in a folder, and whether it had changes; nulls outside a repository.

    Not of the working directory: it may be a stranger's, whose git settings can name programs.
    """
    asked = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    options["cwd"] = folder
    try:
        commit, status = (subprocess.run(["git", *q], **options).stdout.strip() for q in asked)
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(status)}


def environment(hardware: dict[str, Any]) -> dict[str, Any]:
    """What decides the last digits of a loss, besides settings and data."""
    versions = {name: version(name) for name in PACKAGES}
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
        resumed = {**start, "started": content["started"], "git": content["git"]}
        content = {**first, "resumed": [*before, resumed]}
    write_json(run / "manifest.json", content)
