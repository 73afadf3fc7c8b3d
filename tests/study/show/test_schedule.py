"""A schedule and a length -> a drawing that says what the rate will be."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, OneCycleLR, ReduceLROnPlateau

from lmtemplate.errors import ConfigError
from lmtemplate.schedules import Constant, WarmupCosine, WarmupLinear, WarmupStableDecay
from lmtemplate.study.show.schedule import drawing, drawing_of_torch, rates, schedule
from tests.conftest import TINY, Command


def test_the_rates_are_those_of_the_schedule() -> None:
    steps, values = rates(WarmupCosine(10, floor_ratio=0.1), 100, peak=0.02)
    assert steps.tolist() == list(range(1, 101))
    progress = (steps[10:] - 1 - 10) / 90
    expected = [0.002 * step for step in range(1, 11)]
    expected += list(0.02 * (0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2))
    np.testing.assert_allclose(values, expected)


def test_a_long_run_is_drawn_from_few_points_with_both_ends() -> None:
    steps, values = rates(Constant(), 10**7, peak=1.0)
    assert (steps[0], steps[-1]) == (1, 10**7)
    assert len(steps) == len(values) <= 2000


def test_warmup_peak_and_floor_are_named() -> None:
    text = drawing(WarmupStableDecay(20, decay_ratio=0.5, floor_ratio=0.1), 100, {"muon": 0.02})
    assert "WarmupStableDecay over 100 steps" in text
    assert "warmup   steps 1 to 20, 20.0% of the run, from 1/20 of the peak" in text
    assert "peak     0.02 at steps 20 to 61" in text
    assert "floor    0.002; the last update has 0.00245 at step 100, 12.25% of the peak" in text


def test_a_schedule_without_warmup_says_so() -> None:
    assert "warmup   none: step 1 has the full rate" in drawing(WarmupLinear(0), 10, {"a": 1.0})


def test_a_warmup_of_most_of_the_run_is_remarked() -> None:
    assert "more than half of it is warm-up" in drawing(WarmupLinear(6), 10, {"a": 1.0})


def test_the_rates_of_all_groups_are_told() -> None:
    text = drawing(Constant(), 10, {"muon": 0.02, "decay": 0.01, "no_decay": 0.005})
    assert "(other groups: decay 0.01, no_decay 0.005)" in text


@pytest.mark.parametrize("schedule", [Constant(), WarmupCosine(2), WarmupStableDecay(0)])
def test_no_line_is_wider_than_a_terminal(schedule: Constant) -> None:
    assert max(map(len, drawing(schedule, 620, {"muon": 0.02}).splitlines())) <= 100


def drawn(kind: Any, steps: int, **settings: Any) -> str:
    groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in (0.02, 0.01)]
    return drawing_of_torch(partial(kind, **settings), torch.optim.AdamW(groups), steps)


def test_a_schedule_of_torch_is_drawn_by_its_rates() -> None:
    text = drawn(CosineAnnealingWarmRestarts, 130, T_0=100)
    assert "CosineAnnealingWarmRestarts over 130 steps" in text
    assert "peak     0.02, first at step 1 (other groups: 1 0.01)" in text
    share = (1 + np.cos(np.pi * 29 / 100)) / 2  # 29 steps after the restart
    assert f"end      {0.02 * share:.3g} at step 130, {share:.2%} of the peak" in text
    assert "peak     0.05, first at step 300" in drawn(
        OneCycleLR, 1000, max_lr=0.05, total_steps=1000
    )
    assert max(map(len, text.splitlines())) <= 100


def test_a_schedule_that_waits_for_validations_is_not_drawn() -> None:
    (line,) = drawn(ReduceLROnPlateau, 100, patience=1).splitlines()
    assert line.startswith("ReduceLROnPlateau: 0.02 until validations stop falling")


def test_a_schedule_of_torch_that_ends_before_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.schedule, after 51 steps: .* 50"):
        drawn(OneCycleLR, 100, max_lr=0.05, total_steps=50)


def test_its_help_fits_on_a_screen_and_says_where_the_other_flags_are(command: Command) -> None:
    said = command("schedule", "--help").out
    assert "lmtemplate schedule --config FILE" in said
    assert "lmtemplate fit --help" in said
    assert len(said.splitlines()) < 24


@pytest.mark.parametrize("limit", ["max_tokens", "max_flops"])
def test_a_length_that_no_run_has_is_named(corpus: Path, limit: str) -> None:
    words = [f"--data.path={corpus}", *TINY, "--trainer.max_steps=-1", f"--{limit}=1e308"]
    with pytest.raises(ConfigError, match=rf"{limit} 1e\+308 comes to .* steps"):
        schedule(words, [])


@pytest.mark.slow
def test_the_verb_draws_a_config_s_run_without_making_it(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    flags = ["--model.optimizer.lr=0.01", "--run_dir", tmp_path / "run"]
    result = command("schedule", "--data.path", corpus, *TINY, *flags)
    assert result.code == 0, result.error
    assert "WarmupCosine over 12 steps" in result.out
    assert re.search(r"peak +0\.01 at steps 2 to 3", result.out)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "named"),
    [
        ("--model.schedule.warmup_steps=20", "warmup_steps=20 is longer than the run of 12 steps"),
        ("--model.schedule.floor_ratio=2", "floor_ratio=2"),
        ("--trainer.max_steps=0", "max_steps=0 has to be above 0"),
        ("--model.optimizer.lr=0", "nothing would be learned"),
        (
            "--model.schedule=torch.optim.lr_scheduler.ExponentialLR --model.schedule.gamma=0.9 "
            "--trainer.max_steps=1000000000",
            "comes to 1e+09 steps; give the run a smaller length",
        ),
    ],
)
def test_nonsense_is_refused(command: Command, corpus: Path, flag: str, named: str) -> None:
    tiny = [word for word in TINY if "schedule" not in word or "torch" not in flag]
    result = command("schedule", "--data.path", corpus, *tiny, *flag.split())
    assert result.code == 2
    assert named in result.error
