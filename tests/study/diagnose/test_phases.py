"""Curves with and without each phase, and with and without falls where a pass begins."""

import itertools

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.finding import Phase
from lmtemplate.study.diagnose.phases import falls_of_rereading, phases_of, rereading
from lmtemplate.study.diagnose.trend import Trend
from lmtemplate.study.diagnose.verdict import judge
from tests.study.records import FACTS, START, cosine, power_law, record, trend

DIP = "dip at the end of the decay"


def names(phases: tuple[Phase, ...]) -> list[str]:
    return [phase.name for phase in phases]


def dipped(size: float = 0.4) -> Floats:
    """A power law that falls by so many nats more over the last third, where the rate is low."""
    return power_law() - np.interp(np.arange(100), [70, 99], [0, size])


def reread(fall: float, passes: float = 4.0) -> Trend:
    """A power law that falls at once where each pass over the text begins."""
    epoch = passes * np.arange(1, 101) / 100
    return trend(power_law() - fall * np.floor(epoch - 1e-9), data__epoch=epoch)


def test_a_healthy_run_names_the_three_phases() -> None:
    found = judge(record(dipped()), FACTS)
    assert names(found.phases) == ["rapid descent", "slower steady decrease", DIP]


def test_a_low_learning_rate_alone_is_no_dip() -> None:
    assert names(phases_of(trend(power_law()))) == ["rapid descent", "slower steady decrease"]


def test_a_rise_is_neither_a_dip_nor_a_negative_fall() -> None:
    phases = phases_of(trend(dipped(-0.15)))
    assert DIP not in names(phases)
    assert not any("-" in phase.says for phase in phases)
    rising = phases_of(trend(np.append(np.linspace(2.5, 2.0, 50), np.linspace(2.0, 2.6, 50))))
    assert rising[-1].name == "rise"
    assert "rising by 0.2" in rising[-1].says


@pytest.mark.parametrize("rate", [np.full(100, 1e-3), np.full(100, np.nan), np.zeros(100)])
def test_without_a_decay_there_is_no_dip(rate: Floats) -> None:
    assert DIP not in names(phases_of(trend(dipped(), rate=rate)))


@pytest.mark.parametrize("knee", [10, 30, 50])
def test_the_rapid_descent_ends_at_the_knee(knee: int) -> None:
    bent = np.interp(np.arange(100), [0, knee, 99], [START, 2.0, 1.5])
    descent, steady = phases_of(trend(bent, rate=np.full(100, 1e-3)))
    assert descent.last_step == pytest.approx(5 * (knee + 1), abs=15)
    assert steady.name == "slower steady decrease"
    assert descent.says.startswith(f"from {START:.2f} to ")


def test_phases_cover_the_run_without_gaps() -> None:
    phases = phases_of(trend(dipped()))
    assert (phases[0].first_step, phases[-1].last_step) == (1, 500)
    for one, next_one in itertools.pairwise(phases):
        assert next_one.first_step == one.last_step + 1


def test_the_dip_begins_where_the_rate_is_low_for_good() -> None:
    found = trend(dipped(), rate=cosine())
    low = found.rate[found.steps >= phases_of(found)[-1].first_step] / found.rate.max()
    assert low.max() < 0.3
    assert low[0] > 0.25


def test_falls_where_passes_begin_are_named_with_their_steps_and_sum() -> None:
    note = rereading(reread(0.3), FACTS)
    assert note is not None
    assert not note.fault
    assert "(step 125, 250, 375)" in note.says
    assert "by 0.9" in note.says


def test_the_fall_of_the_last_pass_is_no_dip() -> None:
    assert DIP not in names(phases_of(reread(0.3)))


@pytest.mark.parametrize("seed", range(5))
def test_without_a_fall_at_its_begin_a_pass_is_not_mentioned(seed: int) -> None:
    epoch = 4 * np.arange(1, 101) / 100
    assert falls_of_rereading(trend(power_law(seed=seed), data__epoch=epoch)) == {}
    assert falls_of_rereading(trend(power_law(seed=seed))) == {}
