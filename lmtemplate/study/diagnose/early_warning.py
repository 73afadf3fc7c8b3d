"""The last rows of a run that still goes on -> a finding, where it is surely bad already."""

import numpy as np

from lmtemplate.record import Floats, Ints
from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.thresholds import (
    HUMP,
    JUMP,
    JUMP_NOISE,
    ROWS_ABOVE,
    ROWS_ABOVE_AFTER,
    ROWS_LOST,
    ROWS_STUCK,
    STEPS_FLAT,
    UNMOVED_YET,
)

WINDOW = 60  # rows that are looked at


def _above_start(steps: Ints, loss: Floats, start: float) -> Finding | None:
    learned = bool(loss.min() < start - HUMP)
    rows = ROWS_ABOVE_AFTER if learned else ROWS_ABOVE
    if len(loss) < rows or loss[-rows:].min() <= start + HUMP:
        return None
    return Finding(
        "spike_not_recovered" if learned else "learning_rate_too_high",
        True,
        f"the training loss is {loss[-1]:.2f} nats at step {steps[-1]:,}, above the {start:.2f} "
        f"that it began with, and has been so since step {steps[-rows]:,} at least.",
        "stop, and go back to an earlier checkpoint with a lower learning rate."
        if learned
        else "stop, and lower the learning rate by 10 times or add warmup.",
        (int(steps[-rows]), int(steps[-1])),
    )


def _lost(steps: Ints, loss: Floats) -> Finding | None:
    before, after = loss[:-ROWS_LOST], loss[-ROWS_LOST:]
    if len(before) < ROWS_LOST // 2 or after.min() <= before.min() + JUMP:
        return None
    level = float(np.median(before))
    if after.min() <= level + max(JUMP, JUMP_NOISE * float(before.std())):
        return None
    return Finding(
        "spike_not_recovered",
        True,
        f"the training loss has jumped from {level:.2f} nats and is {loss[-1]:.2f} at step "
        f"{steps[-1]:,}, {ROWS_LOST} rows later.",
        "stop, and go back to an earlier checkpoint with a lower learning rate.",
        (int(steps[-ROWS_LOST]), int(steps[-1])),
    )


def _stuck(steps: Ints, loss: Floats, start: float, facts: Facts) -> Finding | None:
    step, warmup = int(steps[-1]), facts.warmup_steps
    if warmup is None or len(loss) < ROWS_STUCK or step < max(STEPS_FLAT, 2 * warmup):
        return None
    if loss[-ROWS_STUCK:].min() <= start * (1 - UNMOVED_YET):
        return None
    return Finding(
        "learning_rate_too_low",
        True,
        f"the training loss is {loss[-1]:.2f} nats at step {step:,}, and {start:.2f} at the "
        "beginning: the model is not learning.",
        "stop, and raise the learning rate by 10 times; look whether all parameters are trained.",
        (int(steps[-ROWS_STUCK]), step),
    )


def turning_bad(steps: Ints, train_loss: Floats, start: float, facts: Facts) -> Finding | None:
    """A finding where a run is surely bad already: above its start, lost after a jump, or stuck.

    Costs some 10 microseconds, however long the run.

    Args:
        steps: (N,) of the rows so far, or of the last 60.
        train_loss: (N,) nats per token.
        start: the loss before step 1, or ln V.
        facts: what is known; the warmup, if anything.
    """
    steps, loss = steps[-WINDOW:], train_loss[-WINDOW:]
    if not len(loss):
        return None
    return (
        _above_start(steps, loss, start) or _lost(steps, loss) or _stuck(steps, loss, start, facts)
    )
