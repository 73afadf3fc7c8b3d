"""A run's record and what else is known of it -> a verdict: faults, notes, phases of the curve."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose import generalisation, learning_rate, loss_values, spikes, vitals
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.bugs import bugs
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase, conclude
from lmtemplate.study.diagnose.pace import model_too_small, pace
from lmtemplate.study.diagnose.phases import phases_of, rereading
from lmtemplate.study.diagnose.settings import clip_far_below, extreme_setting
from lmtemplate.study.diagnose.trend import Trend, trend_of

VerdictRule = Callable[[Trend, Facts], Finding | None]

# Each explains the whole curve, so the first one that holds is the answer.
CURVE: tuple[VerdictRule, ...] = (
    spikes.spike_not_recovered,
    generalisation.overfitting,
    generalisation.memorising,
    generalisation.validation_lost,
    learning_rate.early_hump,
    learning_rate.rising,
    learning_rate.adam_held_at_unigram,
    learning_rate.flat_at_unigram,
    learning_rate.oscillating,
    learning_rate.too_low,
    model_too_small,
    generalisation.turned_early,
)
AT_ANY_LENGTH = (generalisation.memorising, generalisation.validation_lost)
# Said beside it, and beside each other.
OTHERS: tuple[VerdictRule, ...] = (
    generalisation.repeated_text,
    loss_values.too_short,
    rereading,
    generalisation.gap,
    spikes.spike_recovered,
    loss_values.noise,
    clip_far_below,
)
# Finding -> others that follow from it, and are not said after it.
FOLLOWS = {
    "wrong_targets": ("other_tokens",),
    "padding": ("other_tokens",),
    "extreme_setting": ("parameters_not_trained", "clipped"),
    "standstill": ("parameters_not_trained", "gradients_pile_up"),
}


@dataclass(frozen=True)
class Verdict:
    """What was found, faults first; healthy if there is no fault."""

    findings: tuple[Finding, ...]
    phases: tuple[Phase, ...] = ()
    unseen: str = ""  # what no rule could look at, and what to do about it

    @property
    def healthy(self) -> bool:
        return not any(finding.fault for finding in self.findings)

    @property
    def headline(self) -> str:
        """The verdict in a few words: no rule can say that a run is healthy, only what it saw."""
        faults, unseen = sum(one.fault for one in self.findings), self.unseen and f"; {self.unseen}"
        if faults:
            return f"not healthy: {faults} fault{'s' if faults > 1 else ''}{unseen}"
        is_short = any(finding.name == "too_short" for finding in self.findings)
        return f"{'too short to judge, and ' if is_short else ''}no fault seen{unseen}"


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


def _causes(trend: Trend, facts: Facts) -> list[Finding | None]:
    """An extreme setting and bugs, or what the curve shows: these explain it."""
    rules = CURVE if trend.rows >= limit.ROWS else AT_ANY_LENGTH
    curve = next(filter(None, (rule(trend, facts) for rule in rules)), None)
    lowest = min([*trend.val_loss, *trend.smooth])
    learns_little = facts.bigram_loss is not None and lowest > facts.bigram_loss
    extreme = extreme_setting(trend, facts) if curve or learns_little else None
    found = [extreme, *bugs(trend, facts)]
    return found if any(found) else [_without_blame(curve, trend)]


def judge(record: Record, facts: Facts) -> Verdict:
    """Look at a run with every rule. Of the faults, the first is what matters most."""
    trend = trend_of(record, facts)
    found = [loss_values.nonfinite(record), loss_values.unusual_start(record, facts)]
    if trend is not None:
        found[1:1] = _causes(trend, facts)
        found += [rule(trend, facts) for rule in OTHERS]
    said = dict[str, Finding]()
    for finding in filter(None, found):
        if not any(finding.name in FOLLOWS.get(name, ()) for name in said):
            said.setdefault(finding.name, finding)
    is_sound = not any(finding.fault for finding in said.values())
    if trend is not None and is_sound and not {"gap", "rereading"} & said.keys():
        ending = pace(trend, facts)
        if ending is not None:
            said[ending.name] = ending
    is_judged = trend is not None and is_sound and trend.rows >= limit.ROWS
    findings = sorted(said.values(), key=lambda finding: not finding.fault)
    return Verdict((*findings,), phases_of(trend) if trend and is_judged else ())
