"""A run directory's paths, its lock and its plain files: manifest, summary, config."""

import contextlib
import errno
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from lmtemplate.errors import ConfigError, DiskError, LockedError

LOCK = ".lock"
MOST_SETTINGS = 100_000  # in a file of settings

PACKAGES = (
    "lightning",
    "torch",
    "torchmetrics",
    "tensorboard",
    "jsonargparse",
    "tokenizers",
    "numpy",
)


def check_name(name: str) -> Path:
    """Raises ConfigError for a name that cannot be one."""
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


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints and its record."""
    return run / "checkpoints"


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    if os.name == "nt":  # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content at once. Raises DiskError."""
    temporary = path.parent / f".{path.name}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # it could be a link that leads anywhere
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
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
    """Strict JSON: NaN and infinity are written as YAML spells them, as ".inf"."""
    write_text(path, json.dumps(without_nan(content), indent=indent, allow_nan=False) + "\n")


def without_nan(content: Any) -> Any:
    """The same nest with text for every float that JSON has no number for."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return ".nan" if math.isnan(content) else f"{'-' * (content < 0)}.inf"
    return content


def read_json(path: Path) -> dict[str, Any] | None:
    """The file's content; None if there is no such file or it is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def parse_yaml(text: str) -> Any:
    """Raises yaml.YAMLError, also where anchors make a few lines into more than anyone can read."""
    try:
        content = yaml.safe_load(text)
    except (ValueError, RecursionError) as error:  # a date that is none; [[[[...
        raise yaml.YAMLError(str(error)[:100]) from error
    waiting, seen = [content], 0
    while waiting and seen < MOST_SETTINGS:
        item, seen = waiting.pop(), seen + 1
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item
    if waiting:
        raise yaml.YAMLError(f"anchors repeat its settings more than {MOST_SETTINGS:,} times")
    return content


def _whose(path: Path) -> str:
    """ "(/a/b: owner root, mode 0555)" of the nearest existing folder; "" where that is unknown."""
    try:
        there = next(folder for folder in path.absolute().parents if folder.exists())
        return f" ({there}: owner {there.owner()}, mode {there.stat().st_mode & 0o7777:04o})"
    except (OSError, KeyError, NotImplementedError):  # KeyError: an owner without a name
        return ""


class Lock:
    """Keeps a folder to one process. The system frees it when that process dies, however.

    The library closes its file in forked processes, so a data worker never keeps the lock.

    Args:
        folder: the run directory, or another folder that nobody else may write to meanwhile.
        path: the lock's file; FOLDER/.lock if not given.
        flag: names another folder, on the command line.
    """

    def __init__(self, folder: Path, path: Path | None = None, flag: str = "--run_dir") -> None:
        self.folder = folder
        self.path = path or folder / LOCK
        self.flag = flag
        self._made_folder = False
        self._lock = FileLock(self.path, timeout=0.2, fallback_to_soft=False)

    def acquire(self) -> None:
        """Raises LockedError, with who has it, DiskError where there can be no lock file."""
        if self._lock.is_locked:
            return
        try:
            self._made_folder = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self._holder()
            self._lock.acquire()
        except Timeout as error:
            raise LockedError(
                f"{self.folder} is in use by {self._holder() or 'another process'}; wait for it, "
                f"or name another directory with {self.flag}"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS):
                print(f"{self.folder} is not locked: its file system has no locks", flush=True)
                return
            raise DiskError(
                f"cannot write {self.path.parent}: {error.strerror}{_whose(self.path)}; name "
                f"another folder with {self.flag}"
            ) from error
        if before:
            print(f"taking over {self.folder} from {before}, which has died")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # on a full disk, only the name of the holder is lost
            self.path.write_text(f"pid {os.getpid()} on host {platform.node()} since {now}")

    def _holder(self) -> str:
        if self.path.is_symlink():
            return ""  # which the library refuses to open
        with contextlib.suppress(OSError, ValueError):
            return self.path.read_text(encoding="utf-8")[:200]
        return ""

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let the next process in; a folder that was made for the lock alone goes with it."""
        if not self._lock.is_locked:
            return
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            self.path.unlink()
            if self._made_folder:
                self.path.parent.rmdir()
        self._lock.release()


def is_used(run: Path) -> bool:
    """Whether there is more in the directory than its lock."""
    return run.is_dir() and any(path.name != LOCK for path in run.iterdir())


def command(*words: str) -> list[str]:
    """This program as another process, which imports from no folder that this one does not."""
    unsafe = os.getcwd() in sys.path  # where `python -m` would look first
    return [sys.executable, *([] if unsafe else ["-P"]), "-m", "lmtemplate", *words]


def _or_none(ask: Callable[[], str]) -> str | None:
    try:
        return ask()
    except (OSError, subprocess.SubprocessError, PackageNotFoundError):
        return None


def git_state() -> dict[str, Any]:
    """Commit of the working directory, and whether it had changes; nulls outside a repository."""

    def git(*words: str) -> str | None:
        return _or_none(
            lambda: subprocess.run(
                ["git", *words], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
        )

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def manifest(seed: Any, hardware: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """What was run, beyond its config: code, versions, machine, data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _or_none(lambda name=name: version(name)) for name in PACKAGES},  # type: ignore[misc]
        "hardware": hardware,
        "seed": seed,
        "data": data,
    }


def write_manifest(run: Path, content: dict[str, Any], start: dict[str, Any] | None = None) -> None:
    """Write manifest.json; a resumed run keeps its first one and adds where it went on, and with
    what.

    Args:
        run: the run directory.
        content: what `manifest` returns.
        start: for a resumed run, {"step": ..., "changed": {key: [before, now]}}.
    """
    path = run / "manifest.json"
    first = read_json(path)
    if start is not None and first is not None:
        resumed = {**start, "started": content["started"], "git": content["git"]}
        content = {**first, "resumed": [*first.get("resumed", []), resumed]}
    write_json(path, content)
