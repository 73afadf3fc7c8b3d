"""Text -> a terminal, a pipe or a log: no text steers a terminal, no failure to print ends a run."""

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

DIRECTIONS = (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))  # and lines
# Characters that steer a terminal, or change the writing's direction -> their names in Python.
STEERING = {
    number: repr(chr(number))[1:-1]
    for numbers in (range(32), range(0x7F, 0xA0), DIRECTIONS)
    for number in numbers
    if chr(number) not in "\n\t"
}
CURSOR = re.compile(r"(\r|\x1b\[(?:\d*[A-DGJK]|[\d;]*[Hm]|\?25[hl]))")  # what bars need of these
BARS = ("tqdm.utils", "rich.console")  # modules that draw progress bars, and move the cursor


def discard(stream: int) -> None:
    """Send all that is still printed to this stream (1 or 2) nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _draws_a_bar() -> bool:
    """Whether the text that is being written comes from a module that draws progress bars."""
    import inspect

    frame = inspect.currentframe()
    while frame and frame.f_globals is globals():  # through streams of this module
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in BARS


class _Stream:
    """A stream that shows control characters by name if it is a terminal; a pipe gets exact text.

    One that forgives loses text where its reader leaves, its terminal closes, its disk is full.
    """

    def __init__(self, stream: TextIO, forgives: bool) -> None:
        self._stream, self._forgives = stream, forgives

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        shown = text.translate(STEERING) if self.isatty() else text
        if shown != text and _draws_a_bar():
            parts = enumerate(CURSOR.split(text))
            shown = "".join(part if n % 2 else part.translate(STEERING) for n, part in parts)
        self._guarded(self._stream.write, shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, act: Callable[..., object], *words: str) -> None:
        try:
            act(*words)
        except OSError:
            if not self._forgives:
                raise
            discard(self._stream.fileno())


def prepare_streams() -> None:
    """Let standard output and error print any text, and none that steers a terminal."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed at the start
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # a terminal of ASCII cannot show every text; a log is read while the run goes on
            stream.reconfigure(errors="replace", line_buffering=True)
        setattr(sys, name, _Stream(stream, forgives=False) if stream.isatty() else stream)


def can_print() -> bool:
    """Whether standard output still takes text; if not, all that is left to print goes nowhere."""
    try:
        print(flush=True)
    except OSError:
        discard(1)
        return False
    return True


@contextmanager
def forgiving() -> Iterator[None]:
    """Whatever is printed meanwhile may be lost; nothing else is."""
    out, error = _Stream(sys.stdout, forgives=True), _Stream(sys.stderr, forgives=True)
    try:
        with redirect_stdout(out), redirect_stderr(error):
            yield
    finally:
        out.flush()
        error.flush()
