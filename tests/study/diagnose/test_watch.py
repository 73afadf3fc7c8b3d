"""A record that goes wrong -> one line while there is time; a healthy one -> none."""

from pathlib import Path

import pytest

from tests.conftest import Command

FLAGS = [
    *("--trainer.max_steps=200", "--trainer.val_check_interval=100"),
    *("--checkpoint=null", "--samples=null"),
]


@pytest.mark.parametrize(
    "optimizer",
    [
        ["--model.optimizer=AdamW", "--model.optimizer.lr=10"],
        ["--model.optimizer=MuonAdamW", "--model.optimizer.lr=20", "--model.optimizer.adamw_lr=10"],
    ],
    ids=["adamw", "muon"],
)
def test_a_rate_far_too_high_is_told_within_a_tenth_of_the_run(
    fit: Command, tmp_path: Path, optimizer: list[str]
) -> None:
    flags = [*FLAGS, *optimizer, "--trainer.max_steps=600", "--trainer.val_check_interval=60"]
    out = fit(tmp_path / "run", *flags).out
    assert out.count("looks bad, learning rate too high") == 1
    # the first validation is at a tenth of the run
    assert out.index("looks bad") < out.index("step 60/600")


def test_nothing_is_said_of_a_healthy_run(fit: Command, tmp_path: Path) -> None:
    flags = [*FLAGS, "--model.optimizer.lr=0.003", "--model.schedule.warmup_steps=10"]
    assert "looks bad" not in fit(tmp_path / "run", *flags).out


def test_null_turns_it_off(fit: Command, tmp_path: Path) -> None:
    flags = [*FLAGS, "--model.optimizer.lr=10", "--watch=null"]
    assert "looks bad" not in fit(tmp_path / "run", *flags).out
