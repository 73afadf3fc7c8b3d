"""How a loss ends beside tokens and parameters: what is noted, and which model is too small."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.pace import model_too_small, pace
from tests.study.records import BIGRAM, FACTS, START, name, power_law, stopping, trend


@pytest.mark.parametrize(("end", "found"), [(0.5, False), (BIGRAM - 0.1, False), (3.0, True)])
def test_after_many_tokens_a_model_is_too_small_only_above_token_pairs(
    end: float, found: bool
) -> None:
    finding = model_too_small(trend(power_law(end=end)), replace(FACTS, tokens=2_000_000))
    assert (name(finding) == "model_too_small") is found


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


@pytest.mark.parametrize(("passes", "found"), [(0.5, True), (1.0, True), (4.0, False)])
def test_only_fresh_tokens_stand_beside_the_compute_optimal_twenty(
    passes: float, found: bool
) -> None:
    finding = pace(trend(power_law()), replace(FACTS, tokens=2_000_000, passes=passes))
    assert (name(finding) == "overtrained") is found
    if finding is not None and found:
        assert finding.says.startswith("200 fresh tokens per parameter (20 are")
