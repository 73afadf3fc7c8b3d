"""Data, numbers and validation that are wrong in a known way."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.study.diagnose.data import (
    far_start,
    memorising,
    nonfinite,
    overfitting,
    overlap,
    repeated,
)
from lmtemplate.study.diagnose.finding import Facts
from tests.study.records import FACTS, START, name, power_law, record, trend


def test_numbers_that_are_not_finite_are_named_with_their_step() -> None:
    finding = nonfinite(record(power_law(), nonfinite=(505,)))
    assert name(finding) == "nonfinite"
    assert finding is not None
    assert "step 505" in finding.says


def test_a_run_that_begins_with_nan_has_no_last_finite_loss() -> None:
    finding = nonfinite(record(np.array([]), nonfinite=(5,)))
    assert finding is not None
    assert "last finite" not in finding.says


def test_finite_numbers_are_no_finding() -> None:
    assert nonfinite(record(power_law())) is None


@pytest.mark.parametrize(("above", "found"), [(0.3, False), (0.6, True)])
def test_a_first_loss_far_above_ln_v_is_named(above: float, found: bool) -> None:
    finding = far_start(record(power_law(), initial=START + above), FACTS)
    assert (name(finding) == "initial_loss") is found


@pytest.mark.parametrize("initial", [None, 20.0])
def test_without_a_vocabulary_or_a_first_loss_there_is_no_such_finding(
    initial: float | None,
) -> None:
    facts = FACTS if initial is None else Facts()
    assert far_start(record(power_law(), initial=initial), facts) is None


@pytest.mark.parametrize(("share", "found"), [(None, False), (0.01, False), (0.4, True)])
def test_validation_text_in_the_training_text_is_named(share: float | None, found: bool) -> None:
    finding = overlap(trend(power_law()), replace(FACTS, overlap_share=share))
    assert (name(finding) == "overlap") is found


@pytest.mark.parametrize(("share", "found"), [(None, False), (0.05, False), (0.5, True)])
def test_repeated_training_text_is_named(share: float | None, found: bool) -> None:
    finding = repeated(trend(power_law()), replace(FACTS, repeated_share=share))
    assert (name(finding) == "repeated_data") is found


@pytest.mark.parametrize(
    ("tokens", "text", "found"),
    [
        (None, None, False),
        (200, "a" * 200, True),
        (100, "a" * 100, False),
        (20, "a" * 200, False),
        (40, "word " * 40, True),
    ],
)
def test_a_copied_span_counts_in_tokens_and_in_bytes(
    tokens: int | None, text: str | None, found: bool
) -> None:
    facts = replace(FACTS, copied_tokens=tokens, copied_text=text)
    assert (name(memorising(trend(power_law()), facts)) == "memorising") is found


@pytest.mark.parametrize(
    ("end", "validation", "found"),
    [(0.02, 3.0, True), (0.3, 3.0, False), (0.02, 0.05, False), (0.02, None, False)],
)
def test_text_known_by_heart_is_read_without_surprise(
    end: float, validation: float | None, found: bool
) -> None:
    val = None if validation is None else np.array([validation])
    loss = np.maximum(end, np.linspace(START, -3, 100))
    assert (name(memorising(trend(loss, val=val), FACTS)) == "memorising") is found


@pytest.mark.parametrize(("turn", "found"), [(0.02, False), (0.3, True)])
def test_validation_that_turns_up_while_training_falls_is_overfitting(
    turn: float, found: bool
) -> None:
    val = np.concatenate([np.linspace(4, 2, 5), np.linspace(2, 2 + turn, 5)])
    loss = np.linspace(START, 1.0, 100)
    finding = overfitting(trend(loss, val=val), FACTS)
    assert (name(finding) == "overfitting") is found


def test_overfitting_says_where_validation_was_best() -> None:
    val = np.array([3.0, 2.0, 2.2, 2.4, 2.6])
    finding = overfitting(trend(np.linspace(START, 1.0, 100), val=val), FACTS)
    assert finding is not None
    assert finding.steps == (200, 500)


def test_validation_and_training_that_rise_together_are_not_overfitting() -> None:
    val = np.array([3.0, 2.0, 2.5, 3.0, 3.5])
    loss = np.interp(np.arange(100), [0, 40, 99], [START, 2.0, 3.5])
    assert overfitting(trend(loss, val=val), FACTS) is None


def test_a_gap_alone_is_no_overfitting() -> None:
    val = power_law(10, end=2.5, noise=0.0)
    assert overfitting(trend(power_law(end=1.0), val=val), FACTS) is None


@pytest.mark.parametrize(("high", "found"), [(1, False), (2, True)])
def test_one_high_validation_at_the_end_is_no_turn(high: int, found: bool) -> None:
    val = np.append(np.linspace(4, 2, 9), [2.2] * high)
    finding = overfitting(trend(np.linspace(START, 1.0, 100), val=val), FACTS)
    assert (finding is not None) is found


@pytest.mark.parametrize("val", [None, np.array([2.0, 3.0, 4.0])])
def test_few_validations_cannot_turn(val: np.ndarray | None) -> None:
    assert overfitting(trend(np.linspace(START, 1.0, 100), val=val), FACTS) is None


def test_sentences_have_figures() -> None:
    facts = replace(FACTS, overlap_share=0.4, repeated_share=0.5)
    for rule in (overlap, repeated):
        finding = rule(trend(power_law()), facts)
        assert finding is not None
        assert "%" in finding.says
        assert finding.advice
