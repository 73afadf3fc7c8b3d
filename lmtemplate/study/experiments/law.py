"""Parameters, tokens and losses of some runs -> L(N, D) = E + A / N^a + B / D^b, and what follows.

Hoffmann et al. 2022, section 3.3 (approach 3).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtemplate.record import Floats

DELTA = 1e-3  # Huber's, of log losses
MOST_ITERATIONS = 300
RESAMPLED = 100  # sets of runs, for the intervals
MIDDLE = (5, 95)  # percentiles that an interval ends at
SMALLEST_EXPONENT = 0.01  # exponents and terms that are not told from 0 stay above it
LARGEST_EXPONENT = 5.0  # of a loss that falls in one step, where no power is large enough


@dataclass(frozen=True)
class Law:
    """E is the loss that no model and no data can lower; all in nats per token."""

    E: float
    A: float
    a: float
    B: float
    b: float

    def loss(self, parameters: float | Floats, tokens: float | Floats) -> Floats:
        return np.asarray(self.E + self.A / parameters**self.a + self.B / tokens**self.b)

    def best_split(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens with the lowest loss for 6 N D FLOPs (equation 4 there), 1 or more."""
        log_ratio = np.log(self.a * self.A) - np.log(self.b * self.B)
        log_product = np.log(flops / 6)
        log_parameters = (log_ratio + self.b * log_product) / (self.a + self.b)
        parameters = float(np.exp(np.clip(log_parameters, 0, log_product)))
        return parameters, flops / (6 * parameters)


def _terms(theta: Floats, logs: Floats) -> Floats:
    """(5,) log A, a, log B, b, log E; (2, R) log N, log D -> (3, R) logs of the three terms."""
    log_A, a, log_B, b, log_E = theta
    return np.stack((log_A - a * logs[0], log_B - b * logs[1], np.full(logs.shape[1], log_E)))


def _objective(theta: Floats, logs: Floats, log_losses: Floats) -> float:
    """Huber's loss of log losses, in units of DELTA."""
    errors = np.abs(np.logaddexp.reduce(_terms(theta, logs)) - log_losses) / DELTA
    return float(np.where(errors < 1, errors**2 / 2, errors - 0.5).mean())


def _minimise(theta: Floats, logs: Floats, log_losses: Floats) -> tuple[float, Floats]:
    """The nearest minimum and where it is: Levenberg and Marquardt's steps, with Huber's weights."""
    value, damping = _objective(theta, logs, log_losses), 1e-3
    least = SMALLEST_EXPONENT
    lowest = np.array([log_losses.min() + np.log(least), least] * 3)[:5]
    highest = np.array([np.inf, LARGEST_EXPONENT] * 3)[:5]
    for _ in range(MOST_ITERATIONS):
        terms = _terms(theta, logs)
        total = np.logaddexp.reduce(terms)
        of_N, of_D, of_E = np.exp(terms - total)
        slopes = np.stack((of_N, -of_N * logs[0], of_D, -of_D * logs[1], of_E)) / DELTA
        errors = (total - log_losses) / DELTA
        weighted = slopes / np.maximum(1, np.abs(errors))
        curvature = weighted @ slopes.T
        curvature += damping * np.diag(np.diag(curvature) + 1e-12)
        step = np.linalg.lstsq(curvature, weighted @ errors, rcond=None)[0]
        new = np.clip(theta - step, lowest, highest)
        if (new_value := _objective(new, logs, log_losses)) < value:
            theta, value, damping = new, new_value, max(damping / 3, 1e-12)
        elif (damping := damping * 4) > 1e12:
            break
    return value, theta


def _as_law(theta: Floats) -> Law:
    log_A, a, log_B, b, log_E = theta.tolist()
    return Law(float(np.exp(log_E)), float(np.exp(log_A)), a, float(np.exp(log_B)), b)


def fit_law(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]
) -> tuple[Law, list[Law]]:
    """The law of these runs, and those of resampled sets of them (for intervals).

    Args:
        parameters: (R,) N of each run, whose logarithms are not all the same.
        tokens: (R,) D of each run, likewise.
        losses: (R,) validation losses in nats per token, above 0.
    """
    logs, log_losses = np.log([parameters, tokens]), np.log(losses)
    lowest = log_losses.min()
    starts = (
        np.array([a * logs[0].min() + log_A, a, b * logs[1].min() + log_B, b, lowest + log_E])
        for a, b in itertools.product((0.2, 0.5, 1.0), repeat=2)
        for log_A, log_B in ((0.0, 0.0), (-1.0, 0.5))
        for log_E in np.log([0.3, 0.9])
    )
    best = min((_minimise(start, logs, log_losses) for start in starts), key=lambda one: one[0])[1]
    draws, laws = np.random.default_rng(0), list[Law]()
    while len(laws) < RESAMPLED:
        rows = draws.integers(len(losses), size=len(losses))
        if min(len({*of[rows].tolist()}) for of in logs) > 1:
            laws.append(_as_law(_minimise(best, logs[:, rows], log_losses[rows])[1]))
    return _as_law(best), laws


def interval(values: Sequence[Any]) -> tuple[Any, Any]:
    """The middle nine tenths of numbers; of each place, as lists, where the values are arrays."""
    low, high = np.nanpercentile(values, MIDDLE, axis=0).tolist()
    return low, high
