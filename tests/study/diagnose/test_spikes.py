"""Jumps of known size -> where they are, and whether the loss came back."""

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.spikes import (
    jumps,
    recovery,
    spike_not_recovered,
    spike_recovered,
)
from tests.study.records import FACTS, power_law, trend


def spiked(at: int, size: float, last: int) -> Floats:
    """A healthy curve that is higher by `size` from one row to another."""
    loss = power_law()
    loss[at:last] += size
    return loss


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_curve_has_no_jump(seed: int) -> None:
    assert jumps(trend(power_law(seed=seed, noise=0.08))) == []


def test_a_jump_is_found_at_its_row_and_ends_where_the_loss_is_back() -> None:
    found = trend(spiked(50, 1.0, 55))
    assert jumps(found) == [50]
    assert recovery(found, 50) in (54, 55, 56)
    assert spike_not_recovered(found, FACTS) is None


def test_a_spike_that_never_comes_back_is_a_crash_with_its_step() -> None:
    finding = spike_not_recovered(trend(spiked(50, 1.0, 100)), FACTS)
    assert finding is not None
    assert finding.steps == (255, 500)
    assert "step 255" in finding.says


def test_a_jump_of_a_run_that_had_learned_nothing_is_no_crash() -> None:
    loss = np.full(100, 3.5)
    loss[50:] = 4.5
    assert spike_not_recovered(trend(loss), FACTS) is None
    assert spike_not_recovered(trend(loss), Facts()) is not None


def test_spikes_that_came_back_are_one_note_with_their_number_and_steps() -> None:
    loss = power_law()
    loss[[40, 60, 80]] += 1.0
    finding = spike_recovered(trend(loss), FACTS)
    assert finding is not None
    assert not finding.fault
    assert "first of 3" in finding.says
    assert finding.steps[0] == 205
    assert 405 <= finding.steps[1] <= 415


def test_in_a_noisy_curve_a_loss_is_back_where_it_is_within_the_noise() -> None:
    loss = 2.0 + 0.2 * (-1.0) ** np.arange(100)  # level before row 50: 1.8
    loss[53:] += 0.4  # the lowest later is 2.2: not within 0.15, but within the noise
    loss[50:53] = 6.0
    found = trend(loss)
    assert found.noise > 0.4
    assert recovery(found, 50) is not None
