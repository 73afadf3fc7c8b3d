"""Whole records of known truth -> healthy, or the fault that was put in."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.record import Record
from lmtemplate.study.diagnose.finding import FAULTS, Facts
from lmtemplate.study.diagnose.verdict import Verdict, judge
from tests.study.records import FACTS, START, UNIGRAM, cosine, power_law, record

NOTHING = Facts()


def faults(verdict: Verdict) -> list[str]:
    return [finding.name for finding in verdict.findings if finding.fault]


def notes(verdict: Verdict) -> list[str]:
    return [finding.name for finding in verdict.findings if not finding.fault]


@pytest.mark.parametrize("facts", [FACTS, NOTHING], ids=["facts", "no facts"])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("rows", [20, 100, pytest.param(3000, marks=pytest.mark.slow)])
def test_a_power_law_with_noise_is_healthy(rows: int, noise: float, facts: Facts) -> None:
    for seed in range(3):
        val = power_law(10, end=1.7, noise=0.01, seed=seed)
        for validations in (val, None):
            found = judge(record(power_law(rows, noise=noise, seed=seed), val=validations), facts)
            assert faults(found) == []


@pytest.mark.parametrize("every", [1, 10, 1000])
def test_the_log_interval_does_not_matter(every: int) -> None:
    healthy = record(power_law(), every=every)
    crashed = record(np.append(power_law(60), np.full(40, 3.0)), every=every)
    assert faults(judge(healthy, FACTS)) == []
    assert faults(judge(crashed, FACTS)) == ["spike_not_recovered"]


def test_a_step_in_the_curve_at_each_pass_is_healthy() -> None:
    loss = power_law() - 0.4 * (np.arange(100) // 30)
    val = power_law(5, end=2.2, noise=0.0)
    found = judge(record(loss, val=val), FACTS)
    assert faults(found) == []
    assert "gap" in notes(found)


def test_six_noisy_rows_are_healthy_and_too_short() -> None:
    found = judge(record(np.array([3.0, 2.8, 2.9, 2.7, 2.8, 2.6]), initial=None), NOTHING)
    assert found.healthy
    assert notes(found) == ["too_short", "noise"]
    assert found.phases == ()


@pytest.mark.parametrize("rows", range(4))
def test_the_shortest_records_are_judged(rows: int) -> None:
    found = judge(record(np.linspace(4, 3, rows)), FACTS)
    assert found.healthy


@pytest.mark.parametrize("facts", [FACTS, NOTHING])
def test_a_constant_loss_has_learned_nothing(facts: Facts) -> None:
    assert faults(judge(record(np.full(50, START)), facts)) == ["learning_rate_too_low"]


def test_unknown_rates_do_not_matter() -> None:
    found = judge(record(power_law(), rate=np.full(100, math.nan)), FACTS)
    assert found.healthy
    assert len(found.phases) == 2


def test_numbers_too_large_to_mean_anything_are_no_error() -> None:
    found = judge(record(np.geomspace(4, 1e300, 50)), FACTS)
    assert faults(found) == ["learning_rate_too_high"]


def test_a_run_that_ended_at_its_first_row_is_named() -> None:
    found = judge(record(np.array([]), nonfinite=(5,)), FACTS)
    assert faults(found) == ["nonfinite"]
    assert found.phases == ()


def faulty(kind: str) -> tuple[Record, Facts]:
    """A record with one fault, and what is known of it."""
    loss, rows = power_law(), np.arange(100)
    val = power_law(10, end=1.7, noise=0.0)
    after = np.append(power_law()[:60], np.full(40, 3.1))
    flat = UNIGRAM + (START - UNIGRAM) * np.exp(-rows / 3)
    turned = np.append(np.linspace(4, 2, 5), np.linspace(2.1, 3, 5))
    records: dict[str, tuple[Record, Facts]] = {
        "nonfinite": (record(loss, nonfinite=(505,)), FACTS),
        "initial_loss": (record(loss, initial=9.0), FACTS),
        "overlap": (record(loss, val=val), replace(FACTS, overlap_share=0.5)),
        "repeated_data": (record(loss, val=val), replace(FACTS, repeated_share=0.5)),
        "memorising": (record(loss), replace(FACTS, copied_tokens=150, copied_text="b" * 150)),
        "overfitting": (record(np.linspace(START, 0.5, 100), val=turned), FACTS),
        "spike_not_recovered": (record(after), FACTS),
        "missing_warmup": (
            record(np.append([6.0, 5.0], loss[2:]), rate=cosine(warmup=0)),
            replace(FACTS, warmup_steps=0),
        ),
        "learning_rate_too_high": (record(np.linspace(START, 9, 100)), FACTS),
        "learning_rate_too_low": (record(np.linspace(START, 4.0, 100)), FACTS),
        "wrong_targets": (record(flat), FACTS),
        "standstill": (record(loss, rate=np.append(cosine(40), np.zeros(60))), FACTS),
        "other_tokens": (
            record(loss, data__unigram_loss=4.0 + 1e-4 * rows),
            replace(FACTS, train_unigram_loss=UNIGRAM),
        ),
        "padding": (record(loss, data__targets_ignored=0.8), FACTS),
        "reads_ahead": (record(loss), replace(FACTS, ahead=0.5)),
        "double_softmax": (record(loss), replace(FACTS, ahead=0.0, is_probability=True)),
        "reload_differs": (
            record(loss, val=val),
            replace(FACTS, checkpoint_step=500, val_measured=7.97, train_measured=1.5),
        ),
        "too_good": (record(loss, val=0.1 * val), FACTS),
        "parameters_not_trained": (
            record(loss),
            replace(FACTS, checkpoint_step=500, tensors=9, still_tensors=("head.weight",)),
        ),
        "extreme_setting": (
            record(np.linspace(START, 2.9, 100)),
            replace(FACTS, settings={"model.optimizer.init_args.eps": 1.0}),
        ),
        "gradients_pile_up": (record(loss, optim__grad_left=1.0), FACTS),
        "training_text_changes": (record(after, val=val), FACTS),
        "not_learning": (record(np.linspace(START, 4.0, 100), optim__update=0.01), FACTS),
        "validation_lost": (record(loss, val=val + 4), FACTS),
        "training_differs": (
            record(loss),
            replace(FACTS, checkpoint_step=500, val_measured=0.5, train_measured=0.5),
        ),
        "model_too_small": (
            record(power_law(end=2.8, noise=0.01)),
            replace(FACTS, tokens=9_000_000),
        ),
    }
    return records[kind]


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_named_with_evidence_and_advice(kind: str) -> None:
    found = judge(*faulty(kind))
    assert faults(found) == [kind]
    assert not found.healthy
    assert found.phases == ()
    finding = found.findings[0]
    assert finding.advice.endswith(".")
    assert any(letter.isdigit() for letter in finding.says)
    assert finding.steps[0] <= finding.steps[1]
    assert all(type(step) is int for step in finding.steps)


def test_faults_come_before_notes() -> None:
    loss = power_law()
    loss[40] += 1.0
    found = judge(record(loss, nonfinite=(505,)), FACTS)
    kinds = [finding.fault for finding in found.findings]
    assert kinds == sorted(kinds, reverse=True)
    assert "spike_recovered" in notes(found)


def test_what_validation_does_after_it_turned_is_not_blamed_on_the_rate() -> None:
    turned = np.append(np.linspace(4, 2, 5), 3 + 0.5 * (np.arange(10) % 2))
    found = judge(record(np.linspace(START, 0.5, 100), val=turned), FACTS)
    assert faults(found) == ["overfitting"]


def test_no_note_advises_more_steps_where_the_text_was_read_again_and_a_gap_is_left() -> None:
    loss, many = np.linspace(START, 1.0, 100), replace(FACTS, tokens=2_000_000, passes=3.7)
    alone, with_gap = (judge(record(loss, val=val), many) for val in (None, np.full(3, 2.5)))
    assert "too_slow" in notes(alone)
    assert "gap" in notes(with_gap)
    assert not {"too_slow", "plateau", "overtrained"} & {*notes(with_gap)}
    fresh = judge(record(loss), replace(FACTS, tokens=2_000_000, passes=0.9))
    assert "overtrained" in notes(fresh)
    assert "too_slow" not in notes(fresh)


def memorised() -> tuple[Record, Facts]:
    """50 sequences by heart: training ends at 0.04 nats, validation turns at step 100 of 500."""
    turned = np.array([2.4, 2.6, 3.2, 3.9, 4.4])
    loss = np.maximum(0.04, np.linspace(START, -2.0, 100))
    return record(loss, val=turned, optim__update=0.004), replace(FACTS, passes=45.0)


def of_checkpoint(**known: object) -> tuple[Record, Facts]:
    """Its batches are shuffled, so the checkpoint has other losses on the prepared text."""
    facts = replace(FACTS, checkpoint_step=500, val_measured=5.0, train_measured=5.0)
    return record(power_law(), val=np.array([2.0, 1.7]), **known), facts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "cause"),
    [
        (memorised(), "overfitting"),  # and it is no matter of the rate, of memory, of the targets
        (of_checkpoint(data__targets_next=0.1), "wrong_targets"),
        (of_checkpoint(), "reload_differs"),
        ((record(np.linspace(9, 8, 100), initial=9.0), FACTS), "initial_loss"),
        (
            (record(power_law()), replace(FACTS, overlap_share=0.5, repeated_share=0.9)),
            "overlap",
        ),
    ],
)
def test_what_follows_from_a_fault_is_not_said_beside_it(
    run: tuple[Record, Facts], cause: str
) -> None:
    assert faults(judge(*run)) == [cause]


def test_two_faults_of_which_neither_explains_the_other_are_both_said() -> None:
    run = record(power_law(), nonfinite=(505,), rate=np.append(cosine(40), np.zeros(60)))
    assert faults(judge(run, FACTS)) == ["nonfinite", "standstill"]
