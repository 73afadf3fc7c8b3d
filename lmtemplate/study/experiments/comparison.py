"""Scores of two arms -> whether one is better, in a sentence that claims no more than was seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtemplate.record import Floats
from lmtemplate.study.experiments.statistics import (
    FEWEST_PAIRS,
    LEVEL,
    Estimate,
    Noise,
    compare_groups,
    compare_pairs,
    pool,
    seeds_needed,
)

Scores = dict[Any, float]  # seed -> score


@dataclass(frozen=True)
class Comparison:
    """What arm B's scores say against arm A's; lower is better."""

    a: str  # the arm that B is compared with
    b: str
    seeds: tuple[int, int]  # how many scores A has, and B
    unit: str  # of the scores
    effect: float  # the difference that one would want to see
    level: float  # chance that the interval holds the truth
    difference: float | None = None  # mean of B less mean of A; None without a score on each side
    estimate: Estimate | None = None  # the same with its interval; None where no noise is known
    noise: Noise | None = None  # between the seeds of one arm
    noise_from: str = ""  # the arms that tell of the noise, where A and B do not

    @property
    def better(self) -> str | None:
        """The name of the better arm; None where none can be seen."""
        if self.estimate is None or not self.estimate.is_seen:
            return None
        return self.b if self.estimate.high < 0 else self.a

    @property
    def more_seeds(self) -> int | None:
        """How many more seeds an arm needs to see the effect; None where the noise is not known."""
        if self.estimate is None:
            return None
        wanted = seeds_needed(
            self.effect, self.estimate.deviation, self.estimate.paired, self.level
        )
        return max(0, wanted - min(self.seeds))

    @property
    def basis(self) -> str:
        """The seeds behind the sentence: "5 seeds each, paired"."""
        a, b = self.seeds
        count = f"{a} seed{'s' * (a > 1)} each" if a == b else f"{a} and {b} seeds"
        paired = ", paired" if self.estimate and self.estimate.paired else ""
        return f"{count}{paired}{f', noise of {self.noise_from}' if self.noise_from else ''}"

    @property
    def sentence(self) -> str:
        """What can be concluded."""
        none = f"no difference can be seen between {self.a} and {self.b}"
        if self.difference is None:
            missing = " and ".join(
                n for n, s in zip((self.a, self.b), self.seeds, strict=True) if not s
            )
            return f"{none}: {missing} has no validation to compare"
        if self.estimate is None:
            return (
                f"one seed on each side cannot tell {self.a} from {self.b}: how much seeds differ is not "
                f"known, so no difference can be seen ({self.b} is {less_or_more(self.difference)} here); "
                "fit --seeds 5 makes more"
            )
        if self.better:
            least, most = sorted(map(abs, (self.estimate.low, self.estimate.high)))
            worse = self.a if self.better == self.b else self.b
            return (
                f"{self.better} is better than {worse} by {least:.4f} to {most:.4f} {self.unit} "
                f"({self.basis})"
            )
        more = self.more_seeds
        needed = f"about {more:,} more seeds each would be needed to see {self.effect:g}"
        return (
            f"{none}: {self.b} is from {less_or_more(self.estimate.low)} to "
            f"{less_or_more(self.estimate.high)}, in {self.unit} ({self.basis}); "
            f"{needed if more else f'{self.effect:g} would have been seen'}"
        )

    @property
    def against_noise(self) -> str:
        """The difference beside what seeds alone do."""
        if self.difference is None or self.noise is None or not self.noise.deviation:
            return ""
        ratio = abs(self.difference) / self.noise.deviation
        return (
            f"{self.b} less {self.a}: {self.difference:+.4f}, {ratio:.1f} times the standard deviation "
            f"between seeds ({self.noise.deviation:.4f})"
        )


def less_or_more(difference: float) -> str:
    """-0.01 -> "0.0100 better"."""
    return f"{abs(difference):.4f} {'better' if difference < 0 else 'worse'}"


def compare_arms(
    a: tuple[str, Scores],
    b: tuple[str, Scores],
    *,
    unit: str,
    effect: float,
    level: float,
    noise: Noise | None,
    noise_from: str = "",
) -> Comparison:
    """Compare two named arms, by pairs where three seeds or more are in both.

    The noise, as of other arms, is needed where one of the two has a single seed.
    """
    (name_a, of_a), (name_b, of_b) = a, b
    seeds = (len(of_a), len(of_b))
    if not all(seeds):
        return Comparison(name_a, name_b, seeds, unit, effect, level)
    common = [seed for seed in of_a if seed is not None and seed in of_b]
    estimate = None
    if len(common) >= FEWEST_PAIRS:
        pairs = np.array([(of_a[seed], of_b[seed]) for seed in common])
        estimate, seeds = compare_pairs(pairs[:, 0], pairs[:, 1], level), (len(common),) * 2
    elif min(seeds) > 1 or noise is not None:
        estimate = compare_groups(
            np.array([*of_a.values()]), np.array([*of_b.values()]), level, noise
        )
    difference = float(np.mean([*of_b.values()]) - np.mean([*of_a.values()]))
    difference = estimate.difference if estimate else difference
    said = noise_from if noise and min(seeds) == 1 else ""
    return Comparison(name_a, name_b, seeds, unit, effect, level, difference, estimate, noise, said)


def compare_all(
    labels: list[str],
    scores: list[Scores],
    unit: str,
    effect: float,
    others: Callable[[], list[Floats]] = list,
) -> list[Comparison]:
    """Every arm against the first, at a level that lets all intervals hold together.

    `others` gives scores of earlier runs like these, where one seed an arm says nothing of noise.
    """
    values = [np.array([*of_arm.values()]) for of_arm in scores]
    found = []
    for b in range(1, len(labels)):
        noise, source = pool([values[0], values[b]]), labels[b if len(values[0]) < 2 else 0]
        if noise is None:
            noise, source = pool(values), "the other arms"
        if noise is None:
            noise, source = pool(others()), "earlier seeds in the ledger"
        found.append(
            compare_arms(
                (labels[0], scores[0]),
                (labels[b], scores[b]),
                unit=unit,
                effect=effect,
                level=1 - (1 - LEVEL) / (len(labels) - 1),
                noise=noise,
                noise_from=source,
            )
        )
    return found
