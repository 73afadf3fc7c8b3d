"""Errors that nobody expected -> one line, an exit code, a traceback in a file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmtemplate.crash import LOG
from tests.test_main import run_main


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_named(tmp_path: Path, buffered: str) -> None:
    words = [sys.executable, "-m", "lmtemplate", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered, "PYTHONPATH": os.getcwd()}
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, env=environment, cwd=tmp_path, text=True
        )
    message = "error: cannot write standard output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (5, message)
    assert not any(tmp_path.iterdir())


def test_an_error_without_a_file_is_no_fault_of_a_sound_output(
    monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    assert run_main(monkeypatch, OSError(5, "Input/output error")) == 70


@pytest.fixture
def workplace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory for one command line that holds secrets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lmtemplate", "fit", "--x.api_key", "hush", "--n", "1"])
    return tmp_path


def test_a_fault_of_the_program_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    assert run_main(monkeypatch, KeyError("no\nsuch key for hush")) == 70
    (log,) = workplace.iterdir()
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: unexpected KeyError: 'no\\nsuch key for ***' (__main__.py:" in line
    assert line.endswith(f"the traceback is in {log}")
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert "'--x.api_key', '***', '--n', '1'" in text
    assert "hush" not in text


def test_a_second_fault_adds_to_the_file(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    for error in (KeyError("one"), ValueError("two")):
        run_main(monkeypatch, error)
    text = (workplace / LOG).read_text()
    assert text.index("KeyError: 'one'") < text.index("ValueError: two")


def test_the_file_goes_elsewhere_where_the_working_directory_takes_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    (workplace / LOG).symlink_to(workplace / "mine.txt")  # is not followed
    (workplace / "temporary").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(workplace / "temporary"))
    assert run_main(monkeypatch, KeyError("x")) == 70
    assert not (workplace / "mine.txt").exists()
    assert str(workplace / "temporary" / LOG) in capsys.readouterr().err
    (workplace / "temporary" / LOG).unlink()
    (workplace / "temporary").rmdir()
    assert run_main(monkeypatch, KeyError("x")) == 70
    assert "the traceback is in no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
    ids=["device", "machine", "Python"],
)
def test_too_little_memory_is_one_line_and_exit_6(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workplace: Path,
    error: Exception,
) -> None:
    assert run_main(monkeypatch, error) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert "too little memory; lower data.batch_size" in line
    assert LOG in line


def test_a_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    missing = ModuleNotFoundError("No module named 'plotly'", name="plotly")
    assert run_main(monkeypatch, missing) == 1
    assert "the package plotly is missing; type: make install" in capsys.readouterr().err


def test_a_file_that_the_system_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    assert run_main(monkeypatch, PermissionError(13, "Permission denied", "/a/b")) == 5
    assert "error: Permission denied: /a/b; the traceback is in" in capsys.readouterr().err


def test_without_a_working_directory_the_file_goes_to_the_temporary_one(
    monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    def gone() -> str:
        raise FileNotFoundError

    (workplace / "temporary").mkdir()
    monkeypatch.setattr(os, "getcwd", gone)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(workplace / "temporary"))
    assert run_main(monkeypatch, KeyError("x")) == 70
    assert (workplace / "temporary" / LOG).is_file()
