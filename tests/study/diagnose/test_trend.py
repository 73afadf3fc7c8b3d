"""Records -> levels and noise, beside their formulas."""

import math

import numpy as np
import pytest

from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.trend import (
    POINTS,
    merged,
    row_noise,
    running_median,
    spread,
    swings,
    trend_of,
)
from tests.study.records import START, power_law, record, trend


def test_a_running_median_is_the_median_of_what_is_around() -> None:
    values = np.random.default_rng(0).standard_normal(30)
    expected = [np.median(values[max(0, i - 2) : i + 3]) for i in range(30)]
    assert running_median(values, 5) == pytest.approx(expected)


def test_the_spread_of_normal_numbers_is_their_standard_deviation() -> None:
    values = 3.0 * np.random.default_rng(1).standard_normal(20_000)
    assert spread(values) == pytest.approx(3.0, rel=0.03)


def test_one_outlier_does_not_move_the_spread() -> None:
    values = np.random.default_rng(2).standard_normal(1000)
    far = np.append(values, 1e9)
    assert spread(far) == pytest.approx(spread(values), rel=0.01)


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_the_noise_of_rows_does_not_depend_on_their_trend(slope: float) -> None:
    noise = 0.2 * np.random.default_rng(3).standard_normal(20_000)
    assert row_noise(noise + slope * np.arange(20_000)) == pytest.approx(0.2, rel=0.03)


def test_two_rows_have_no_noise() -> None:
    assert row_noise(np.array([1.0, 2.0])) == 0.0


def test_a_swing_is_the_smaller_side_of_a_peak() -> None:
    assert swings(np.array([3.0, 3.5, 3.2, 2.0]), 0.1) == pytest.approx(0.3)


def test_a_curve_that_only_falls_or_only_rises_has_no_swings() -> None:
    assert swings(np.linspace(3, 1, 9), 0.0) == swings(np.linspace(1, 3, 9), 0.0) == 0.0


def test_small_peaks_are_left_out() -> None:
    assert swings(np.array([3.0, 3.05, 3.0, 3.5, 3.0]), 0.1) == pytest.approx(0.5)


def test_neighbours_are_merged_to_their_medians() -> None:
    assert merged(np.array([1.0, 2.0, 9.0, 4.0, 5.0, 6.0]), 2) == pytest.approx([2.0, 5.0])


def test_a_long_record_is_merged_and_keeps_its_ends() -> None:
    found = trend(power_law(5000))
    assert len(found.loss) == POINTS
    assert found.last_step == 25_000
    assert found.rows == 5000


def test_the_start_is_measured_or_ln_v_or_the_first_row() -> None:
    rows = np.array([3.0, 2.0])
    assert trend(rows, initial=4.0).start == 4.0
    assert trend(rows, initial=None).start == pytest.approx(START)
    assert trend(rows, Facts(), initial=None).start == 3.0


def test_the_end_is_the_median_of_the_last_tenth() -> None:
    loss = power_law(100)
    assert trend(loss).final == pytest.approx(np.median(loss[-10:]))


def test_a_record_without_rows_has_no_trend() -> None:
    assert trend_of(record(np.array([])), Facts()) is None


def test_a_rate_that_was_not_logged_has_no_peak() -> None:
    assert trend(power_law(), rate=np.full(100, math.nan)).peak_rate is None


def test_the_peak_rate_is_found_among_gaps() -> None:
    rate = np.full(100, math.nan)
    rate[40] = 0.25
    assert trend(power_law(), rate=rate).peak_rate == 0.25


def test_shares_of_a_run_become_levels_and_steps() -> None:
    found = trend(np.arange(100.0))
    assert found.level(0.5, 1.0) == pytest.approx(74.5)
    assert found.step_at(0.5) == 255
    assert found.steps[0] == 5
