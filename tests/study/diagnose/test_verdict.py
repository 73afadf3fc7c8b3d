"""Whole records of known truth -> healthy, or the fault that was put in."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.record import Record
from lmtemplate.study.diagnose.finding import FAULTS, Facts
from lmtemplate.study.diagnose.verdict import Verdict, judge, phases_of
from tests.study.records import FACTS, START, UNIGRAM, cosine, power_law, record, trend

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
        "shuffled_labels": (record(flat), FACTS),
        "model_too_small": (
            record(power_law(end=2.8, noise=0.01)),
            replace(FACTS, tokens=9_000_000),
        ),
    }
    return records[kind]


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_named(kind: str) -> None:
    found = judge(*faulty(kind))
    assert faults(found) == [kind]
    assert not found.healthy
    assert found.phases == ()


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_has_evidence_and_advice(kind: str) -> None:
    finding = judge(*faulty(kind)).findings[0]
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


def test_a_healthy_run_names_the_three_phases() -> None:
    found = judge(record(power_law()), FACTS)
    assert [phase.name for phase in found.phases] == [
        "rapid descent",
        "slower steady decrease",
        "dip at the end of the decay",
    ]


@pytest.mark.parametrize("knee", [10, 30, 50])
def test_the_rapid_descent_ends_at_the_knee(knee: int) -> None:
    bent = np.interp(np.arange(100), [0, knee, 99], [START, 2.0, 1.5])
    descent, steady = phases_of(trend(bent, rate=np.full(100, 1e-3)))
    assert descent.last_step == pytest.approx(5 * (knee + 1), abs=15)
    assert steady.name == "slower steady decrease"
    assert descent.says.startswith(f"from {START:.2f} to ")


def test_phases_cover_the_run_without_gaps() -> None:
    phases = phases_of(trend(power_law()))
    assert (phases[0].first_step, phases[-1].last_step) == (1, 500)
    for one, next_one in itertools.pairwise(phases):
        assert next_one.first_step == one.last_step + 1


def test_the_dip_begins_where_the_rate_is_low_for_good() -> None:
    found = trend(power_law(), rate=cosine())
    low = found.rate[found.steps >= phases_of(found)[-1].first_step] / found.rate.max()
    assert low.max() < 0.3
    assert low[0] > 0.25


@pytest.mark.parametrize("rate", [np.full(100, 1e-3), np.full(100, math.nan), np.zeros(100)])
def test_without_a_decay_there_is_no_dip(rate: np.ndarray) -> None:
    assert len(phases_of(trend(power_law(), rate=rate))) == 2
