"""An error that nobody expected -> one line, an exit code, and a file with its traceback."""

import contextlib
import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime

from lmtemplate import __version__, redact

LOG = "lmtemplate-crash.log"


def log_crash(error: Exception) -> tuple[str, str]:
    """Add the traceback, without secrets, to a file; returns what it comes to, and the file."""
    command = redact.words(sys.argv)
    trace = redact.text("".join(traceback.format_exception(error)), sys.argv)
    entry = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, lmtemplate {__version__}, {command}\n"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(os.path.dirname(__file__))]
    place = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}"
    message = redact.text(" ".join(f"{type(error).__name__}: {error}".split()), sys.argv)[:200]
    for find_folder in (os.getcwd, tempfile.gettempdir):
        # no link that lies here is followed: it could lead to any file of the user
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with contextlib.suppress(OSError):
            path = os.path.join(find_folder(), LOG)
            with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
                file.write(f"{entry}{trace}\n")
            return f"{message} ({place})", path
    return f"{message} ({place})", "no file: neither this folder nor the temporary one takes one"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the machine itself, had too little."""
    torch = sys.modules.get("torch")  # without it, nothing but Python can have run out of memory
    on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_device or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def explain(error: Exception, what: str) -> tuple[str, int]:
    """What a user can do about an error that nobody expected, and its exit code."""
    if is_out_of_memory(error):
        return "too little memory; lower data.batch_size, the model or the context", 6
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith(__package__):
        return f"the package {error.name} is missing; type: make install", 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}", 5
    return f"unexpected {what}: a fault of the program, or of a file it read", 70


def output_fails(error: Exception) -> bool:
    """Whether this is because nothing more can be printed."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def report(error: Exception) -> tuple[str, int]:
    """The line and the exit code."""
    if output_fails(error):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to flush goes nowhere
        return f"cannot write standard output: {getattr(error, 'strerror', None) or error}", 5
    what, path = log_crash(error)
    says, code = explain(error, what)
    return f"{says}; the traceback is in {path}", code
