"""Losses at growing rates -> the rate where they fall, and where they explode."""

import json
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.errors import NumbersError
from lmtemplate.study.experiments.find_lr import describe_test, has_exploded, judge_rates, smooth
from tests.conftest import TINY, Command

RATES = np.geomspace(1e-5, 10, 121)


def curve(falls_at: float, rises_at: float) -> np.ndarray:
    """A loss that falls by 3 nats around one rate, and explodes around another."""
    fall = 3 / (1 + (falls_at / RATES) ** 2)
    return 8 - fall + 5 * (RATES / rises_at) ** 2


def test_smoothing_is_the_weighted_mean_of_all_losses_so_far() -> None:
    losses = np.array([8.0, 7.0, 9.0, 5.0])
    weights = 0.9 ** np.arange(4)[::-1]
    assert smooth(losses)[-1] == pytest.approx((weights * losses).sum() / weights.sum())


def test_the_suggestion_lies_between_the_steepest_fall_and_the_lowest_loss() -> None:
    test = judge_rates(RATES, curve(1e-3, 1.0), exploded=True)
    assert 3e-4 < test.steepest < 3e-2  # smoothing lags behind by about ten rates
    assert test.steepest < test.lowest < 1
    assert test.steepest <= test.suggestion <= test.lowest


def test_a_tenfold_smaller_rate_is_suggested_where_everything_happens_ten_times_earlier() -> None:
    one, other = (judge_rates(RATES, curve(a, b), True) for a, b in ((1e-3, 1.0), (1e-4, 0.1)))
    assert one.suggestion / other.suggestion == pytest.approx(10, rel=0.1)


def test_a_loss_that_is_never_finite_is_told() -> None:
    with pytest.raises(NumbersError, match="the first loss is not finite"):
        judge_rates(RATES, np.full(len(RATES), np.nan), exploded=True)


def test_a_loss_explodes_when_it_rises_by_several_times_its_fall() -> None:
    fallen = np.array([8.0, 7.0, 6.0])
    assert not has_exploded(np.append(fallen, 13.9))
    assert has_exploded(np.append(fallen, 14.1))
    assert has_exploded(np.append(fallen, np.nan))


def test_the_words_name_the_rate_from_which_on_the_drawn_loss_is_above_its_start() -> None:
    losses = curve(1e-3, 1.0)
    test = judge_rates(RATES, losses, exploded=False)
    means = smooth(losses)
    higher = RATES[(means > means[0]) & (test.lowest < RATES)]
    assert test.rises == pytest.approx(higher[0])
    told = describe_test(test, "lr")
    assert f"above its start from {higher[0]:.2g} on" in told
    assert "explodes" not in told
    falling = judge_rates(RATES, 8 - np.arange(121) / 100, exploded=False)
    assert "never above its start" in describe_test(falling, "lr")


def test_rates_are_tried_on_the_real_net_and_nothing_is_written(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--data.path", corpus, *TINY, "--run_dir", run, "--low=1e-4", "--high=1e3"]
    done = command("find-lr", *words, "--steps=40", "--json")
    test = json.loads(done.out[done.out.index("{") :])
    assert test["losses"][0] == pytest.approx(np.log(257), abs=0.5)  # bytes, and end of text
    assert 1e-3 < test["steepest"] < test["lowest"] < (test["diverged"] or 1e3)
    assert not run.exists()


def test_help_tells_what_a_flag_is_where_it_is_not_given(command: Command) -> None:
    shown = command("find-lr", "--help").out
    assert "first rate (default: 1e-05)" in shown
    assert "(default: None)" not in command("sweep", "--help").out


@pytest.mark.parametrize(
    "words",
    [["--low=0"], ["--low=1", "--high=0.1"], ["--steps=3"], ["--steps=99999999999999999999"]],
)
def test_rates_that_do_not_grow_are_one_line(command: Command, words: list[str]) -> None:
    result = command("find-lr", *words)
    assert result.code == 2
    assert result.error.startswith("find-lr needs 0 < --low < --high")


@pytest.mark.slow
def test_a_rate_of_0_is_refused(command: Command, corpus: Path) -> None:
    result = command(
        "find-lr", "--data.path", corpus, *TINY, "--steps=10", "--model.optimizer.lr=0"
    )
    assert (result.code, "nothing would be learned" in result.error) == (2, True)
