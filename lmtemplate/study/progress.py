"""The pieces of long work -> on standard error, what is being computed and how far it is."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from typing import TypeVar

from tqdm import tqdm

from lmtemplate.terminal import STEERING

EVERY_SECONDS = 10.0  # without a terminal: until the first line, and between lines
_next_line: ContextVar[float] = ContextVar("next_line", default=inf)  # inf: nothing is shown

T = TypeVar("T")


@contextmanager
def progress_shown(unless: bool) -> Iterator[None]:
    """What `pieces` goes through meanwhile is shown, unless the verb prints JSON alone."""
    before = _next_line.set(inf if unless else time.monotonic() + EVERY_SECONDS)
    try:
        yield
    finally:
        _next_line.reset(before)


def pieces(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, one by one: a bar on a terminal, gone at the end; elsewhere a line at times."""
    on_terminal = sys.stderr.isatty()
    hidden = not on_terminal or _next_line.get() == inf
    name = what.translate(STEERING)  # a bar may move the cursor, and the name of a folder may not
    for number, item in enumerate(tqdm(items, name, leave=False, disable=hidden), start=1):
        if not on_terminal and time.monotonic() > _next_line.get():
            print(f"{what}: {number:,} of {len(items):,}", file=sys.stderr, flush=True)
            _next_line.set(time.monotonic() + EVERY_SECONDS)
        yield item
