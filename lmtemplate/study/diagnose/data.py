"""Facts of the corpus, training beside validation -> data trouble, overfitting, memorising, gap."""

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend


def overlap(trend: Trend, facts: Facts) -> Finding | None:
    """The validation text stands in the training text."""
    if facts.overlap_share is None or facts.overlap_share < limit.SHARED:
        return None
    says = (
        f"{facts.overlap_share:.0%} of the validation text stands word for word in the training "
        "text: validation measures memory."
    )
    return conclude("overlap", says, 0, trend.last_step)


def repeated_data(trend: Trend, facts: Facts) -> Finding | None:
    """The training text says the same again and again."""
    if facts.repeated_share is None or facts.repeated_share < limit.REPEATED:
        return None
    says = f"{facts.repeated_share:.0%} of the training text stands in it more than once."
    return conclude("repeated_data", says, 0, trend.last_step)


def overfitting(trend: Trend, facts: Facts) -> Finding | None:
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


def memorising(trend: Trend, facts: Facts) -> Finding | None:
    """The training text is known by heart: a sample repeats it, or its loss is next to nothing."""
    text, tokens = facts.copied_text or "", facts.copied_tokens or 0
    if tokens >= limit.COPIED_TOKENS and len(text.encode()) >= limit.COPIED_BYTES:
        begin = " ".join(text.split())[:60]
        says = (
            f'a sample repeats {tokens} tokens of the training text word for word: "{begin} ...".'
        )
    elif len(trend.val_loss) and trend.final < limit.BY_HEART < trend.val_loss[-1] - limit.FOREIGN:
        says = (
            f"the training loss ends at {trend.final:.3f} nats, so the model predicts almost every "
            f"training token, and validation ends at {trend.val_loss[-1]:.2f}."
        )
    else:
        return None
    return conclude("memorising", says, 0, trend.last_step)


def gap(trend: Trend, facts: Facts) -> Finding | None:
    """Validation loss minus training loss, at the end."""
    if not len(trend.val_loss):
        return None
    size = float(trend.val_loss[-1]) - trend.final
    if size <= limit.GAP:
        return None
    says = (
        f"validation ends {size:.2f} nats above training (more than {limit.GAP}): the model knows "
        "its training text better than other text."
    )
    return conclude("gap", says, trend.val_steps[-1], trend.last_step)


def tokens_per_parameter(trend: Trend, facts: Facts) -> Finding | None:
    """Tokens per parameter beside the compute-optimal 20."""
    if not facts.tokens or not facts.parameters:
        return None
    ratio = facts.tokens / facts.parameters
    if limit.FEW_TOKENS <= ratio <= limit.MANY_TOKENS:
        return None
    says = (
        f"{ratio:,.3g} tokens per parameter ({facts.tokens:,} / {facts.parameters:,}); "
        f"{limit.TOKENS_PER_PARAMETER:.0f} are compute-optimal (Hoffmann et al. 2022)."
    )
    name = "undertrained" if ratio < limit.FEW_TOKENS else "overtrained"
    return conclude(name, says, 0, trend.last_step)
