"""A run's record and what else is known of it -> a verdict: faults, notes, phases of the curve."""

from collections.abc import Callable
from dataclasses import dataclass

from lmtemplate.record import Record
from lmtemplate.study.diagnose import (
    batches,
    data,
    learning_rate,
    loss_values,
    settings,
    spikes,
    stalls,
    weights,
)
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase
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
# Bugs of the data's way, of net and loop: no curve can be read while there is one.
BUGS: tuple[VerdictRule, ...] = (
    batches.wrong_targets,
    batches.padding,
    batches.training_text_changes,
    batches.other_tokens,
    weights.reads_ahead,
    weights.double_softmax,
    weights.standstill,
    weights.parameters_not_trained,
    weights.reload_differs,
    weights.gradients_pile_up,
    weights.too_good,
)
DATA: tuple[VerdictRule, ...] = (data.overlap, batches.repeated_data)
NOTE_RULES: tuple[VerdictRule, ...] = (
    loss_values.too_short,
    loss_values.trained_before,
    rereading,
    data.gap,
    spikes.spike_recovered,
    loss_values.noise,
    stalls.plateau,
    stalls.too_slow,
    data.overtrained,
)


@dataclass(frozen=True)
class Verdict:
    """What was found, faults first; healthy if there is no fault."""

    findings: tuple[Finding, ...]
    phases: tuple[Phase, ...] = ()

    @property
    def healthy(self) -> bool:
        return not any(finding.fault for finding in self.findings)


def learns_little(trend: Trend, facts: Facts) -> bool:
    """Whether the best loss is above what token pairs give."""
    lowest = min([*trend.val_loss, *trend.smooth])
    return facts.bigram_loss is not None and lowest > facts.bigram_loss


def _curve_fault(trend: Trend, facts: Facts, turned: Finding | None) -> Finding | None:
    """What the curve shows: a setting that explains it comes before the learning rate."""
    # once validation has turned, what it does is no sign of the learning rate
    rules = [rule for rule in CURVE if not (turned and rule is learning_rate.oscillating)]
    return next(filter(None, (rule(trend, facts) for rule in rules)), None)


def _found(record: Record, facts: Facts, trend: Trend | None) -> list[Finding]:
    """Every rule's finding, in the order of their weight."""
    found = [loss_values.nonfinite(record)]
    if trend is None:
        return [*filter(None, [*found, loss_values.initial_loss(record, facts)])]
    found += [rule(trend, facts) for rule in BUGS]
    found += [loss_values.initial_loss(record, facts)]
    found += [rule(trend, facts) for rule in DATA]
    is_long = trend.rows >= limit.ROWS
    turned = data.overfitting(trend, facts) if is_long else None
    overfits = turned if turned and turned.name == "overfitting" else None
    shown = [overfits, data.memorising(trend, facts)]
    lost = data.validation_lost(trend, facts)
    shown.append(lost or (_curve_fault(trend, facts, overfits) if is_long else None))
    shown += [weights.training_differs(trend, facts), None if lost or overfits else turned]
    if any(shown) or learns_little(trend, facts):
        found.append(settings.extreme_setting(trend, facts))
    notes = [rule(trend, facts) for rule in NOTE_RULES]
    return [finding for finding in (*found, *shown, *notes) if finding is not None]


def judge(record: Record, facts: Facts) -> Verdict:
    """Look at a run with every rule. Of the faults, the first is what matters most."""
    trend = trend_of(record, facts)
    found = _found(record, facts, trend)
    faults = [finding for finding in found if finding.fault]
    notes = {finding.name: finding for finding in found if not finding.fault}
    for name, others in limit.CONTRADICTED.items():
        if name in notes or (name == "fault" and faults):
            notes = {other: note for other, note in notes.items() if other not in others}
    if trend is None or faults or trend.rows < limit.ROWS:
        return Verdict((*faults, *notes.values()))
    return Verdict(tuple(notes.values()), phases_of(trend))
