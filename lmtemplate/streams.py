"""Standard output and standard error -> the same, but no print to them can end a run."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


class _Forgiving:
    """A stream whose reader may leave, whose terminal may be closed, whose disk may be full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self.has_failed = True
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self.has_failed = True


@contextmanager
def forgiving() -> Iterator[None]:
    """What is printed meanwhile may be lost; nothing else is."""
    out, error = _Forgiving(sys.stdout), _Forgiving(sys.stderr)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            yield
    finally:
        for stream in (out, error):
            stream.flush()
            if stream.has_failed:  # what is printed, and flushed at the end, goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
