"""A tiny run to look at: train it, read its curves, its checkpoints and the bytes of its files."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmtemplate.__main__ import run as run_words
from tests.conftest import TINY


def train(run: Path, corpus: Path, *flags: object) -> Path:
    """`lmtemplate fit` of a tiny model, for fixtures that outlive one test. Returns the run."""
    words = ["fit", "--data.path", corpus, *TINY, "--run_dir", run, *flags]
    run_words([str(word) for word in words])
    return run


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
