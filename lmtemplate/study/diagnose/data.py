"""Facts, numbers and validation -> data trouble, bad numbers, overfitting."""

import math

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.learning_rate import Rule
from lmtemplate.study.diagnose.thresholds import (
    BY_HEART,
    COPIED_BYTES,
    COPIED_TOKENS,
    FOREIGN,
    OFF_START,
    REPEATED,
    SHARED,
    TURN,
    VALIDATIONS,
)
from lmtemplate.study.diagnose.trend import Trend


def nonfinite(record: Record) -> Finding | None:
    """A loss was NaN or infinite."""
    if not record.nonfinite_steps:
        return None
    first, last = record.nonfinite_steps[0], record.nonfinite_steps[-1]
    before = f"; the last finite one was {record.train_loss[-1]:.2f} nats" if len(record) else ""
    return Finding(
        "nonfinite",
        True,
        f"the loss was not a finite number at step {first:,}{before}.",
        "lower the learning rate, add warmup, clip gradients at 1.0, or compute in bf16 or fp32.",
        (first, last),
    )


def far_start(record: Record, facts: Facts) -> Finding | None:
    """The first loss is far above ln V."""
    first = record.initial_val_loss
    if first is None or not facts.vocab_size or first < math.log(facts.vocab_size) + OFF_START:
        return None
    return Finding(
        "initial_loss",
        True,
        f"before step 1 the loss is {first:.2f} nats; guessing evenly among {facts.vocab_size:,} "
        f"tokens gives ln V = {math.log(facts.vocab_size):.2f}.",
        "initialise the output layer smaller, or with zeros.",
        (0, 0),
    )


def overlap(trend: Trend, facts: Facts) -> Finding | None:
    """The validation text stands in the training text."""
    if facts.overlap_share is None or facts.overlap_share < SHARED:
        return None
    return Finding(
        "overlap",
        True,
        f"{facts.overlap_share:.0%} of the validation text stands word for word in the training "
        "text: validation measures memory.",
        "remove duplicate documents before the split.",
        (0, trend.last_step),
    )


def repeated(trend: Trend, facts: Facts) -> Finding | None:
    """The training text says the same again and again."""
    if facts.repeated_share is None or facts.repeated_share < REPEATED:
        return None
    return Finding(
        "repeated_data",
        True,
        f"{facts.repeated_share:.0%} of the training text stands in it more than once.",
        "remove duplicates from the training text.",
        (0, trend.last_step),
    )


def memorising(trend: Trend, facts: Facts) -> Finding | None:
    """The training text is known by heart: a sample repeats it, or nothing in it is unexpected."""
    text, tokens = facts.copied_text or "", facts.copied_tokens or 0
    if tokens >= COPIED_TOKENS and len(text.encode()) >= COPIED_BYTES:
        begin = " ".join(text.split())[:60]
        says = (
            f'a sample repeats {tokens} tokens of the training text word for word: "{begin} ...".'
        )
    elif len(trend.val_loss) and trend.final < BY_HEART < trend.val_loss[-1] - FOREIGN:
        says = (
            f"the training loss ends at {trend.final:.3f} nats, as if nothing came unexpected, and "
            f"validation at {trend.val_loss[-1]:.2f}."
        )
    else:
        return None
    return Finding(
        "memorising",
        True,
        says,
        "use more text, fewer passes, dropout or a smaller model.",
        (0, trend.last_step),
    )


def overfitting(trend: Trend, facts: Facts) -> Finding | None:
    """Validation has turned up while training went on falling."""
    if len(trend.val_loss) < VALIDATIONS:
        return None
    lowest = int(np.argmin(trend.val_loss))
    end = float(trend.val_loss[-2:].min())  # one high validation is no turn
    best, step = float(trend.val_loss[lowest]), int(trend.val_steps[lowest])
    then = float(trend.smooth[np.searchsorted(trend.steps, step).clip(max=len(trend.steps) - 1)])
    if end - best < TURN or then - trend.final < TURN:
        return None
    return Finding(
        "overfitting",
        True,
        f"validation is best at step {step:,} ({best:.2f} nats) and {end:.2f} at step "
        f"{int(trend.val_steps[-1]):,}, while training falls from {then:.2f} to {trend.final:.2f}.",
        "stop earlier, use more text, fewer passes, dropout, or a smaller model.",
        (step, int(trend.val_steps[-1])),
    )


DATA: tuple[Rule, ...] = (overlap, repeated)
