"""A run's checkpoint and a split -> the loss that training had measured."""

from pathlib import Path

import pytest

from tests.conftest import Command
from tests.runs import train


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "run", corpus, "--model.optimizer.lr=0.01")


def loss_in(out: str, split: str) -> float:
    """The figure in the line that names it."""
    return float(next(line.split()[1] for line in out.splitlines() if f"{split}/loss" in line))


def test_another_batch_size_gives_the_same_loss(run: Path, command: Command) -> None:
    outs = [command("validate", run, f"--data.batch_size={size}").out for size in (1, 7)]
    assert loss_in(outs[0], "val") == pytest.approx(loss_in(outs[1], "val"), abs=1e-5)


def test_a_split_that_was_not_prepared_is_named(run: Path, command: Command) -> None:
    refused = command("test", run)
    assert refused.code == 8
    assert "has no test split" in refused.error
