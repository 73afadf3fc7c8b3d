"""A user's mistake -> one line and an exit code. Every exit code of the program stands here."""

import os
import re
import sys
import traceback

BAD_PROGRAM = 70  # an error that nobody expected
BROKEN_PIPE = 141  # who read the output has left
INTERRUPTED = 130
LONGEST_LINE = 690  # characters, however long the names in a file are

# What torch puts before the message of a process that reads data: its whole traceback.
HANDED_ON = re.compile(r"(?s)Caught \w+ in DataLoader worker.*\n[\w.]+Error: ")

# File of a class that a config chose from a library -> the setting, with its place.
CHOSEN: dict[str, str] = {}

# Signal that ends a run -> exit code: 128 + its number; 85 asks a scheduler to start it again.
SIGNALS = {"SIGINT": INTERRUPTED, "SIGTERM": 143, "SIGHUP": 129, "SIGUSR1": 85}


class SignalError(Exception):
    """A signal has ended the run after a step, and after its checkpoint."""

    def __init__(self, name: str) -> None:
        super().__init__(f"stopped by {name}")
        self.name = name
        self.exit_code = SIGNALS[name]


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, what to do."""

    exit_code = 1

    def __str__(self) -> str:
        text = HANDED_ON.sub("", super().__str__().strip()).replace("\n", " ")
        # the middle is left out: the end is a command to type, and half of it could be another one
        return text if len(text) <= LONGEST_LINE else f"{text[:340]} [...] {text[-340:]}"


class ConfigError(UserError):
    """A setting, a flag or a config file is wrong."""

    exit_code = 2


class CheckpointError(UserError):
    """A checkpoint is missing, damaged, or belongs to another model or corpus."""

    exit_code = 3


class NumbersError(UserError):
    """A loss or a gradient is not finite."""

    exit_code = 4


class DiskError(UserError):
    """A file cannot be written."""

    exit_code = 5


class OutOfMemoryError(UserError):
    """The device has too little memory for the batch."""

    exit_code = 6


class LockedError(UserError):
    """Another process writes to the same run directory."""

    exit_code = 7


class DataError(UserError):
    """Text or shards are missing, damaged, or do not fit the model."""

    exit_code = 8


class LostProcessError(UserError):
    """Another process of the same run has died, or does not answer in time."""

    exit_code = 9


def amount(number: float) -> float:
    """The same count or time of a checkpoint. Raises ValueError if no run can have it."""
    if not 0 <= number < 2**53:
        raise ValueError(f"{number} is no amount")
    return number


def own_line(error: BaseException) -> str | None:
    """The line of the user's own code that an error comes from, as "file:line", if from any."""
    homes = (os.path.dirname(__file__), sys.base_prefix)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path, is_library = frame.filename, "site-packages" in frame.filename
        if path.endswith(".py") and not path.startswith(homes) and not is_library:  # .pyx: NumPy's
            return f"{os.path.relpath(path)}:{frame.lineno}"
    return None


def chosen_part(error: BaseException) -> str | None:
    """The setting whose class, chosen from a library, an error comes from, if from any."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename.startswith(os.path.dirname(__file__)):
            return None
        if frame.filename in CHOSEN:
            return CHOSEN[frame.filename]
        if os.path.join("", "torch", "optim", "") in frame.filename:  # behind our own recipes, too
            return "model.optimizer or model.schedule"
    return None
