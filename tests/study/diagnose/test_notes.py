"""What is worth saying of a run that is well."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.notes import (
    chinchilla,
    gap,
    noise,
    plateau,
    recovered,
    too_short,
    too_slow,
    trained_before,
)
from tests.study.records import FACTS, START, name, power_law, trend


@pytest.mark.parametrize(("size", "found"), [(0.4, False), (0.6, True)])
def test_a_gap_of_half_a_nat_is_reported(size: float, found: bool) -> None:
    val = power_law(10, end=1.5, noise=0.0) + size
    loss = power_law(noise=0.0)
    val[-1] = np.median(loss[-10:]) + size
    finding = gap(trend(loss, val=val), FACTS)
    assert (name(finding) == "gap") is found
    assert finding is None or not finding.fault


def test_without_validation_there_is_no_gap() -> None:
    assert gap(trend(power_law()), FACTS) is None


def test_a_spike_that_came_back_is_a_note_with_its_steps() -> None:
    loss = power_law()
    loss[50:53] += 1.0
    finding = recovered(trend(loss), FACTS)
    assert name(finding) == "spike_recovered"
    assert finding is not None
    assert not finding.fault
    assert finding.steps[0] == 255
    assert finding.steps[1] <= 275


def test_several_spikes_are_counted() -> None:
    loss = power_law()
    loss[[40, 60, 80]] += 1.0
    finding = recovered(trend(loss), FACTS)
    assert finding is not None
    assert "first of 3" in finding.says


def test_a_smooth_curve_had_no_spike() -> None:
    assert recovered(trend(power_law()), FACTS) is None


def test_a_rise_that_is_only_noise_is_normal() -> None:
    finding = noise(trend(np.array([3.0, 2.8, 2.9, 2.7, 2.8, 2.6])), Facts())
    assert finding is not None
    assert not finding.fault
    assert "2 of 5" in finding.says
    assert "normal" in finding.says


@pytest.mark.parametrize("loss", [[3.0, 2.0, 1.0], [3.0, 3.1, 3.2], [3.0, 2.0, 2.9, 2.0]])
def test_falls_climbs_and_jumps_are_not_called_noise(loss: list[float]) -> None:
    assert noise(trend(np.array(loss)), Facts()) is None


def test_a_loss_that_has_stopped_falling_is_a_plateau() -> None:
    loss = np.maximum(1.5, np.linspace(START, -3, 100))
    finding = plateau(trend(loss), FACTS)
    assert name(finding) == "plateau"
    assert too_slow(trend(loss), FACTS) is None


def test_a_loss_that_falls_as_fast_as_ever_is_too_slow() -> None:
    loss = np.linspace(START, 2.0, 100)
    finding = too_slow(trend(loss), FACTS)
    assert name(finding) == "too_slow"
    assert finding is not None
    assert "per 100 steps" in finding.says
    assert plateau(trend(loss), FACTS) is None


@pytest.mark.parametrize("loss", [np.full(100, 2.0), np.linspace(2, 3, 100)])
def test_a_loss_that_does_not_fall_is_neither(loss: np.ndarray) -> None:
    found = trend(loss, Facts(), initial=None)
    assert plateau(found, Facts()) is None
    assert too_slow(found, Facts()) is None


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(50_000, "undertrained"), (200_000, None), (5_000_000, "overtrained")],
)
def test_tokens_per_parameter_stand_beside_twenty(tokens: int, expected: str | None) -> None:
    finding = chinchilla(trend(power_law()), replace(FACTS, tokens=tokens, parameters=10_000))
    assert name(finding) == expected
    assert finding is None or "20" in finding.says


@pytest.mark.parametrize("missing", ["tokens", "parameters"])
def test_without_counts_there_is_no_ratio(missing: str) -> None:
    assert chinchilla(trend(power_law()), replace(FACTS, **{missing: None})) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("rows", "found"), [(19, True), (20, False)])
def test_few_rows_are_too_short_to_judge(rows: int, found: bool) -> None:
    assert (too_short(trend(power_law(rows)), FACTS) is not None) is found


@pytest.mark.parametrize(("initial", "found"), [(START - 0.3, False), (2.0, True)])
def test_a_first_loss_far_below_ln_v_means_trained_weights(initial: float, found: bool) -> None:
    finding = trained_before(trend(power_law(), initial=initial), FACTS)
    assert (name(finding) == "trained_before") is found
    assert trained_before(trend(power_law(), Facts(), initial=initial), Facts()) is None
