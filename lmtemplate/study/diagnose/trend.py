"""A record -> its course: levels and noise by medians, which single rows do not move."""

import math
from dataclasses import dataclass

import numpy as np

from lmtemplate import metric_names
from lmtemplate.record import Floats, Ints, Record
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose import vitals
from lmtemplate.study.diagnose.finding import Facts

POINTS = 400  # a longer record is merged to this many points
ROWS_AROUND = 5  # the running median spans at least this many points
SHARE_AROUND = 1 / 25  # or this share of all points, if that is more
SHARE_OF_END = 1 / 10  # the final loss is the median of this last share of the points
ROWS_OF_END = 3  # and of at least this many
DEVIATIONS = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


def running_median(values: Floats, window: int) -> Floats:
    """(N,) -> (N,) medians of an odd number of values around each; of fewer at the ends."""
    side = window // 2
    padded = np.pad(values, side, constant_values=np.nan)
    around = np.lib.stride_tricks.sliding_window_view(padded, window)
    medians: Floats = np.nanmedian(around, axis=1)
    return medians


def spread(values: Floats) -> float:
    """A standard deviation that outliers do not move."""
    if not len(values):
        return 0.0
    return DEVIATIONS * float(np.median(np.abs(values - np.median(values))))


def row_noise(loss: Floats) -> float:
    """Standard deviation of rows about the line between their neighbours, whatever the trend."""
    if len(loss) < 3:
        return 0.0
    return spread(loss[1:-1] - (loss[:-2] + loss[2:]) / 2) / math.sqrt(1.5)


def swings(values: Floats, least: float) -> float:
    """Sum of the peaks of a curve (N,): each rise or the fall after it, whichever is smaller.

    Peaks of at most `least` are left out.
    """
    moves = np.diff(values)
    peaks = np.minimum(moves[:-1], -moves[1:])
    return float(peaks[peaks > least].sum())


def merged(values: Floats, points: int) -> Floats:
    """Medians of `points` groups of neighbours."""
    return np.array([np.median(group) for group in np.array_split(values, points)])


@dataclass(frozen=True)
class Trend:
    """A run's curves as the rules look at them: N points, none of which is missing."""

    record: Record
    steps: Ints  # (N,) last step of each point
    loss: Floats  # (N,) training loss in nats per token
    smooth: Floats  # (N,) its running median
    rate: Floats  # (N,) learning rate; NaN where unknown
    noise: float  # standard deviation of a point about its neighbours
    start: float  # loss of an untrained model: measured before step 1, or ln V, or the first rows'
    final: float  # median training loss at the end
    val_steps: Ints  # (M,)
    val_loss: Floats  # (M,)
    passes: Floats  # (N,) epochs of the training data so far; NaN where unknown

    @property
    def rows(self) -> int:
        """Rows of the record."""
        return len(self.record)

    def logged(self, name: str) -> Floats:
        """All values of this name that the record has."""
        values = self.record.values.get(name, np.zeros(0))
        return values[~np.isnan(values)]

    @property
    def updates(self) -> Floats:
        """(groups, N) sizes of steps beside those of weights, of each row; (0, N) if not logged."""
        names = [name for name in self.record.values if name.startswith(vitals.UPDATE)]
        return np.array([self.record.values[name] for name in names]).reshape(-1, self.rows)

    @property
    def begins_late(self) -> bool:
        """Whether the first row is that of a run already under way: a log of its later part."""
        steps = self.record.steps[:2]
        return self.record.initial_val_loss is None and steps[0] > limit.LATE * np.ptp(steps) > 0

    def level(self, first: float, last: float) -> float:
        """Median loss between two shares of the run, as 0.5 and 0.75."""
        first_row = min(int(first * len(self.loss)), len(self.loss) - 1)
        last_row = max(math.ceil(last * len(self.loss)), first_row + 1)
        return float(np.median(self.loss[first_row:last_row]))

    def step_at(self, share: float) -> int:
        """The step at this share of the points."""
        return int(self.steps[min(int(share * len(self.steps)), len(self.steps) - 1)])

    @property
    def peak_rate(self) -> float | None:
        """The highest learning rate; None where it was not logged."""
        known = self.rate[~np.isnan(self.rate)]
        return float(known.max()) if len(known) else None

    @property
    def gap(self) -> float | None:
        """The last validation loss less the final training loss; None without a validation."""
        return float(self.val_loss[-1]) - self.final if len(self.val_loss) else None

    @property
    def last_step(self) -> int:
        return int(self.steps[-1])


def _start(record: Record, facts: Facts) -> float:
    if record.initial_val_loss is not None:
        return record.initial_val_loss
    if facts.vocab_size:
        return math.log(facts.vocab_size)
    first = record.train_loss[:ROWS_AROUND]  # one row may be low by chance
    return float(max(first[0], np.median(first)))


def trend_of(record: Record, facts: Facts) -> Trend | None:
    """None where the record has no row."""
    rows = len(record)
    if not rows:
        return None
    points = min(rows, POINTS)
    last_rows = np.array([group[-1] for group in np.array_split(np.arange(rows), points)])
    loss = merged(record.train_loss, points)
    window = max(ROWS_AROUND, int(points * SHARE_AROUND)) // 2 * 2 + 1
    val_steps, val_loss = record.validations
    passes = record.values.get(metric_names.EPOCH, np.full(rows, math.nan))
    return Trend(
        record=record,
        steps=record.steps[last_rows],
        loss=loss,
        smooth=running_median(loss, window),
        rate=record.learning_rate[last_rows],
        noise=row_noise(loss),
        start=_start(record, facts),
        final=float(np.median(loss[-max(ROWS_OF_END, round(points * SHARE_OF_END)) :])),
        val_steps=val_steps,
        val_loss=val_loss,
        passes=passes[last_rows],
    )
