"""A healthy curve -> its phases: rapid descent, slower steady decrease, dip at the end of decay."""

import numpy as np

from lmtemplate.study.diagnose.finding import Phase
from lmtemplate.study.diagnose.thresholds import END_OF_DECAY
from lmtemplate.study.diagnose.trend import Trend


def decay_point(trend: Trend) -> int:
    """The first point of the last stretch at a low rate; N where the rate does not end low."""
    peak, points = trend.peak_rate, len(trend.rate)
    if not peak:
        return points
    high = np.flatnonzero(~(trend.rate < END_OF_DECAY * peak))  # unknown is not low
    return int(high[-1]) + 1 if len(high) else points


def knee(trend: Trend, points: int) -> int:
    """The point, of the first so many, where the curve is farthest below the line to its end."""
    steps, loss = trend.steps[:points].astype(float), trend.smooth[:points]
    share = (steps - steps[0]) / max(1.0, steps[-1] - steps[0])
    line = loss[0] + share * (loss[-1] - loss[0])
    return int(np.argmax(line - loss))


def _phase(trend: Trend, name: str, first: int, last: int) -> Phase:
    """A phase from one point to another; it begins after the step of the point before."""
    before = trend.start if first == 0 else float(trend.smooth[first - 1])
    after = float(trend.smooth[last])
    begin = int(trend.steps[first - 1]) + 1 if first else 1
    end = int(trend.steps[last])
    per = (before - after) / max(1, end - begin + 1) * 100
    says = f"from {before:.2f} to {after:.2f} nats, {per:.3g} per 100 steps."
    return Phase(name, begin, end, says)


def phases_of(trend: Trend) -> tuple[Phase, ...]:
    """Up to three phases that cover the run without gaps.

    The descent ends at the knee of the curve; the dip begins where the rate has fallen for good
    below a share of its peak.
    """
    points = len(trend.loss)
    decay = decay_point(trend)
    if decay < 3:
        decay = points
    turn = max(1, knee(trend, decay))
    found = [_phase(trend, "rapid descent", 0, min(turn, decay - 1))]
    if turn < decay - 1:
        found.append(_phase(trend, "slower steady decrease", turn + 1, decay - 1))
    if decay < points:
        found.append(_phase(trend, "dip at the end of the decay", decay, points - 1))
    return tuple(found)
