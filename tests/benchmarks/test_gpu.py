"""benchmarks/gpu.py without a GPU -> a table that claims nothing."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_session import NotRunError, Session


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path, nanogpt=None, data=None, dry=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which it would measure")
def test_without_a_gpu_every_row_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    gpu.main()
    rows = capsys.readouterr().out.strip().splitlines()[2:]
    assert len(rows) == len(gpu.ROWS)
    assert all(row.endswith("| not run: no CUDA device |") for row in rows)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (NotRunError("no --nanogpt"), "not run: no --nanogpt"),
        (ValueError("a log without steps"), "not run: ValueError: a log without steps"),
        (SystemExit("train.py failed"), "not run: SystemExit: train.py failed"),
    ],
)
def test_a_row_that_fails_says_why_and_ends_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch, fault: BaseException, told: str
) -> None:
    def fails(_: Session) -> str:
        raise fault

    monkeypatch.setitem(gpu.ROWS, "ceiling", (fails, "a row"))
    assert gpu.measure(session, "ceiling") == told


def test_a_speed_is_told_as_time_share_of_the_ceiling_memory_and_ratio(session: Session) -> None:
    session.found.update(flops=1e9, ceiling=8e14, nanogpt_124m=500_000.0)
    text = session.figure(rate=400_000.0, per_step=32_768, shown="loss 3\npeak 15100000000\n")
    assert text == "81.9 ms a step, 400,000 tokens/s, 50% of the ceiling, 15.1 GB, 0.80x nanoGPT"


def test_the_lab_note_is_written_only_with_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gpu.NOTES.read_text(encoding="utf-8")
    monkeypatch.setattr(gpu, "NOTES", tmp_path / "gpt2.yaml")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    gpu.NOTES.write_text(before, encoding="utf-8")
    gpu.write_notes({"gpt2_124m": "not run: out of time"})
    assert gpu.NOTES.read_text(encoding="utf-8") == before
    gpu.write_notes({"gpt2_124m": "51.0 ms a step"})
    after = gpu.NOTES.read_text(encoding="utf-8")
    assert re.search(r"^#   result    51.0 ms a step \(batch 32; NVIDIA H200, ", after, re.M)
    assert after.partition("run_dir:")[2] == before.partition("run_dir:")[2]
