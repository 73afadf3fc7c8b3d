"""Scores of two arms -> their mean difference, an interval around it, and the seeds that it takes.

An arm has 2 to 5 seeds as a rule. Resampling so few (a percentile bootstrap) gives intervals that
are far too narrow; Student's t keeps its promise, and errs to the safe side where one run in ten
goes wrong. tests/study/experiments/test_statistics.py simulates both.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmtemplate.record import Floats

LEVEL, POWER = 0.95, 0.8  # chance that an interval holds the truth; that a difference is seen
FEWEST_PAIRS = 3  # with two, the quantile of t is three times that of two arms of two
ANGLES = np.linspace(0, math.pi / 2, 4001)
MOST_SEEDS = 1000  # nobody trains more


@dataclass(frozen=True)
class Noise:
    """How much the score of an arm differs from seed to seed."""

    deviation: float  # standard deviation
    degrees: float  # of freedom


@dataclass(frozen=True)
class Estimate:
    """Mean score of an arm B less that of an arm A, with its interval."""

    difference: float
    low: float
    high: float
    paired: bool
    deviation: float  # of one score, or of one pair's difference

    @property
    def is_seen(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def student_quantile(chance: float, degrees: float) -> float:
    """The value that Student's t stays below with this chance, at least 0.5.

    With t = sqrt(degrees) tan(angle) the density is that of cos(angle) ** (degrees - 1), which is
    summed by trapezoids.
    """
    density = np.cos(ANGLES) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    angle = np.interp(2 * chance - 1, below / below[-1], ANGLES)
    return math.sqrt(degrees) * math.tan(angle)


def _around(
    difference: float, error: float, degrees: float, level: float, paired: bool, deviation: float
) -> Estimate:
    half = student_quantile((1 + level) / 2, degrees) * error
    return Estimate(difference, difference - half, difference + half, paired, deviation)


def pool(arms: list[Floats]) -> Noise | None:
    """The noise of arms that have more than one score, taken together; None where none has."""
    several = [scores for scores in arms if len(scores) > 1]
    degrees = sum(len(scores) - 1 for scores in several)
    squares = sum(float(((scores - scores.mean()) ** 2).sum()) for scores in several)
    return Noise(math.sqrt(squares / degrees), degrees) if degrees else None


def compare_pairs(a: Floats, b: Floats, level: float = LEVEL) -> Estimate:
    """Student's interval of the mean of b - a; (N,) and (N,) scores, those of one seed in a row."""
    differences = b - a
    count, deviation = len(differences), float(differences.std(ddof=1))
    error = deviation / math.sqrt(count)
    return _around(float(differences.mean()), error, count - 1, level, True, deviation)


def compare_groups(
    a: Floats, b: Floats, level: float = LEVEL, noise: Noise | None = None
) -> Estimate:
    """Welch's interval of the difference of means; (N,) and (M,) scores.

    Where an arm has one score alone, `noise` has to say how much such scores differ.
    """
    difference = float(b.mean() - a.mean())
    if min(len(a), len(b)) == 1:
        assert noise is not None
        error = noise.deviation * math.sqrt(1 / len(a) + 1 / len(b))
        return _around(difference, error, noise.degrees, level, False, noise.deviation)
    of_a, of_b = (float(scores.var(ddof=1)) / len(scores) for scores in (a, b))
    share = of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1)  # Welch and Satterthwaite
    degrees = (of_a + of_b) ** 2 / share if share else len(a) + len(b) - 2
    pooled = pool([a, b])
    assert pooled is not None
    return _around(difference, math.sqrt(of_a + of_b), degrees, level, False, pooled.deviation)


def seen_with(seeds: int, deviation: float, paired: bool, level: float = LEVEL) -> float:
    """The difference that so many seeds an arm see with a chance of POWER.

    Two quantiles of t times the standard error: close to the power of the noncentral t.
    """
    degrees = (seeds - 1) * (1 if paired else 2)
    error = deviation * math.sqrt((1 if paired else 2) / seeds)
    return error * (student_quantile((1 + level) / 2, degrees) + student_quantile(POWER, degrees))


def seeds_needed(effect: float, deviation: float, paired: bool, level: float = LEVEL) -> int:
    """The fewest seeds of an arm that see a difference with a chance of POWER; MOST_SEEDS at most.

    Args:
        effect: the difference to be seen, above 0.
        deviation: standard deviation of one score, or of one pair's difference if `paired`.
        paired: whether the arms share their seeds.
        level: chance that an interval holds the truth.
    """
    low, high = FEWEST_PAIRS if paired else 2, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        if seen_with(middle, deviation, paired, level) <= effect:
            high = middle
        else:
            low = middle + 1
    return low
