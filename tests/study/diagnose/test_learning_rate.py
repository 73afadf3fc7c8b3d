"""Humps, rises, swings and stops: what is blamed, beside the thresholds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.learning_rate import (
    adam_held_at_unigram,
    early_hump,
    flat_at_unigram,
    hump,
    oscillating,
    rising,
    too_low,
)
from tests.study.records import (
    FACTS,
    START,
    UNIGRAM,
    cosine,
    name,
    power_law,
    stopping,
    trend,
)

CONSTANT = np.full(100, 1e-3)
RULES = (early_hump, rising, adam_held_at_unigram, oscillating, too_low)


def humped() -> Floats:
    """A healthy curve that begins above its start."""
    loss = power_law()
    loss[:3] = START + 1.0
    return loss


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_curve_blames_no_learning_rate(seed: int) -> None:
    found = trend(power_law(seed=seed, noise=0.08), val=power_law(10, noise=0.0))
    assert [rule(found, FACTS) for rule in RULES] == [None] * len(RULES)


def test_a_hump_without_warmup_that_passes_is_missing_warmup() -> None:
    finding = early_hump(trend(humped()), Facts(warmup_steps=0))
    assert name(finding) == "missing_warmup"
    assert finding is not None
    assert finding.steps == (5, 15)


def test_a_hump_despite_warmup_is_the_learning_rate() -> None:
    assert name(early_hump(trend(humped()), FACTS)) == "learning_rate_too_high"


def test_warmup_is_seen_in_the_learning_rates_if_the_config_is_unknown() -> None:
    warm, cold = (trend(humped(), rate=rate) for rate in (cosine(), CONSTANT))
    assert name(early_hump(warm, Facts())) == "learning_rate_too_high"
    assert name(early_hump(cold, Facts())) == "missing_warmup"


def test_a_hump_that_never_passes_is_the_learning_rate_even_without_warmup() -> None:
    loss = np.full(100, START + 1.0)
    assert name(early_hump(trend(loss), Facts(warmup_steps=0))) == "learning_rate_too_high"


def test_a_hump_before_a_validation_that_swings_is_the_learning_rate() -> None:
    found = trend(humped(), val=2.0 + 0.4 * (np.arange(20) % 2))
    assert name(early_hump(found, Facts(warmup_steps=0))) == "learning_rate_too_high"


def test_one_early_row_that_rises_is_no_hump_and_two_are() -> None:
    for rows, expected in (([6], None), ([6, 7], "learning_rate_too_high")):
        loss = power_law()
        loss[rows] += 0.6
        assert name(early_hump(trend(loss), FACTS)) == expected


def test_a_late_rise_above_the_start_is_no_hump() -> None:
    loss = power_law()
    loss[60:] += 4.0
    assert hump(trend(loss)) is None


def test_a_diverged_run_is_rising() -> None:
    finding = rising(trend(np.geomspace(START, 50, 100)), FACTS)
    assert name(finding) == "learning_rate_too_high"


def test_a_fall_in_the_last_rows_is_no_rise() -> None:
    losses = np.append(np.linspace(START, 3.25, 134), np.full(6, 3.0))  # a pass begins near the end
    assert rising(trend(losses), FACTS) is None


@pytest.mark.parametrize(("height", "found"), [(0.0, False), (1.0, True)])
def test_without_validation_the_training_loss_may_oscillate(height: float, found: bool) -> None:
    loss = power_law() + height * np.sin(np.arange(100) / 6)
    assert (oscillating(trend(loss), FACTS) is not None) is found


def test_the_noise_of_small_batches_is_no_oscillation() -> None:
    noisy = (trend(power_law(noise=0.3, seed=seed)) for seed in range(20))
    assert not any(oscillating(found, FACTS) for found in noisy)


def test_a_rest_at_unigrams_that_passes_without_warmup_is_missing_warmup() -> None:
    loss = stopping(UNIGRAM)
    loss[35:] -= np.linspace(0, 1.5, 65)
    found = trend(loss, rate=np.full(100, 0.2))
    cold = replace(FACTS, warmup_steps=0)
    assert name(adam_held_at_unigram(found, cold)) == "missing_warmup"
    assert name(adam_held_at_unigram(found, FACTS)) == "learning_rate_too_high"


def test_an_early_rest_at_unigrams_counts_only_without_warmup() -> None:
    loss = np.append(np.full(30, UNIGRAM), np.full(70, 1.5))
    cold = replace(FACTS, warmup_steps=0)
    high, unusable = (trend(loss, rate=np.full(100, rate)) for rate in (0.2, 0.6))
    assert name(adam_held_at_unigram(high, cold)) == "missing_warmup"
    assert name(adam_held_at_unigram(unusable, cold)) == "learning_rate_too_high"
    assert adam_held_at_unigram(high, FACTS) is None


@pytest.mark.parametrize("optimizer", ["SGD", None])
def test_only_adam_is_known_to_rest_at_a_high_learning_rate(optimizer: str | None) -> None:
    found = trend(stopping(UNIGRAM), rate=cosine(peak=0.5))
    assert adam_held_at_unigram(found, replace(FACTS, optimizer=optimizer)) is None


def test_trained_weights_may_learn_little_more() -> None:
    assert too_low(trend(np.full(100, 1.5), initial=1.52), FACTS) is None


def test_a_rate_that_is_too_low_is_named_where_it_is_known() -> None:
    finding = too_low(trend(np.full(100, START - 0.01)), FACTS)
    assert finding is not None
    assert "0.001" in finding.says
    unknown = too_low(trend(np.full(100, 4.15), rate=np.full(100, math.nan)), FACTS)
    assert unknown is not None
    assert "learning rate" not in unknown.says


@pytest.mark.parametrize("end", [0.5, 1.5, 2.5])
def test_a_healthy_curve_does_not_stall(end: float) -> None:
    assert flat_at_unigram(trend(power_law(end=end)), FACTS) is None


def test_noise_does_not_hide_shuffled_labels() -> None:
    finding = flat_at_unigram(trend(stopping(UNIGRAM)), FACTS)
    assert name(finding) == "wrong_targets"
    assert finding is not None
    assert "3.20" in finding.says


def test_validation_that_swings_at_token_frequencies_is_the_learning_rate() -> None:
    val = UNIGRAM + 0.1 * (np.arange(10) % 2 - 0.5)
    finding = flat_at_unigram(trend(stopping(UNIGRAM), val=val), FACTS)
    assert name(finding) == "learning_rate_too_high"


@pytest.mark.parametrize("missing", ["unigram_loss", "bigram_loss"])
def test_without_baselines_a_standstill_is_not_judged(missing: str) -> None:
    facts = replace(FACTS, **{missing: None})  # type: ignore[arg-type]
    assert flat_at_unigram(trend(stopping(UNIGRAM)), facts) is None
