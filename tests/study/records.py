"""Curves with known truth -> records, for the tests of rules."""

import math

import numpy as np

from lmtemplate.record import Floats, Record
from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.trend import Trend, trend_of

VOCABULARY = 64
START = math.log(VOCABULARY)  # 4.16
UNIGRAM, BIGRAM = 3.2, 2.4
FACTS = Facts(
    max_steps=500,
    warmup_steps=20,
    optimizer="AdamW",
    vocab_size=VOCABULARY,
    parameters=10_000,
    tokens=200_000,
    unigram_loss=UNIGRAM,
    bigram_loss=BIGRAM,
)


def power_law(rows: int = 100, end: float = 1.5, noise: float = 0.03, seed: int = 0) -> Floats:
    """(rows,) a fall as of scaling laws, from START nearly to `end`, with the noise of batches."""
    random = np.random.default_rng(seed)
    fall = (1 + np.arange(rows) / rows * 40) ** -1.2
    return end + (START - end) * fall + noise * random.standard_normal(rows)


def stopping(level: float, rows: int = 100) -> Floats:
    """(rows,) a fast fall to a level and no further, with the noise of batches."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(rows)
    return level + (START - level) * np.exp(-np.arange(rows) / 3) + noise


def cosine(rows: int = 100, peak: float = 1e-3, warmup: int = 4) -> Floats:
    """(rows,) learning rates."""
    number = np.arange(rows)
    shape = 0.5 * (1 + np.cos(math.pi * np.maximum(0, number - warmup) / max(1, rows - warmup)))
    return peak * np.minimum(1, (number + 1) / warmup) * shape if warmup else peak * shape


def record(
    train: Floats,
    *,
    val: Floats | None = None,
    rate: Floats | None = None,
    initial: float | None = START,
    every: int = 5,
    nonfinite: tuple[int, ...] = (),
    **logged: Floats | float,
) -> Record:
    """A record with a row each `every` steps; M validations are spread evenly over it.

    What else was logged has `__` for the slash in its name; one value is that of all rows.
    """
    train = np.asarray(train, dtype=np.float64)
    rows = len(train)
    val_loss = np.full(rows, np.nan)
    if val is not None:
        val_loss[[(i + 1) * rows // len(val) - 1 for i in range(len(val))]] = val
    return Record(
        steps=every * np.arange(1, rows + 1),
        train_loss=train,
        val_loss=val_loss,
        learning_rate=cosine(rows) if rate is None else rate,
        epochs=np.zeros(rows, dtype=np.int64),
        initial_val_loss=initial,
        nonfinite_steps=nonfinite,
        values={k.replace("__", "/"): np.broadcast_to(v, rows) for k, v in logged.items()},
    )


def trend(train: Floats, facts: Facts = FACTS, **others: object) -> Trend:
    """The same as rules look at it."""
    found = trend_of(record(train, **others), facts)  # type: ignore[arg-type]
    assert found is not None
    return found


def name(finding: Finding | None) -> str | None:
    return None if finding is None else finding.name
