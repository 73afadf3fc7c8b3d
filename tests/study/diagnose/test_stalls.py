"""Curves that stop at a known level, on either side of each threshold."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.stalls import crawling, resting, standstill, too_small
from tests.study.records import BIGRAM, FACTS, START, UNIGRAM, cosine, name, power_law, trend


def stopping(level: float, rows: int = 100) -> Floats:
    """A fast fall to a level, and no more; the noise of batches."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(rows)
    return level + (START - level) * np.exp(-np.arange(rows) / 3) + noise


@pytest.mark.parametrize("end", [0.5, 1.5, 2.5])
def test_a_healthy_curve_is_not_stalled(end: float) -> None:
    found = trend(power_law(end=end))
    for rule in (resting, standstill, crawling, too_small):
        assert rule(found, FACTS) is None


def test_a_loss_that_stays_at_token_frequencies_says_shuffled_labels() -> None:
    finding = standstill(trend(stopping(UNIGRAM)), FACTS)
    assert name(finding) == "shuffled_labels"
    assert finding is not None
    assert "3.20" in finding.says


def test_a_loss_below_token_frequencies_has_learned_more() -> None:
    assert standstill(trend(stopping(UNIGRAM - 0.3)), FACTS) is None


def test_a_loss_that_stays_above_token_frequencies_says_steps_are_too_long() -> None:
    finding = standstill(trend(stopping(UNIGRAM + 0.2)), FACTS)
    assert name(finding) == "learning_rate_too_high"


def test_validation_that_swings_at_token_frequencies_says_so_too() -> None:
    val = UNIGRAM + 0.1 * (np.arange(10) % 2 - 0.5)
    finding = standstill(trend(stopping(UNIGRAM), val=val), FACTS)
    assert name(finding) == "learning_rate_too_high"


def test_a_short_rest_at_token_frequencies_accuses_nobody() -> None:
    assert standstill(trend(stopping(UNIGRAM, rows=30)), FACTS) is None


def test_where_order_tells_nothing_token_frequencies_are_all_there_is() -> None:
    facts = replace(FACTS, bigram_loss=UNIGRAM - 0.1)
    assert standstill(trend(stopping(UNIGRAM)), facts) is None


@pytest.mark.parametrize("missing", ["unigram_loss", "bigram_loss"])
def test_without_baselines_a_standstill_is_not_judged(missing: str) -> None:
    facts = replace(FACTS, **{missing: None})  # type: ignore[arg-type]
    assert standstill(trend(stopping(UNIGRAM)), facts) is None


def rested(peak: float) -> Floats:
    """Rates, with a peak."""
    return cosine(peak=peak)


@pytest.mark.parametrize(("peak", "found"), [(0.02, False), (0.1, True)])
def test_adam_rests_under_a_rate_that_is_far_too_high(peak: float, found: bool) -> None:
    loss = stopping(UNIGRAM)
    loss[60:] -= np.linspace(0, 0.5, 40)  # it moves once the rate has fallen
    finding = resting(trend(loss, rate=rested(peak)), FACTS)
    assert (finding is not None) is found


def test_a_rest_that_passes_without_warmup_is_missing_warmup() -> None:
    loss = stopping(UNIGRAM)
    loss[35:] -= np.linspace(0, 1.5, 65)
    cold = replace(FACTS, warmup_steps=0)
    rate = np.full(100, 0.2)
    assert name(resting(trend(loss, rate=rate), cold)) == "missing_warmup"
    assert name(resting(trend(loss, rate=rate), FACTS)) == "learning_rate_too_high"


@pytest.mark.parametrize("optimizer", ["SGD", None])
def test_other_optimizers_have_other_rates(optimizer: str | None) -> None:
    found = trend(stopping(UNIGRAM), rate=rested(0.5))
    assert resting(found, replace(FACTS, optimizer=optimizer)) is None


@pytest.mark.parametrize(("fall", "found"), [(0.1, True), (0.8, True), (1.1, False)])
def test_a_run_that_has_not_learned_token_frequencies_crawls(fall: float, found: bool) -> None:
    finding = crawling(trend(np.linspace(START, START - fall, 100)), FACTS)
    assert (name(finding) == "learning_rate_too_low") is found


@pytest.mark.parametrize(("fall", "found"), [(0.05, True), (0.2, False)])
def test_without_facts_only_a_loss_that_does_not_move_crawls(fall: float, found: bool) -> None:
    loss = np.linspace(START, START - fall, 100)
    assert (crawling(trend(loss, Facts(), initial=None), Facts()) is not None) is found


def test_trained_weights_may_learn_little_more() -> None:
    assert crawling(trend(np.full(100, 1.5), initial=1.52), FACTS) is None


def test_crawling_names_the_rate() -> None:
    finding = crawling(trend(np.full(100, START - 0.01)), FACTS)
    assert finding is not None
    assert "0.001" in finding.says
    unknown = crawling(trend(np.full(100, 4.15), rate=np.full(100, math.nan)), FACTS)
    assert unknown is not None
    assert "learning rate" not in unknown.says


@pytest.mark.parametrize(
    ("tokens", "level", "found"),
    [
        (2_000_000, BIGRAM + 0.3, True),
        (2_000_000, BIGRAM - 0.3, False),
        (200_000, BIGRAM + 0.3, False),
    ],
)
def test_a_model_is_too_small_after_many_tokens_above_pairs(
    tokens: int, level: float, found: bool
) -> None:
    finding = too_small(trend(stopping(level)), replace(FACTS, tokens=tokens))
    assert (name(finding) == "model_too_small") is found


@pytest.mark.parametrize("missing", ["tokens", "parameters", "bigram_loss"])
def test_without_facts_no_model_is_too_small(missing: str) -> None:
    facts = replace(FACTS, **{"tokens": 2_000_000, missing: None})  # type: ignore[arg-type]
    assert too_small(trend(stopping(BIGRAM + 0.3)), facts) is None
