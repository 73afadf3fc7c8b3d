"""Intervals of few scores: tables, and simulations in which the truth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.experiments.statistics import (
    compare_groups,
    compare_pairs,
    pool,
    seeds_needed,
    seen_with,
    student_quantile,
)

DRAWS = 400
MOST = 0.05 + 3 * (0.05 * 0.95 / DRAWS) ** 0.5  # false positives: 5 %, and three errors of counting

Draw = Callable[[np.random.Generator, int], Floats]
NOISES: dict[str, Draw] = {
    "normal": lambda random, n: random.standard_normal(n),
    "skewed": lambda random, n: random.exponential(size=n),
    "one run in ten fails": lambda random, n: (
        random.standard_normal(n) + 20 * (random.random(n) < 0.1)
    ),
}


@pytest.mark.parametrize(
    ("chance", "degrees", "table"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.3027),
        (0.975, 4, 2.7764),
        (0.975, 8, 2.3060),
        (0.995, 4, 4.6041),
        (0.8, 8, 0.8889),
        (0.975, 1000, 1.9623),
    ],
)
def test_quantiles_are_those_of_the_tables(chance: float, degrees: float, table: float) -> None:
    assert student_quantile(chance, degrees) == pytest.approx(table, abs=1e-3)


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("noise", NOISES)
def test_arms_that_do_not_differ_are_called_different_in_5_percent_at_most(
    noise: str, seeds: int
) -> None:
    random, draw = np.random.default_rng(seeds), NOISES[noise]
    groups = [compare_groups(draw(random, seeds), draw(random, seeds)) for _ in range(DRAWS)]
    assert np.mean([estimate.is_seen for estimate in groups]) <= MOST
    if seeds > 2:
        shared = [draw(random, seeds) for _ in range(DRAWS)]
        pairs = [compare_pairs(s + draw(random, seeds), s + draw(random, seeds)) for s in shared]
        assert np.mean([estimate.is_seen for estimate in pairs]) <= MOST


def test_a_percentile_bootstrap_would_call_many_more_different() -> None:
    random, seeds, wrong = np.random.default_rng(0), 3, 0
    for _ in range(DRAWS):
        a, b = random.standard_normal((2, seeds))
        chosen = random.integers(seeds, size=(2, 500, seeds))
        low, high = np.quantile(b[chosen[1]].mean(1) - a[chosen[0]].mean(1), [0.025, 0.975])
        wrong += low > 0 or high < 0
    assert wrong / DRAWS > 2 * MOST


def test_an_interval_holds_the_true_difference_where_one_arm_is_noisier() -> None:
    random = np.random.default_rng(1)
    pairs = ((random.standard_normal(5), 2 + 4 * random.standard_normal(3)) for _ in range(DRAWS))
    held = [e.low <= 2 <= e.high for e in (compare_groups(a, b) for a, b in pairs)]
    assert np.mean(held) >= 1 - MOST - 0.01


def test_one_score_is_judged_by_the_noise_of_the_other_arm() -> None:
    random, wrong = np.random.default_rng(2), 0
    for _ in range(DRAWS):
        a, b = random.standard_normal(4), random.standard_normal(1)
        wrong += compare_groups(a, b, noise=pool([a, b])).is_seen
    assert wrong / DRAWS <= MOST


@pytest.mark.parametrize("paired", [False, True])
def test_a_difference_is_seen_as_often_as_promised(paired: bool) -> None:
    random, seeds, deviation, seen = np.random.default_rng(3), 5, 0.3, 0
    effect = seen_with(seeds, deviation, paired)
    for _ in range(DRAWS):
        a, b = deviation * random.standard_normal((2, seeds))
        if paired:
            seen += compare_pairs(np.zeros(seeds), a + effect).is_seen
        else:
            seen += compare_groups(a, b + effect).is_seen
    assert seen / DRAWS == pytest.approx(0.8, abs=0.07)


@pytest.mark.parametrize("paired", [False, True])
def test_the_seeds_needed_are_the_fewest_that_see_the_effect(paired: bool) -> None:
    seeds = seeds_needed(0.01, 0.008, paired)
    assert seen_with(seeds, 0.008, paired) <= 0.01 < seen_with(seeds - 1, 0.008, paired)


def test_noise_is_pooled_within_arms_and_not_between_them() -> None:
    noise = pool([np.array([1.0, 3.0]), np.array([100.0, 102.0, 104.0]), np.array([7.0])])
    assert noise is not None
    assert noise.degrees == 3
    assert noise.deviation == pytest.approx(((1 + 1 + 4 + 0 + 4) / 3) ** 0.5)
    assert pool([np.array([1.0])]) is None
