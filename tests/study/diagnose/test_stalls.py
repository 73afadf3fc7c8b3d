"""Curves that stop at a known level, or go on falling: what is named, beside the thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.stalls import flat_at_unigram, model_too_small, pace
from tests.study.records import BIGRAM, FACTS, START, UNIGRAM, name, power_law, stopping, trend


@pytest.mark.parametrize("end", [0.5, 1.5, 2.5])
def test_a_healthy_curve_does_not_stall(end: float) -> None:
    found = trend(power_law(end=end))
    assert flat_at_unigram(found, FACTS) is None
    assert model_too_small(found, FACTS) is None


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


@pytest.mark.parametrize("missing", ["tokens", "parameters", "bigram_loss"])
def test_without_facts_no_model_is_too_small(missing: str) -> None:
    facts = replace(FACTS, **{"tokens": 2_000_000, missing: None})  # type: ignore[arg-type]
    assert model_too_small(trend(stopping(BIGRAM + 0.3)), facts) is None


def test_a_loss_that_falls_as_fast_as_ever_says_by_how_much() -> None:
    finding = pace(trend(np.linspace(START, START - 0.99, 100)), FACTS)
    assert finding is not None
    assert "(0.19 over the whole run)" in finding.says  # per 100 of 500 steps


@pytest.mark.parametrize("loss", [np.full(100, 2.0), np.linspace(2, 3, 100)])
def test_a_loss_that_does_not_fall_is_neither_a_plateau_nor_slow(loss: np.ndarray) -> None:
    found = trend(loss, Facts(), initial=None)
    assert pace(found, Facts()) is None
