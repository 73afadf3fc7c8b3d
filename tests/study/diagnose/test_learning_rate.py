"""Spikes, humps, rises and swings of known size, on either side of each threshold."""

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.learning_rate import (
    crashed,
    early_hump,
    hump,
    jumps,
    oscillating,
    return_of,
    rising,
)
from tests.study.records import FACTS, START, cosine, name, power_law, trend

CONSTANT = np.full(100, 1e-3)


def spiked(at: int, size: float, last: int) -> Floats:
    """A healthy curve that is higher by `size` from one row to another."""
    loss = power_law()
    loss[at:last] += size
    return loss


def humped(size: float, rows: int = 3) -> Floats:
    """A healthy curve that begins above its start."""
    loss = power_law()
    loss[:rows] = START + size
    return loss


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_curve_has_nothing_of_the_kind(seed: int) -> None:
    found = trend(power_law(seed=seed, noise=0.08), val=power_law(10, noise=0.0))
    for rule in (crashed, early_hump, rising, oscillating):
        assert rule(found, FACTS) is None


def test_a_jump_is_found_at_its_row() -> None:
    assert jumps(trend(spiked(50, 1.0, 55))) == [50]


def test_a_jump_no_larger_than_the_noise_is_none() -> None:
    noisy = power_law(noise=0.3)
    noisy[50] += 0.5
    assert jumps(trend(noisy)) == []


def test_a_spike_comes_back_where_it_does() -> None:
    assert return_of(trend(spiked(50, 1.0, 55)), 50) in (54, 55, 56)


def test_a_spike_that_comes_back_is_no_crash() -> None:
    assert crashed(trend(spiked(50, 1.0, 60)), FACTS) is None


def test_a_spike_that_never_comes_back_is_a_crash_with_its_step() -> None:
    finding = crashed(trend(spiked(50, 1.0, 100)), FACTS)
    assert name(finding) == "spike_not_recovered"
    assert finding is not None
    assert finding.steps == (255, 500)
    assert "step 255" in finding.says


def test_a_jump_in_the_last_rows_may_still_come_back() -> None:
    assert crashed(trend(spiked(98, 1.0, 100)), FACTS) is None
    assert crashed(trend(spiked(97, 1.0, 100)), FACTS) is not None


def test_a_jump_of_a_run_that_had_learned_nothing_is_no_crash() -> None:
    loss = np.full(100, 3.5)
    loss[50:] = 4.5
    assert crashed(trend(loss), FACTS) is None
    assert crashed(trend(loss), Facts()) is not None


@pytest.mark.parametrize(("size", "found"), [(0.2, False), (0.5, True)])
def test_a_hump_rises_above_the_start(size: float, found: bool) -> None:
    assert (hump(trend(humped(size))) is not None) is found


@pytest.mark.parametrize(("size", "found"), [(0.2, False), (0.8, True)])
def test_an_early_rise_above_the_best_so_far_is_a_hump_too(size: float, found: bool) -> None:
    loss = power_law()
    loss[3:6] = loss[2] + size  # below the start: a vocabulary may be larger than what is used
    assert (hump(trend(loss, initial=START + 2)) is not None) is found


def test_the_same_rise_a_little_later_is_a_spike() -> None:
    loss = power_law()
    loss[15:18] += 0.8
    assert hump(trend(loss, initial=START + 2)) is None


def test_a_hump_without_warmup_that_passes_is_missing_warmup() -> None:
    finding = early_hump(trend(humped(1.0)), Facts(warmup_steps=0))
    assert name(finding) == "missing_warmup"
    assert finding is not None
    assert finding.steps == (5, 15)


def test_a_hump_despite_warmup_is_the_rate() -> None:
    assert name(early_hump(trend(humped(1.0)), FACTS)) == "learning_rate_too_high"


def test_warmup_is_seen_in_the_rates_if_nobody_says_it() -> None:
    warm, cold = (trend(humped(1.0), rate=rate) for rate in (cosine(), CONSTANT))
    assert name(early_hump(warm, Facts())) == "learning_rate_too_high"
    assert name(early_hump(cold, Facts())) == "missing_warmup"


def test_a_hump_that_never_passes_is_the_rate_even_without_warmup() -> None:
    loss = np.full(100, START + 1.0)
    assert name(early_hump(trend(loss), Facts(warmup_steps=0))) == "learning_rate_too_high"


def test_a_late_rise_above_the_start_is_no_hump() -> None:
    assert hump(trend(spiked(60, 4.0, 100))) is None


@pytest.mark.parametrize(("rise", "found"), [(0.1, False), (0.8, True)])
def test_a_loss_that_climbs_from_its_best_is_rising(rise: float, found: bool) -> None:
    loss = power_law(noise=0.01) + np.linspace(0, 1, 100) ** 2 * (rise + 0.15)
    assert (rising(trend(loss), FACTS) is not None) is found


def test_a_diverged_run_is_rising() -> None:
    finding = rising(trend(np.geomspace(START, 50, 100)), FACTS)
    assert name(finding) == "learning_rate_too_high"


@pytest.mark.parametrize(("height", "found"), [(0.03, False), (0.4, True)])
def test_validation_that_goes_up_and_down_oscillates(height: float, found: bool) -> None:
    val = power_law(20, noise=0.0) + height * (np.arange(20) % 2)
    assert (oscillating(trend(power_law(), val=val), FACTS) is not None) is found


@pytest.mark.parametrize(("height", "found"), [(0.0, False), (1.0, True)])
def test_without_validation_the_training_loss_may_oscillate(height: float, found: bool) -> None:
    loss = power_law() + height * np.sin(np.arange(100) / 6)
    assert (oscillating(trend(loss), FACTS) is not None) is found


def test_the_noise_of_small_batches_is_no_oscillation() -> None:
    assert all(
        oscillating(trend(power_law(noise=0.3, seed=seed)), FACTS) is None for seed in range(20)
    )
