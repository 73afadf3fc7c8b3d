"""Readers that leave, full disks, texts that steer a terminal -> lost or shown, and no harm."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from lmtemplate.terminal import forgiving, prepare_streams

PRINTS = """
import sys
from lmtemplate.terminal import forgiving
with forgiving():
    for number in range(3000):
        print("a line", number)
    print("more", file=sys.stderr, flush=True)
open(sys.argv[1], "w").write("done")
"""


def ending(told: int, done: Path) -> int:
    words = [sys.executable, "-c", PRINTS, str(done)]
    return subprocess.run(words, stdout=told, stderr=told, check=False).returncode


def test_a_reader_that_leaves_ends_nothing(tmp_path: Path) -> None:
    ear, mouth = os.pipe()
    os.close(ear)
    assert ending(mouth, tmp_path / "done") == 0
    os.close(mouth)
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert ending(full, tmp_path / "done") == 0
    os.close(full)
    assert (tmp_path / "done").read_text() == "done"


def test_what_is_printed_is_shown(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        assert ending(file.fileno(), tmp_path / "done") == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3001
    assert {"a line 0", "a line 2999", "more"} <= {*lines}


EVIL = "\x1b]0;title\x07 \x1b]52;c;cm0=\x07 \r\x08\x7f \x9b31m \u202e\u2066 \u200f\u061c\u2028"
SHOWN = r"\x1b]0;title\x07 \x1b]52;c;cm0=\x07 \r\x08\x7f \x9b31m \u202e\u2066 \u200f\u061c\u2028"
PLAIN = "größer\t漢字 🙂\nשלום\n"  # is the same everywhere


class Terminal(io.StringIO):
    """What a terminal is sent."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "shown"), [(Terminal, SHOWN), (io.StringIO, EVIL)])
def test_a_terminal_shows_control_characters_by_name_and_a_pipe_gets_them(
    kind: type[io.StringIO], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", kind())
    with forgiving(), forgiving():
        print(EVIL, PLAIN, sep="", end="")
        sys.stdout.writelines([EVIL])
    assert sys.stdout.getvalue() == f"{shown}{PLAIN}{shown}"  # type: ignore[attr-defined]


def test_a_bar_moves_the_cursor_but_what_is_printed_above_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    with forgiving(), tqdm(total=2, file=sys.stdout, position=1, mininterval=0) as bar:
        bar.set_postfix_str(EVIL)  # as a metric's name
        bar.update()
        bar.write(EVIL)
    sent = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert all(text in sent for text in ("\r", "\x1b[A", "50%"))
    assert f"{SHOWN}\n" in sent
    assert "\x1b]" not in sent


def on_a_terminal(*words: str) -> str:
    """All that a process sends to the terminal that is its standard output and error."""
    pty = pytest.importorskip("pty")
    ours, its = pty.openpty()
    try:
        subprocess.run([sys.executable, *words], stdout=its, stderr=its, check=False)
        return os.read(ours, 100_000).decode()
    finally:
        os.close(its)
        os.close(ours)


SAYS = """
import logging, sys, warnings
from lmtemplate import terminal
terminal.prepare_streams()
evil = sys.argv[1]
print(evil)
warnings.warn(evil)
logging.getLogger().error(evil)
raise KeyError(ValueError(evil))
"""


def test_no_way_of_a_process_to_say_something_steers_its_terminal() -> None:
    sent = on_a_terminal("-c", SAYS, EVIL)
    assert sent.count(SHOWN) >= 2
    assert set(map(ord, sent.replace("\r\n", "\n"))).isdisjoint({*range(10), *range(11, 32), 0x9B})


def test_the_program_s_own_error_line_steers_no_terminal() -> None:
    sent = on_a_terminal("-m", "lmtemplate", "prepare", "--for_config", f"{EVIL}.yaml")
    assert f"{SHOWN}.yaml" in sent
    assert "\x1b" not in sent


def test_what_a_run_prints_to_a_file_is_there_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "log", "w", encoding="ascii") as log:
        monkeypatch.setattr(sys, "stdout", log)
        prepare_streams()
        print("step 1, ü")
        assert (tmp_path / "log").read_text() == "step 1, ?\n"
