"""A run's record and what else is known of it -> a verdict: faults, notes, phases of the curve."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose import (
    data,
    learning_rate,
    loss_values,
    settings,
    spikes,
    stalls,
    vitals,
)
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.bugs import bugs
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase, conclude
from lmtemplate.study.diagnose.phases import phases_of, rereading
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
    rereading,
    data.gap,
    spikes.spike_recovered,
    loss_values.noise,
    data.overtrained,
    stalls.pace,
)
PACE = ("overtrained", "plateau", "too_slow")


@dataclass(frozen=True)
class Verdict:
    """What was found, faults first; healthy if there is no fault."""

    findings: tuple[Finding, ...]
    phases: tuple[Phase, ...] = ()

    @property
    def healthy(self) -> bool:
        return not any(finding.fault for finding in self.findings)

    @property
    def headline(self) -> str:
        """The verdict in a few words: no rule can say that a run is healthy, only what it saw."""
        faults = sum(finding.fault for finding in self.findings)
        if faults:
            return f"not healthy: {faults} fault{'s' if faults > 1 else ''}"
        is_short = any(finding.name == "too_short" for finding in self.findings)
        return "too short to judge, and no fault seen" if is_short else "no fault seen"


def learns_little(trend: Trend, facts: Facts) -> bool:
    """Whether the best loss is above what token pairs give."""
    lowest = min([*trend.val_loss, *trend.smooth])
    return facts.bigram_loss is not None and lowest > facts.bigram_loss


def _without_blame(found: Finding | None, trend: Trend) -> Finding | None:
    """The learning rate is not blamed where steps have a usual size."""
    moved = trend.logged(vitals.UPDATE)[limit.ROWS_OF_ZEROS :]
    if found is None or not len(moved):
        return found
    is_low = found.name == "learning_rate_too_low" and np.median(moved) > limit.MOVES
    if is_low or (found.name == "learning_rate_too_high" and moved.max() < limit.LONG_STEPS):
        says = (
            f"{found.says} Steps of {np.median(moved):.2%} of the weights' size are not the cause."
        )
        return conclude("not_learning", says, *found.steps)
    return found


def _found(record: Record, facts: Facts, trend: Trend | None) -> list[Finding | None]:
    """Every rule's finding, in the order of their weight."""
    first = [loss_values.nonfinite(record), loss_values.initial_loss(record, facts)]
    if trend is None:
        return [*first]
    found = [*(broken := bugs(trend, facts)), first[1]]
    found += [data.overlap(trend, facts), data.repeated_data(trend, facts)]
    is_long = trend.rows >= limit.ROWS
    turned = data.overfitting(trend, facts) if is_long else None
    overfits = turned if turned and turned.name == "overfitting" else None
    lost = data.validation_lost(trend, facts)
    shown = [overfits, data.memorising(trend, facts)]
    # once validation has turned, what it does is no sign of the learning rate
    rules = [rule for rule in CURVE if not (overfits and rule is learning_rate.oscillating)]
    curve = (rule(trend, facts) for rule in rules if is_long)
    shown.append(_without_blame(lost or next(filter(None, curve), None), trend))
    shown.append(None if lost or overfits else turned)
    if any(shown) or learns_little(trend, facts):
        found.insert(0, settings.extreme_setting(trend, facts))
    notes = (rule(trend, facts) for rule in NOTE_RULES)
    return [first[0], *found, *(shown if not broken else ()), *notes]  # a bug explains the curve


def judge(record: Record, facts: Facts) -> Verdict:
    """Look at a run with every rule. Of the faults, the first is what matters most."""
    trend = trend_of(record, facts)
    found = [finding for finding in _found(record, facts, trend) if finding is not None]
    faults = [finding for finding in found if finding.fault]
    notes = [finding for finding in found if not finding.fault]
    if faults or {"gap", "rereading"} & {note.name for note in notes}:
        notes = [note for note in notes if note.name not in PACE]  # something else comes first
    elif any(note.name == "overtrained" for note in notes):
        notes = [note for note in notes if note.name not in PACE[1:]]
    is_judged = trend is not None and not faults and trend.rows >= limit.ROWS
    return Verdict((*faults, *notes), phases_of(trend) if trend and is_judged else ())
