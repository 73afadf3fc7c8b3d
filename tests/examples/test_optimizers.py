"""Optimizers and schedules from elsewhere: trained, killed, resumed to the bit, changed."""

from pathlib import Path
from typing import Any

import pytest

from tests.examples.conftest import Train, copy_killed_after_8
from tests.runs import curve, equal, load

pytestmark = pytest.mark.slow


def weights_and_moments(run: Path) -> dict[str, Any]:
    end = load(run, 12)
    return {key: end[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}


SHORT = {  # flags that fit a schedule of torch to 12 steps
    "one_cycle": ["--model.schedule.total_steps=12"],
    "restarts": ["--model.schedule.T_0=5"],
    "plateau": ["--model.schedule.patience=0", "--model.optimizer.lr=10"],
}


@pytest.mark.parametrize(
    "example", ["schedule_free", "rmsprop", "prodigy", "one_cycle", "restarts", "plateau"]
)
def test_a_resumed_run_ends_like_one_that_was_never_killed(
    train: Train, tmp_path: Path, example: str
) -> None:
    flags = SHORT.get(example, [])
    train(tmp_path / "whole", example, *flags)
    copy = copy_killed_after_8(tmp_path / "whole", tmp_path / "killed")
    train(copy, example, *flags, "--resume=must")
    assert equal(weights_and_moments(copy), weights_and_moments(tmp_path / "whole"))


@pytest.mark.parametrize("example", ["rmsprop", "schedule_free", "prodigy"])
def test_a_learning_rate_that_is_changed_at_a_resume_wins(
    train: Train, tmp_path: Path, example: str
) -> None:
    constant = ["--model.schedule=lmtemplate.schedules.Constant"]
    train(tmp_path / "whole", example, *constant)
    copy = copy_killed_after_8(tmp_path / "whole", tmp_path / "killed")
    flags = [*constant, "--model.optimizer.lr=0.125", "--resume=must"]
    train(copy, example, *flags)
    (group,) = load(copy, 12)["optimizer_states"][0]["param_groups"]
    assert group["lr"] == 0.125
    before = load(tmp_path / "whole", 12)["state_dict"]
    assert not equal(load(copy, 12)["state_dict"], before)


def test_one_cycle_rises_to_its_peak_and_falls_far_below_the_start(
    train: Train, tmp_path: Path
) -> None:
    train(tmp_path / "run", "one_cycle", "--trainer.log_every_n_steps=1", *SHORT["one_cycle"])
    rates = [rate for _, rate in curve(tmp_path / "run", "optim/lr")]
    assert rates[0] == pytest.approx(0.01 / 25, rel=1e-3)  # torch's div_factor
    assert max(rates) == pytest.approx(0.01, rel=0.05)
    assert rates[-1] == pytest.approx(0.01 / 25 / 1e4, rel=0.05)  # and final_div_factor


def test_a_plateau_halves_the_rate_where_validation_gets_no_better(
    train: Train, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(run, "plateau", *SHORT["plateau"], "--trainer.max_steps=24", "--early_stopping=null")
    losses = [loss for step, loss in curve(run, "val/loss") if step]
    best, rate, expected = float("inf"), 10.0, []
    for loss in losses:
        rate = rate if loss < best * (1 - 1e-4) else rate / 2  # torch's threshold
        best = min(best, loss)
        expected.append(rate)
    rates = dict(curve(run, "optim/lr"))
    after = [rates[step + 2] for step in (4, 8, 12, 16, 20)]
    assert after == pytest.approx(expected[:-1])
    assert after[-1] < 10  # else this shows nothing
