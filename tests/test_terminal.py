"""Readers that leave, full disks -> prints that are lost, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINTS = """
import sys
from lmtemplate.terminal import forgiving
with forgiving():
    for number in range(10_000):
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
    assert len(lines) == 10_001
    assert {"a line 0", "a line 9999", "more"} <= {*lines}
