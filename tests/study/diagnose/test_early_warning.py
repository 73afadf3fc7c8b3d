"""What is said while a run goes on, and what is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.early_warning import WINDOW, early_fault
from lmtemplate.study.diagnose.finding import Facts, Finding
from tests.conftest import Command
from tests.study.records import FACTS, START, name, power_law

FLAGS = ["--checkpoint=null", "--samples=null", "--model.schedule.warmup_steps=10"]


def first(loss: Floats, facts: Facts = FACTS) -> tuple[int, str] | None:
    """The row after which something is said, and what."""
    steps = 5 * np.arange(1, len(loss) + 1)
    for rows in range(1, len(loss) + 1):
        finding = early_fault(steps[:rows], loss[:rows], START, facts)
        if finding is not None:
            return rows, finding.name
    return None


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_of_a_healthy_run(noise: float, seed: int) -> None:
    assert first(power_law(300, noise=noise, seed=seed) - noise) is None


def test_one_row_above_the_start_is_not_enough() -> None:
    loss = power_law()
    loss[0] = START + 1
    assert first(loss) is None


def test_a_jump_that_stays_is_said_after_a_while() -> None:
    loss = power_law()
    loss[50:] += 1.0
    found = first(loss)
    assert found is not None
    assert found[1] == "spike_not_recovered"
    assert 65 <= found[0] <= 75


def test_a_spike_that_comes_back_is_not_said() -> None:
    loss = power_law()
    loss[50:60] += 1.0
    assert first(loss) is None


def test_a_loss_that_does_not_move_is_said_once_it_should_have() -> None:
    assert first(np.full(100, START)) == (40, "learning_rate_too_low")
    late = replace(FACTS, warmup_steps=200)
    assert first(np.full(100, START), late) == (80, "learning_rate_too_low")


def test_without_a_known_warmup_nobody_is_stuck() -> None:
    assert first(np.full(100, START), Facts()) is None


def test_no_rows_tell_nothing() -> None:
    assert early_fault(np.array([], dtype=np.int64), np.array([]), START, FACTS) is None


def test_only_the_last_rows_are_looked_at() -> None:
    def said(steps: np.ndarray, loss: Floats) -> Finding | None:
        return early_fault(steps, loss, START, FACTS)

    steps, loss = 5 * np.arange(1, 301), power_law(300)
    loss[280:] += 1.0
    whole, part = said(steps, loss), said(steps[-WINDOW:], loss[-WINDOW:])
    assert name(whole) == "spike_not_recovered"
    assert whole == part


@pytest.mark.slow
def test_a_rate_far_too_high_is_told_once_within_a_tenth_of_the_run(
    fit: Command, tmp_path: Path
) -> None:
    flags = ["--model.optimizer=AdamW", "--model.optimizer.lr=10", "--trainer.max_steps=600"]
    out = fit(tmp_path / "run", *FLAGS, *flags, "--trainer.val_check_interval=60").out
    assert out.count("looks bad, learning rate too high") == 1
    assert "Try: stop, and lower the learning rate" in out
    assert out.index("looks bad") < out.index("step 60/600")  # the first validation


@pytest.mark.slow
def test_a_healthy_run_trains_without_a_warning(fit: Command, tmp_path: Path) -> None:
    flags = ["--trainer.max_steps=200", "--model.optimizer.lr=0.003"]
    assert "looks bad" not in fit(tmp_path / "run", *FLAGS, *flags).out
