"""A curve -> its phases: rapid descent, slower decrease, a dip; and the falls of re-reading."""

import math

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase, conclude
from lmtemplate.study.diagnose.trend import Trend


def falls_of_rereading(trend: Trend) -> dict[int, float]:
    """Point where a new pass over the text begins -> nats by which the loss falls there at once.

    The fall is the distance, at that point, of the lines through the rows before and after it.
    """
    begins = (np.flatnonzero(np.diff(np.floor(trend.passes)) > 0) + 1).tolist()  # NaN: none
    ends, found = [0, *begins, len(trend.loss)], dict[int, float]()
    for before, begin, after in zip(ends, begins, ends[2:], strict=False):
        sides = np.arange(before + 1, begin), np.arange(begin + 1, after)  # a row there is of both
        sides = sides[0][-limit.ROWS_BESIDE :], sides[1][: limit.ROWS_BESIDE]
        if (rows := min(map(len, sides))) < limit.ROWS_BEFORE:
            continue
        one, other = (np.polyval(np.polyfit(x, trend.loss[x], 1), begin) for x in sides)
        error = trend.noise * math.sqrt(8 / rows)  # of the distance of two lines at their ends
        if one - other > max(limit.REREAD, limit.RISE_NOISE * error):
            found[begin] = float(one - other)
    return found


def rereading(trend: Trend, facts: Facts) -> Finding | None:
    """The training loss falls at once where a pass begins: the text is known, not the language."""
    falls = falls_of_rereading(trend)
    if not falls:
        return None
    steps = [int(trend.steps[point]) for point in falls]
    says = (
        f"where a new pass over the text begins (step {', '.join(f'{step:,}' for step in steps)}) "
        f"the training loss falls at once, by {sum(falls.values()):.2f} nats in all. This fall is "
        "re-reading; only validation tells what was learned of new text."
    )
    return conclude("rereading", says, steps[0], steps[-1])


def _phase(trend: Trend, name: str, first: int, last: int) -> Phase:
    """A phase from one point to another; it begins after the step of the point before."""
    before = float(trend.smooth[first - 1]) if first else trend.start
    begin = int(trend.steps[first - 1]) + 1 if first else 1
    after, end = float(trend.smooth[last]), int(trend.steps[last])
    per = abs(before - after) / max(1, end - begin + 1) * 100
    verb, name = ("falling", name) if after <= before else ("rising", "rise")
    says = f"from {before:.2f} to {after:.2f} nats, {verb} by {per:.2g} per 100 steps."
    return Phase(name, begin, end, says)


def _knee(trend: Trend, points: int) -> int:
    """The point, of the first `points`, where the curve is farthest below the line to its end."""
    steps, loss = trend.steps[:points].astype(float), trend.smooth[:points]
    share = (steps - steps[0]) / max(1.0, steps[-1] - steps[0])
    return int(np.argmax(loss[0] + share * (loss[-1] - loss[0]) - loss))


def _dip(trend: Trend) -> int:
    """The point from which a low learning rate makes the loss fall faster than before; N if none.

    The rate stays below a share of its peak from there on, the line through the loss is steeper
    than over as many points before, and no pass over the text begins on either stretch.
    """
    points = len(trend.loss)
    high = np.flatnonzero(~(trend.rate < limit.END_OF_DECAY * (trend.peak_rate or 0)))
    low = int(high[-1]) + 1 if len(high) else 0
    rows = points - low
    if not limit.ROWS_BEFORE <= rows <= low or max(falls_of_rereading(trend), default=0) >= (
        low - rows
    ):
        return points
    x = np.arange(rows)
    earlier, later = (
        -rows * np.polyfit(x, part, 1)[0]  # nats by which it falls
        for part in (trend.loss[low - rows : low], trend.loss[low:])
    )
    error = trend.noise * math.sqrt(24 / rows)  # of the difference of two such falls
    is_dip = later - earlier > max(limit.DIP, limit.RISE_NOISE * error)
    return low if is_dip else points


def phases_of(trend: Trend) -> tuple[Phase, ...]:
    """Rapid descent to the knee, slower decrease, and a dip if there is one, without gaps."""
    points, dip = len(trend.loss), _dip(trend)
    turn = max(1, _knee(trend, dip))
    found = [_phase(trend, "rapid descent", 0, min(turn, dip - 1))]
    if turn < dip - 1:
        found.append(_phase(trend, "slower steady decrease", turn + 1, dip - 1))
    if dip < points:
        found.append(_phase(trend, "dip at the end of the decay", dip, points - 1))
    return tuple(found)
