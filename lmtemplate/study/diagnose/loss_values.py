"""Single values of the loss -> NaN or inf, a start far from ln V, noise, too few rows."""

import math

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend


def nonfinite(record: Record) -> Finding | None:
    """A loss was NaN or inf."""
    if not record.nonfinite_steps:
        return None
    first, last = record.nonfinite_steps[0], record.nonfinite_steps[-1]
    before = f"; the last finite one was {record.train_loss[-1]:.2f} nats" if len(record) else ""
    return conclude("nonfinite", f"the loss was NaN or inf at step {first:,}{before}.", first, last)


def unusual_start(record: Record, facts: Facts) -> Finding | None:
    """The loss before step 1 is far from ln V: above it, or of weights that were trained before."""
    first, uniform = record.initial_val_loss, math.log(facts.vocab_size or 1)
    if first is None or not uniform or abs(first - uniform) < limit.OFF_START:
        return None
    says = f"before step 1 the loss is {first:.2f} nats; guessing evenly gives ln V = {uniform:.2f}"
    if first > uniform:
        return conclude("initial_loss", f"{says}.", 0, 0)
    return conclude("trained_before", f"{says}: the run began with trained weights.", 0, 0)


def noise(trend: Trend, facts: Facts) -> Finding | None:
    """Rows above the row before, in a loss that falls."""
    rises = np.diff(trend.loss)
    ups = rises[rises > 0]
    if not len(ups) or trend.final >= trend.loss[0] or ups.max() > limit.JUMP:
        return None
    says = (
        f"{len(ups)} of {len(rises)} times the training loss is above the row before, by up to "
        f"{ups.max():.2f} nats, while it falls: normal, since each row reads other text."
    )
    return conclude("noise", says, trend.steps[0], trend.last_step)


def too_short(trend: Trend, facts: Facts) -> Finding | None:
    """Few rows tell little."""
    if trend.rows >= limit.ROWS:
        return None
    says = f"{trend.rows} rows are too few to judge a trend; a rise among them may be noise."
    return conclude("too_short", says, trend.steps[0], trend.last_step)
