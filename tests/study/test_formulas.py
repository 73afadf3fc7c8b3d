"""Figures worked out by hand -> our verdict, averages and summary come to them."""

import math

import numpy as np
import pytest

from lmtemplate.record import Line, Record, from_lines
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.verdict import judge
from lmtemplate.study.show.plots import epoch_averages
from lmtemplate.study.show.summary import training_summary


def curve(losses: list[float], val_losses: dict[int, float] | None = None) -> Record:
    """A run of one epoch that logged these losses at every 5th step."""
    lines: list[Line] = []
    rates = np.cos(np.linspace(0, np.pi / 2, len(losses), endpoint=False)) ** 2
    for row, (loss, rate) in enumerate(zip(losses, rates, strict=True), start=1):
        passes = row / len(losses)
        values = {"train/loss": loss, "optim/lr": 1e-4 * rate, "data/epoch": passes}
        lines.append({"step": 5 * row, **values})
        if val_losses and row in val_losses:
            lines.append({"step": 5 * row, "val/loss": val_losses[row]})
    return from_lines(lines)


def reference_run(rows: int = 1125) -> list[float]:
    """From 4.19 to 0.92, smoothly."""
    progress = np.linspace(0, 1, rows)
    fall = (np.exp(-4 * progress) - math.exp(-4)) / (1 - math.exp(-4))
    losses: list[float] = (0.92 + (4.19 - 0.92) * fall).tolist()
    return losses


def findings(record: Record, facts: Facts | None = None) -> dict[str, bool]:
    """Name of each finding -> whether it is a fault."""
    return {found.name: found.fault for found in judge(record, facts or Facts()).findings}


def test_the_reference_run_is_healthy_and_summed_up_both_ways() -> None:
    record = curve(reference_run())
    assert not any(findings(record, Facts(vocab_size=66)).values())
    text = training_summary(record)
    assert "Total steps: 1,125 log points, 5,625 optimizer steps" in text
    assert "Loss reduction: 3.2700" in text
    assert "Reduction percentage: 78.0%" in text


def test_small_rises_in_a_falling_loss_are_no_fault() -> None:
    example = [3.0, 2.8, 2.9, 2.7, 2.8, 2.6]
    longer = [3.0 - 0.05 * (row - row % 2) - 0.2 * (row % 2) for row in range(60)]
    assert [round(loss, 2) for loss in longer[:4]] == example[:4]
    assert not any(findings(curve(longer)).values())


def test_one_lucky_last_batch_makes_no_gap() -> None:
    losses = reference_run(100)
    record = curve([*losses[:-1], losses[-1] - 0.6], {100: losses[-1] + 0.1})
    assert record.val_loss[-1] - record.train_loss[-1] > 0.5
    assert "gap" not in findings(record)


def test_a_pass_has_the_average_of_its_batches() -> None:
    batches = [2.996, 3.2, 3.1, 2.5, 2.8, 2.7]
    lines = [
        {"step": step, "train/loss": loss, "data/epoch": step / 3}
        for step, loss in enumerate(batches, start=1)
    ]
    means = [loss for _, loss, _ in epoch_averages(from_lines(lines))]
    assert means == pytest.approx([sum(batches[:3]) / 3, sum(batches[3:]) / 3])
    assert means == pytest.approx([3.05, 2.65], abs=0.05)
