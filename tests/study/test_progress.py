"""Pieces of long work -> lines or a bar on standard error, and the pieces as they were."""

import io
import itertools
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest

from lmtemplate.study import progress
from lmtemplate.study.progress import pieces, progress_shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, as_json: bool) -> str:
    """What three pieces leave on standard error; they leave nothing on standard output."""
    out = io.StringIO()
    with redirect_stderr(stream), redirect_stdout(out), progress_shown(unless=as_json):
        assert [*pieces("abc", "attention maps")] == ["a", "b", "c"]
    assert out.getvalue() == ""
    return stream.getvalue()


def test_a_pipe_gets_a_line_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), as_json=False) == ""  # no ten seconds have passed
    monkeypatch.setattr(progress, "EVERY_SECONDS", -1.0)
    said = shown(io.StringIO(), as_json=False)
    assert said.splitlines() == [f"attention maps: {n} of 3" for n in (1, 2, 3)]


def test_a_line_comes_every_ten_seconds_of_the_verb_and_none_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = itertools.count(step=4)  # between two looks at the clock
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    with redirect_stderr(io.StringIO()) as said:
        with progress_shown(unless=False):
            list(pieces("abcdef", "maps"))
        list(pieces("abcdef", "later"))
    assert said.getvalue().splitlines() == ["maps: 3 of 6", "maps: 6 of 6"]


def test_a_terminal_has_one_line_that_is_wiped_out_at_the_end() -> None:
    said = shown(Terminal(), as_json=False)
    assert "attention maps:   0%" in said
    assert said.rsplit("\r", 2)[1].strip() == ""
    assert "\n" not in said


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_verb_that_prints_json_says_nothing_of_it(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", -1.0)
    assert shown(kind(), as_json=True) == ""


def test_a_name_moves_no_cursor_on_a_terminal() -> None:
    with redirect_stderr(Terminal()) as said, progress_shown(unless=False):
        list(pieces("abc", "runs/a\x1b[2J\x1b[1;1Hfake"))
    assert "\x1b[2J" not in said.getvalue()
    assert "runs/a\\x1b[2J" in said.getvalue()
