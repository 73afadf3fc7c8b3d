"""Curves made of known stretches -> those stretches."""

import itertools
import math

import numpy as np
import pytest

from lmtemplate.study.diagnose.phases import decay_point, phases_of
from tests.study.records import START, cosine, power_law, trend


def bent(knee: int, rows: int = 100) -> np.ndarray:
    """Two straight lines that meet at a row."""
    return np.interp(np.arange(rows), [0, knee, rows - 1], [START, 2.0, 1.5])


@pytest.mark.parametrize("knee", [10, 30, 50])
def test_the_rapid_descent_ends_at_the_knee(knee: int) -> None:
    descent, steady = phases_of(trend(bent(knee), rate=np.full(100, 1e-3)))
    assert descent.name == "rapid descent"
    assert descent.last_step == pytest.approx(5 * (knee + 1), abs=15)
    assert steady.name == "slower steady decrease"


def test_phases_cover_the_run_without_gaps() -> None:
    phases = phases_of(trend(power_law()))
    assert phases[0].first_step == 1
    assert phases[-1].last_step == 500
    for one, next_one in itertools.pairwise(phases):
        assert next_one.first_step == one.last_step + 1


def test_a_decay_to_nothing_ends_in_a_dip() -> None:
    assert [phase.name for phase in phases_of(trend(power_law()))] == [
        "rapid descent",
        "slower steady decrease",
        "dip at the end of the decay",
    ]


def test_the_dip_begins_where_the_rate_is_low_for_good() -> None:
    found = trend(power_law(), rate=cosine())
    dip = phases_of(found)[-1]
    low = found.rate[found.steps >= dip.first_step] / found.rate.max()
    assert low.max() < 0.3
    assert low[0] > 0.25


@pytest.mark.parametrize("rate", [np.full(100, 1e-3), np.full(100, math.nan), np.zeros(100)])
def test_without_a_decay_there_is_no_dip(rate: np.ndarray) -> None:
    found = trend(power_law(), rate=rate)
    assert decay_point(found) == 100
    assert len(phases_of(found)) == 2


def test_phases_say_from_where_to_where() -> None:
    assert phases_of(trend(power_law()))[0].says.startswith(f"from {START:.2f} to ")
