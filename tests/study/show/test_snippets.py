"""A run's record -> what a user's script reads from inside the run directory, with json alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmtemplate.record import Writer, read_record
from lmtemplate.study.show.plots import plot
from lmtemplate.study.show.summary import training_summary

POINTS = [(5, 4.19, 1e-5), (10, 3.70, 1e-4), (15, 3.29, 1e-4), (20, 0.9, 5e-5), (25, 0.92, 1e-6)]
VALIDATIONS = {10: 3.9, 20: 1.4, 25: 1.45}


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """25 steps in a pass and two thirds, seen from inside the run directory."""
    writer = Writer(tmp_path, 0)
    writer.append(0, {"val/loss": 4.2})
    for step, loss, rate in POINTS:
        values = {"train/loss": loss, "optim/lr": rate, "data/epoch": step / 15}
        writer.append(step, values)
        if step in VALIDATIONS:
            writer.append(step, {"val/loss": VALIDATIONS[step]})
    writer.write_arrays()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def metrics() -> dict[str, Any]:
    with open("checkpoints/training_metrics.json") as file:
        content: dict[str, Any] = json.load(file)
    return content


@pytest.mark.slow
def test_the_checkpoints_folder_has_the_record_and_both_pictures(run: Path) -> None:
    plot(run)
    names = {path.name for path in Path("checkpoints").iterdir()}
    assert names >= {"training_metrics.json", "training_curve.png", "loss_by_epoch.png"}


def test_the_last_training_loss_is_the_last_value(metrics: dict[str, Any]) -> None:
    assert f"{metrics['train_loss'][-1]:.4f}" == "0.9200"


def test_the_best_validation_is_the_least_that_is_not_null(metrics: dict[str, Any]) -> None:
    there = [loss for loss in metrics["val_loss"] if loss is not None]
    assert f"{min(there):.4f}" == "1.4000"


def test_losses_of_epoch_0_can_be_picked_and_averaged(metrics: dict[str, Any]) -> None:
    first = [metrics["train_loss"][i] for i, epoch in enumerate(metrics["epochs"]) if epoch == 0]
    assert f"{sum(first) / len(first):.4f}" == f"{(4.19 + 3.70 + 3.29) / 3:.4f}"


def test_the_rate_has_a_first_and_a_last_value(metrics: dict[str, Any]) -> None:
    assert (metrics["learning_rate"][0], metrics["learning_rate"][-1]) == (1e-5, 1e-6)


def test_the_gap_is_the_last_validation_less_the_last_training_loss(
    metrics: dict[str, Any],
) -> None:
    there = [loss for loss in metrics["val_loss"] if loss is not None]
    assert there[-1] - metrics["train_loss"][-1] == pytest.approx(0.53)


def test_the_loss_decreases_by_so_much_per_log_point(metrics: dict[str, Any]) -> None:
    losses = metrics["train_loss"]
    assert f"{(losses[0] - losses[-1]) / len(losses):.6f}" == f"{3.27 / 5:.6f}"


def printed(metrics: dict[str, Any]) -> Iterator[str]:
    """The quick analysis, line by line."""
    losses, steps = metrics["train_loss"], metrics["steps"]
    yield f"Total steps: {len(steps)}"
    yield f"Initial loss: {losses[0]:.4f}"
    yield f"Final loss: {losses[-1]:.4f}"
    yield f"Loss reduction: {losses[0] - losses[-1]:.4f}"
    yield f"Reduction percentage: {(1 - losses[-1] / losses[0]) * 100:.1f}%"
    rates = [rate for rate in metrics["learning_rate"] if rate is not None]
    yield f"Initial: {rates[0]:.6f}"
    yield f"Final: {rates[-1]:.6f}"
    yield f"Decay factor: {rates[-1] / rates[0]:.6f}"
    lowest = losses.index(min(losses))
    yield f"Lowest training loss: {losses[lowest]:.4f} at step {steps[lowest]}"


def test_a_quick_analysis_finds_what_our_summary_says(run: Path, metrics: dict[str, Any]) -> None:
    said = [line.strip() for line in training_summary(read_record(run)).splitlines()]
    for line in printed(metrics):
        assert any(ours.startswith(line) for ours in said), line
