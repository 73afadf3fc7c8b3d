"""Facts of the corpus, training beside validation -> data trouble, overfitting, memorising, gap."""

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend


def repeated_text(trend: Trend, facts: Facts) -> Finding | None:
    """The validation text stands in the training text, or the training text repeats itself."""
    shared, repeated = facts.overlap_share or 0.0, facts.repeated_share or 0.0
    if shared >= limit.SHARED:
        says = f"{shared:.0%} of the validation text stands word for word in the training text."
        return conclude("overlap", says, 0, trend.last_step)
    if repeated >= limit.REPEATED:
        says = f"{repeated:.0%} of the training text stands in it more than once."
        return conclude("repeated_data", says, 0, trend.last_step)
    return None


def _turn(trend: Trend) -> Finding | None:
    """Validation has turned up while training went on falling."""
    if len(trend.val_loss) < limit.VALIDATIONS:
        return None
    lowest = int(np.argmin(trend.val_loss))
    end = float(trend.val_loss[-2:].min())  # one high validation is no turn
    best, step = float(trend.val_loss[lowest]), trend.val_steps[lowest]
    then = float(trend.smooth[np.searchsorted(trend.steps, step).clip(max=len(trend.steps) - 1)])
    if end - best < limit.TURN or then - trend.final < limit.TURN:
        return None
    says = (
        f"validation is best at step {step:,} ({best:.2f} nats) and {end:.2f} at step "
        f"{trend.val_steps[-1]:,}, while training falls from {then:.2f} to {trend.final:.2f}."
    )
    return conclude("overfitting", says, step, trend.val_steps[-1])


def overfitting(trend: Trend, facts: Facts) -> Finding | None:
    """Validation has turned up, on text of which some was read before."""
    read_again = facts.passes is None or facts.passes >= limit.ONE_PASS
    return _turn(trend) if read_again else None


def turned_early(trend: Trend, facts: Facts) -> Finding | None:
    """Validation has turned up within the first pass: what is read has changed."""
    turn, passes = _turn(trend), facts.passes
    if turn is None or passes is None or passes >= limit.ONE_PASS:
        return None
    says = f"{turn.says} Nothing was read twice ({passes:.2f} passes): no overfitting, other text."
    is_lost = trend.val_loss[-2:].min() > trend.start + limit.WORSE
    name = "validation_lost" if is_lost else "training_text_changes"
    return conclude(name, says, *turn.steps)


def validation_lost(trend: Trend, facts: Facts) -> Finding | None:
    """Every validation is worse than the untrained model; needs no trend."""
    losses, start = trend.val_loss, trend.record.initial_val_loss
    least = limit.WORSE if len(losses) > 1 else limit.FEW_WORSE
    if not len(losses) or start is None or losses.min() <= start + least:
        return None
    says = f"every validation is worse than the untrained model ({start:.2f} nats): the best is"
    says += f" {losses.min():.2f}, the last {losses[-1]:.2f}; training ends at {trend.final:.2f}."
    name = "learning_rate_too_high" if trend.final > start else "validation_lost"
    return conclude(name, says, 0, trend.last_step)


def memorising(trend: Trend, facts: Facts) -> Finding | None:
    """The training text is known by heart: a sample repeats it, or its loss is next to nothing."""
    text, tokens = facts.copied_text or "", facts.copied_tokens or 0
    if tokens >= limit.COPIED_TOKENS and len(text.encode()) >= limit.COPIED_BYTES:
        begin = " ".join(text.split())[:60]
        says = f'a sample repeats {tokens} tokens of the training text in a row: "{begin} ...".'
    elif len(trend.val_loss) and trend.final < limit.BY_HEART < trend.val_loss[-1] - limit.FOREIGN:
        says = f"the training loss ends at {trend.final:.3f} nats, so almost every token is known"
        says += f" by heart, and validation at {trend.val_loss[-1]:.2f}."
    else:
        return None
    return conclude("memorising", says, 0, trend.last_step)


def gap(trend: Trend, facts: Facts) -> Finding | None:
    """Validation loss minus training loss, at the end."""
    if trend.gap is None or trend.gap <= limit.GAP:
        return None
    says = f"validation ends {trend.gap:.2f} nats above training (more than {limit.GAP}): the "
    says += "model knows its training text better than other text."
    return conclude("gap", says, trend.val_steps[-1], trend.last_step)
