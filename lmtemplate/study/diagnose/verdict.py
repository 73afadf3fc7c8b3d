"""A run's record and what else is known of it -> a verdict: faults, notes, phases of the curve."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose import data, learning_rate, spikes, vitals
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.bugs import bugs, clipped, extreme_setting
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase, conclude
from lmtemplate.study.diagnose.phases import phases_of, rereading
from lmtemplate.study.diagnose.trend import Trend, trend_of

VerdictRule = Callable[[Trend, Facts], Finding | None]

# Each explains the whole curve, so the first one that holds is the answer.
CURVE: tuple[VerdictRule, ...] = (
    spikes.spike_not_recovered,
    data.overfitting,
    data.memorising,
    data.validation_lost,
    learning_rate.early_hump,
    learning_rate.rising,
    learning_rate.adam_held_at_unigram,
    learning_rate.flat_at_unigram,
    learning_rate.oscillating,
    learning_rate.too_low,
    learning_rate.model_too_small,
    data.turned_early,
)
AT_ANY_LENGTH = (data.memorising, data.validation_lost)
NOTE_RULES: tuple[VerdictRule, ...] = (
    spikes.too_short,
    spikes.trained_before,
    rereading,
    data.gap,
    spikes.spike_recovered,
    spikes.noise,
    clipped,
)
# What is said of the pace, by the first that holds, where nothing else comes first.
PACE_RULES = (data.overtrained, learning_rate.pace)
# Finding -> others that follow from it, and are not said after it.
FOLLOWS = {
    "wrong_targets": ("other_tokens",),
    "padding": ("other_tokens",),
    "overlap": ("repeated_data",),
    "extreme_setting": ("parameters_not_trained", "clipped"),
}


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


def _first(rules: Iterable[VerdictRule], trend: Trend, facts: Facts) -> Finding | None:
    """What the first rule that holds has found."""
    return next(filter(None, (rule(trend, facts) for rule in rules)), None)


def _faults(trend: Trend, facts: Facts) -> Iterator[Finding | None]:
    """In the order of their weight. A bug or an extreme setting explains the curve."""
    curve = _first(CURVE if trend.rows >= limit.ROWS else AT_ANY_LENGTH, trend, facts)
    is_suspect = curve is not None or learns_little(trend, facts)
    causes = [extreme_setting(trend, facts) if is_suspect else None, *bugs(trend, facts)]
    yield from causes
    yield spikes.initial_loss(trend.record, facts)
    yield data.overlap(trend, facts)
    yield data.repeated_data(trend, facts)
    yield None if any(causes) else _without_blame(curve, trend)


def _notes(trend: Trend, facts: Facts, is_sound: bool) -> Iterator[Finding | None]:
    notes = [note for rule in NOTE_RULES if (note := rule(trend, facts))]
    yield from notes
    if is_sound and not {"gap", "rereading"} & {note.name for note in notes}:
        yield _first(PACE_RULES, trend, facts)


def judge(record: Record, facts: Facts) -> Verdict:
    """Look at a run with every rule. Of the faults, the first is what matters most."""
    trend, said = trend_of(record, facts), dict[str, Finding]()
    found = [spikes.nonfinite(record)]
    found += _faults(trend, facts) if trend else [spikes.initial_loss(record, facts)]
    is_sound = not any(found)
    found += _notes(trend, facts, is_sound) if trend else ()
    for finding in filter(None, found):
        if not any(finding.name in FOLLOWS.get(name, ()) for name in said):
            said.setdefault(finding.name, finding)
    is_judged = trend and is_sound and trend.rows >= limit.ROWS
    return Verdict((*said.values(),), phases_of(trend) if trend and is_judged else ())
