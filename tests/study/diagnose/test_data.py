"""Overlap, repeats, overfitting and memorising: what decides, beside the thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.study.diagnose.data import (
    gap,
    memorising,
    overfitting,
    overlap,
    repeated_data,
    tokens_per_parameter,
)
from lmtemplate.study.diagnose.finding import Facts
from tests.study.records import FACTS, START, power_law, trend


def test_overfitting_says_where_validation_was_best() -> None:
    val = np.array([3.0, 2.0, 2.2, 2.4, 2.6])
    finding = overfitting(trend(np.linspace(START, 1.0, 100), val=val), FACTS)
    assert finding is not None
    assert finding.steps == (200, 500)


def test_validation_and_training_that_rise_together_are_not_overfitting() -> None:
    val = np.array([3.0, 2.0, 2.5, 3.0, 3.5])
    loss = np.interp(np.arange(100), [0, 40, 99], [START, 2.0, 3.5])
    assert overfitting(trend(loss, val=val), FACTS) is None


def test_a_gap_while_validation_falls_is_a_note_and_no_overfitting() -> None:
    found = trend(power_law(end=1.0), val=power_law(10, end=2.5, noise=0.0))
    note = gap(found, FACTS)
    assert note is not None
    assert not note.fault
    assert overfitting(found, FACTS) is None


@pytest.mark.parametrize(("high", "found"), [(1, False), (2, True)])
def test_one_high_validation_at_the_end_is_no_turn(high: int, found: bool) -> None:
    val = np.append(np.linspace(4, 2, 9), [2.2] * high)
    finding = overfitting(trend(np.linspace(START, 1.0, 100), val=val), FACTS)
    assert (finding is not None) is found


def test_without_validation_nothing_is_overfitted_or_has_a_gap() -> None:
    found = trend(np.full(100, 0.02))
    assert [rule(found, FACTS) for rule in (overfitting, memorising, gap)] == [None] * 3


def test_a_loss_near_nothing_is_no_memory_where_validation_is_as_low() -> None:
    assert memorising(trend(np.full(100, 0.02), val=np.array([0.05])), FACTS) is None


def test_without_facts_the_data_is_not_judged() -> None:
    found = trend(power_law())
    rules = (overlap, repeated_data, memorising, tokens_per_parameter)
    assert [rule(found, Facts()) for rule in rules] == [None] * 4


def test_tokens_per_parameter_stand_beside_the_compute_optimal_twenty() -> None:
    finding = tokens_per_parameter(trend(power_law()), replace(FACTS, tokens=50_000))
    assert finding is not None
    assert finding.says.startswith("5 tokens per parameter (50,000 / 10,000); 20 are")


def test_shares_are_said_in_percent() -> None:
    facts = replace(FACTS, overlap_share=0.4, repeated_share=0.5)
    for rule, share in ((overlap, "40%"), (repeated_data, "50%")):
        finding = rule(trend(power_law()), facts)
        assert finding is not None
        assert finding.says.startswith(share)
