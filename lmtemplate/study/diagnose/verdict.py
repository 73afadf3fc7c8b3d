"""A run's record and what else is known of it -> a verdict: faults, notes, phases of the curve."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose import data, learning_rate, loss_values, spikes, stalls
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase
from lmtemplate.study.diagnose.trend import Trend, trend_of

VerdictRule = Callable[[Trend, Facts], Finding | None]

# Each explains the whole curve, so the first one that holds is the answer.
CURVE: tuple[VerdictRule, ...] = (
    spikes.spike_not_recovered,
    learning_rate.early_hump,
    learning_rate.rising,
    learning_rate.adam_held_at_unigram,
    stalls.flat_at_unigram,
    learning_rate.oscillating,
    learning_rate.too_low,
    stalls.model_too_small,
)
NOTE_RULES: tuple[VerdictRule, ...] = (
    loss_values.too_short,
    loss_values.trained_before,
    data.gap,
    spikes.spike_recovered,
    loss_values.noise,
    stalls.plateau,
    stalls.too_slow,
    data.tokens_per_parameter,
)


@dataclass(frozen=True)
class Verdict:
    """What was found, faults first; healthy if there is no fault."""

    findings: tuple[Finding, ...]
    phases: tuple[Phase, ...] = ()

    @property
    def healthy(self) -> bool:
        return not any(finding.fault for finding in self.findings)


def _phase(trend: Trend, name: str, first: int, last: int) -> Phase:
    """A phase from one point to another; it begins after the step of the point before."""
    before = float(trend.smooth[first - 1]) if first else trend.start
    begin = int(trend.steps[first - 1]) + 1 if first else 1
    after, end = float(trend.smooth[last]), int(trend.steps[last])
    per = (before - after) / max(1, end - begin + 1) * 100
    return Phase(
        name, begin, end, f"from {before:.2f} to {after:.2f} nats, {per:.3g} per 100 steps."
    )


def _knee(trend: Trend, points: int) -> int:
    """The point, of the first `points`, where the curve is farthest below the line to its end."""
    steps, loss = trend.steps[:points].astype(float), trend.smooth[:points]
    share = (steps - steps[0]) / max(1.0, steps[-1] - steps[0])
    return int(np.argmax(loss[0] + share * (loss[-1] - loss[0]) - loss))


def phases_of(trend: Trend) -> tuple[Phase, ...]:
    """Rapid descent to the knee, slower decrease, dip at the end of the decay, without gaps.

    The dip begins where the learning rate has fallen for good below a share of its peak.
    """
    points = decay = len(trend.loss)
    if trend.peak_rate:
        low = trend.rate < limit.END_OF_DECAY * trend.peak_rate  # an unknown rate is not low
        decay = int(np.flatnonzero(~low)[-1]) + 1
    if decay < 3:
        decay = points
    turn = max(1, _knee(trend, decay))
    found = [_phase(trend, "rapid descent", 0, min(turn, decay - 1))]
    if turn < decay - 1:
        found.append(_phase(trend, "slower steady decrease", turn + 1, decay - 1))
    if decay < points:
        found.append(_phase(trend, "dip at the end of the decay", decay, points - 1))
    return tuple(found)


def _found(record: Record, facts: Facts, trend: Trend | None) -> list[Finding]:
    """Every rule's finding, in the order of their weight."""
    found = [loss_values.nonfinite(record), loss_values.initial_loss(record, facts)]
    if trend is not None:
        found += [data.overlap(trend, facts), data.repeated_data(trend, facts)]
        turned = data.overfitting(trend, facts) if trend.rows >= limit.ROWS else None
        found += [turned, data.memorising(trend, facts)]
        if trend.rows >= limit.ROWS:
            # once validation has turned, what it does is no sign of the learning rate
            rules = [rule for rule in CURVE if not (turned and rule is learning_rate.oscillating)]
            found.append(next(filter(None, (rule(trend, facts) for rule in rules)), None))
        found += [rule(trend, facts) for rule in NOTE_RULES]
    return [finding for finding in found if finding is not None]


def judge(record: Record, facts: Facts) -> Verdict:
    """Look at a run with every rule. Of the faults, the first is what matters most."""
    trend = trend_of(record, facts)
    found = _found(record, facts, trend)
    faults = [finding for finding in found if finding.fault]
    notes = [finding for finding in found if not finding.fault]
    if faults:  # their advice comes before any about the pace
        notes = [finding for finding in notes if finding.name not in ("too_slow", "plateau")]
    if trend is None or faults or trend.rows < limit.ROWS:
        return Verdict((*faults, *notes))
    return Verdict(tuple(notes), phases_of(trend))
