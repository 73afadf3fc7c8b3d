"""Single values of the loss -> NaN or inf, a start far from ln V, noise, too few rows."""

import math

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.learning_rate import began_trained
from lmtemplate.study.diagnose.trend import Trend


def nonfinite(record: Record) -> Finding | None:
    """A loss was NaN or inf."""
    if not record.nonfinite_steps:
        return None
    first, last = record.nonfinite_steps[0], record.nonfinite_steps[-1]
    before = f"; the last finite one was {record.train_loss[-1]:.2f} nats" if len(record) else ""
    return conclude("nonfinite", f"the loss was NaN or inf at step {first:,}{before}.", first, last)


def initial_loss(record: Record, facts: Facts) -> Finding | None:
    """The loss before step 1 is far above ln V."""
    first, uniform = record.initial_val_loss, math.log(facts.vocab_size or 1)
    if first is None or not uniform or first < uniform + limit.OFF_START:
        return None
    says = (
        f"before step 1 the loss is {first:.2f} nats; guessing evenly gives ln V = {uniform:.2f}."
    )
    return conclude("initial_loss", says, 0, 0)


def trained_before(trend: Trend, facts: Facts) -> Finding | None:
    """The loss before step 1 is far below ln V."""
    if not facts.vocab_size or not began_trained(trend, facts):
        return None
    says = (
        f"before step 1 the loss is {trend.start:.2f} nats already; guessing evenly gives ln V = "
        f"{math.log(facts.vocab_size):.2f}: the run began with trained weights."
    )
    return conclude("trained_before", says, 0, 0)


def noise(trend: Trend, facts: Facts) -> Finding | None:
    """Rows above the row before, in a loss that falls."""
    rises = np.diff(trend.loss)
    ups = rises[rises > 0]
    if not len(ups) or trend.final >= trend.loss[0] or ups.max() > limit.JUMP:
        return None
    says = (
        f"{len(ups)} of {len(rises)} times the training loss is above the row before, by up to "
        f"{ups.max():.2f} nats, while it falls from {trend.loss[0]:.2f} to {trend.final:.2f}: "
        "normal, since each row reads other text."
    )
    return conclude("noise", says, trend.first_step, trend.last_step)


def too_short(trend: Trend, facts: Facts) -> Finding | None:
    """Few rows tell little."""
    if trend.rows >= limit.ROWS:
        return None
    says = f"{trend.rows} rows are too few to judge a trend; a rise among them may be noise."
    return conclude("too_short", says, trend.first_step, trend.last_step)
