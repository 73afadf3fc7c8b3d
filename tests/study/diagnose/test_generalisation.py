"""Overlap, repeats, overfitting and memorising: what decides, beside the thresholds."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.generalisation import (
    gap,
    memorising,
    overfitting,
    repeated_text,
    turned_early,
    validation_lost,
)
from tests.study.records import FACTS, START, name, power_law, trend


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
    rules = (repeated_text, memorising)
    assert [rule(found, Facts()) for rule in rules] == [None] * 2


def test_what_turns_within_the_first_pass_is_no_overfitting() -> None:
    val = np.array([3.0, 2.0, 2.2, 2.4, 2.6])
    found = trend(np.linspace(START, 1.0, 100), val=val)
    for passes, expected in ((0.39, ("training_text_changes", None)), (3.0, (None, "overfitting"))):
        facts = replace(FACTS, passes=passes)
        assert (name(turned_early(found, facts)), name(overfitting(found, facts))) == expected


@pytest.mark.parametrize("rows", [2, 100])
def test_validation_above_the_untrained_model_is_lost_at_any_length(rows: int) -> None:
    found = trend(np.linspace(START, 2.0, rows), val=np.array([6.0, 6.9]))
    finding = validation_lost(found, FACTS)
    assert name(finding) == "validation_lost"
    assert finding is not None
    assert "(4.16 nats)" in finding.says


def test_where_training_rises_too_a_lost_validation_is_the_learning_rate() -> None:
    found = trend(np.linspace(START, 9.0, 4), val=np.array([6.0, 8.9]))
    assert name(validation_lost(found, FACTS)) == "learning_rate_too_high"


def test_one_validation_below_the_untrained_model_is_enough() -> None:
    assert validation_lost(trend(power_law(), val=np.array([6.0, 4.2, 6.0])), FACTS) is None
    unknown = trend(power_law(), val=np.array([6.0, 7.0]), initial=None)
    assert validation_lost(unknown, FACTS) is None


@pytest.mark.parametrize(
    ("overlap", "share"), [(0.4, "40% of the validation text"), (0.0, "50% of the training text")]
)
def test_shares_are_said_in_percent(overlap: float, share: str) -> None:
    facts = replace(FACTS, overlap_share=overlap, repeated_share=0.5)
    finding = repeated_text(trend(power_law()), facts)
    assert finding is not None
    assert finding.says.startswith(share)
