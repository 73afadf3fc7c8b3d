"""NaN, a first loss beside ln V; jumps of known size -> where they are, whether the loss came back."""

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.spikes import (
    jumps,
    noise,
    nonfinite,
    recovery,
    spike_not_recovered,
    spike_recovered,
    unusual_start,
)
from tests.study.records import FACTS, power_law, record, trend


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


def test_nan_is_named_with_its_step_and_the_last_finite_loss() -> None:
    finding = nonfinite(record(np.array([4.0, 3.0]), nonfinite=(505,)))
    assert finding is not None
    assert finding.says == "the loss was NaN or inf at step 505; the last finite one was 3.00 nats."
    assert nonfinite(record(power_law())) is None


def test_a_run_that_begins_with_nan_has_no_last_finite_loss() -> None:
    finding = nonfinite(record(np.array([]), nonfinite=(5,)))
    assert finding is not None
    assert "last finite" not in finding.says


def test_without_a_vocabulary_or_a_first_loss_the_start_is_not_judged() -> None:
    assert unusual_start(record(power_law(), initial=None), FACTS) is None
    assert unusual_start(record(power_law(), initial=20.0), Facts()) is None
    assert unusual_start(record(power_law(), initial=1.0), Facts()) is None


def test_a_rise_that_is_only_noise_is_normal() -> None:
    finding = noise(trend(np.array([3.0, 2.8, 2.9, 2.7, 2.8, 2.6])), Facts())
    assert finding is not None
    assert not finding.fault
    assert "2 of 5" in finding.says


@pytest.mark.parametrize("loss", [[3.0, 2.0, 1.0], [3.0, 3.1, 3.2]])
def test_a_loss_that_only_falls_or_only_rises_is_not_called_noise(loss: list[float]) -> None:
    assert noise(trend(np.array(loss)), Facts()) is None
