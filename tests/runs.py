"""A tiny run to look at: train it, read its curves and checkpoints, compare it with another."""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmtemplate.checkpoint import files
from tests.conftest import Result
from tests.conftest import train as train

CLOCKS = ("Throughput", "RunEnd")  # callbacks whose state tells the time


def events(run: Path) -> EventAccumulator:
    """All that TensorBoard would show of a run."""
    board = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    board.Reload()
    return board


def curve(run: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of one curve, in the order in which TensorBoard draws it."""
    return [(event.step, event.value) for event in events(run).Scalars(tag)]


def steps(run: Path, tag: str) -> list[int]:
    return [step for step, _ in curve(run, tag)]


def load(run: Path, step: int) -> dict[str, Any]:
    """A run's checkpoint, as anyone's torch reads it."""
    path = run / "checkpoints" / f"step-{step:09d}.ckpt"
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below a folder; empty if there is no folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def equal(one: Any, other: Any) -> bool:
    """Whether two nests of tensors and plain types are the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def end_of(run: Path, step: int) -> dict[str, Any]:
    """All that a run comes to: the last checkpoint, the record, the best, less its clocks."""
    end = load(run, step)
    end.pop("loops")  # Lightning's own counts, which a resume sets anew
    for setting in ("run_dir", "checkpoint"):  # where, and how often
        end["config"].pop(setting)
    for name in CLOCKS:
        end["callbacks"].pop(name)
    for name in ("training_metrics.json", "best.json"):
        end[name] = (run / "checkpoints" / name).read_text()
    return end


def different(one: Path, other: Path, step: int) -> list[str]:
    """What is not equal, to the last bit, at the end of two runs."""
    ends = [end_of(run, step) for run in (one, other)]
    keys = sorted({*ends[0], *ends[1]})
    return [key for key in keys if not equal(ends[0].get(key), ends[1].get(key))]


def is_finite(content: Any) -> bool:
    """Whether all tensors and numbers of a nest are."""
    if isinstance(content, torch.Tensor):
        return bool(content.isfinite().all())
    if isinstance(content, float):
        return math.isfinite(content)
    values = content.values() if isinstance(content, dict) else content
    return not isinstance(content, dict | list | tuple) or all(map(is_finite, values))


def check_line(answer: Result, *codes: int) -> str:
    """The message, if the answer was one of these exit codes and, unless that is 0, one line."""
    assert answer.code in codes, answer
    if answer.code:
        assert len(answer.error.strip().splitlines()) == 1
        assert len(answer.error) < 700
    assert "Traceback" not in answer.error
    return answer.error


def state(step: int = 1, **more: Any) -> dict[str, Any]:
    """What the smallest checkpoint holds."""
    return {"state_dict": {"net.a": torch.arange(6.0).view(2, 3)}, "global_step": step, **more}


def save(run: Path, *steps: int) -> None:
    for step in steps:
        files.write(state(step), run / "checkpoints" / files.file_name(step))


def flip_bit(path: Path, place: float = 0.5) -> None:
    """Turn one bit at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
