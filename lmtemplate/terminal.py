"""Text -> a terminal, a pipe or a log; no failure to print ends a run."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO


def discard(stream: int) -> None:
    """Send all that is still printed to this stream (1 or 2) nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def prepare_streams() -> None:
    """Replace streams that were closed at the start; let the others print any text."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of ASCII cannot show every text


def can_print() -> bool:
    """Whether standard output still takes text; if not, all that is left to print goes nowhere."""
    try:
        print(flush=True)
    except OSError:
        discard(1)
        return False
    return True


class _Forgiving:
    """A stream whose reader may leave, whose terminal may be closed, whose disk may be full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream.fileno())


@contextmanager
def forgiving() -> Iterator[None]:
    """Whatever is printed meanwhile may be lost; nothing else is."""
    out, error = _Forgiving(sys.stdout), _Forgiving(sys.stderr)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            yield
    finally:
        out.flush()
        error.flush()
