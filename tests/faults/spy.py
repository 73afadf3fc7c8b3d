"""Python's audit hook -> all that a hostile file has made happen; it should be nothing.

A name, a path or a source with CANARY in it belongs to an attacker.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CANARY = "canary"

# Starting programs, loading machine code, unpickling with Python's own pickle, using the network.
ALARMS = {
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn"),
    *("os.startfile", "pty.spawn", "subprocess.Popen", "webbrowser.open", "code.__new__"),
    *("ctypes.dlopen", "ctypes.call_function", "pickle.find_class", "builtins.input"),
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"),
    *("ftplib.connect", "smtplib.connect", "shutil.rmtree", "shutil.copyfile", "shutil.move"),
}
# typeshed_client, from which jsonargparse has types, asks Python where its modules are.
ASKS_PATH = ["-c", "import sys, json; print(json.dumps(sys.path))"]
# What changes the file system, and which of its arguments are paths.
CHANGES = {
    "os.chmod": (0,),
    "os.link": (1,),
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.symlink": (1,),
    "os.truncate": (0,),
}
ON_LINKS = ("os.link", "os.remove", "os.rename", "os.symlink")  # not on what a link points to


class Spy:
    """What happened while it was watching.

    Args:
        folder: where files may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.seen: list[str] = []

    def _is_outside(self, path: Any, follow: bool = True) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False  # a file that is open already
        name = os.fsdecode(path)
        folder, last = os.path.split(name)
        real = os.path.realpath(name if follow else folder)
        real = real if follow else os.path.join(real, last)
        inside = f"{real}{os.sep}".startswith((self.folder + os.sep, "/dev/"))
        return not (inside or "__pycache__" in real)

    def _is_ours_to_worry(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "subprocess.Popen" and list(arguments[1][1:]) == ASKS_PATH:
            return not os.environ.get("PYTHONSAFEPATH")  # else it may find modules in the folder
        if event in ALARMS:
            return True
        if event == "import":
            return CANARY in str(arguments[0])
        if event == "compile":
            return CANARY in str(arguments[0]) + str(arguments[1])
        if event == "exec":
            code = arguments[0]
            installed = code.co_filename.startswith(sys.prefix)  # matplotlib has such a yellow
            return not installed and CANARY in f"{code.co_filename}{code.co_names}{code.co_consts}"
        if event == "open":
            path, mode, flags = arguments
            changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            writes = bool(set(mode) & set("wax+")) if mode else bool(flags & changing)
            follows = not flags & getattr(os, "O_NOFOLLOW", 0)
            return writes and self._is_outside(path, follows)
        paths = [arguments[place] for place in CHANGES.get(event, ())]
        return any(self._is_outside(path, event not in ON_LINKS) for path in paths)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._is_ours_to_worry(event, arguments):
            self.seen.append(f"{event} {str(arguments)[:200]}")


_watching: list[Spy] = []
_installed: list[Any] = []
_looking = threading.local()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or getattr(_looking, "now", False):
        return  # what the spies themselves do is nobody's business
    _looking.now = True
    try:
        for spy in list(_watching):
            spy.see(event, arguments)
    finally:
        _looking.now = False


@contextmanager
def watching(folder: Path) -> Iterator[list[str]]:
    """The list of what happened, while it happens. A hook cannot be removed: it falls asleep."""
    if _hook not in _installed:
        sys.addaudithook(_hook)
        _installed.append(_hook)
    _watching.append(Spy(folder))
    try:
        yield _watching[-1].seen
    finally:
        _watching.pop()


def nothing_in(events: list[str]) -> bool:
    """Whether nothing happened but that git was asked for the commit, and malloc to keep memory."""
    sound = ("subprocess.Popen ('git'", "ctypes.dlopen (None,)")  # None: the program itself
    return [line for line in events if not line.startswith(sound)] == []


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Break off what would never end."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
