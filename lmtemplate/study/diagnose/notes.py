"""What a run shows that is no fault: its gap, noise, spikes, plateau, length -> notes."""

import math

import numpy as np

from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.learning_rate import Rule, jumps, return_of
from lmtemplate.study.diagnose.thresholds import (
    FALLING,
    FEW_TOKENS,
    GAP,
    JUMP,
    MANY_TOKENS,
    OFF_START,
    ROWS,
    STILL,
    TOKENS_PER_PARAMETER,
)
from lmtemplate.study.diagnose.trend import Trend


def gap(trend: Trend, facts: Facts) -> Finding | None:
    """The documents' measure: validation minus training, at the end."""
    if not len(trend.val_loss):
        return None
    size = float(trend.val_loss[-1]) - trend.final
    if size <= GAP:
        return None
    return Finding(
        "gap",
        False,
        f"validation ends {size:.2f} nats above training (more than {GAP}): the model knows its "
        "training text better than other text.",
        "more text, dropout or early stopping, if validation stops falling.",
        (int(trend.val_steps[-1]), trend.last_step),
    )


def recovered(trend: Trend, facts: Facts) -> Finding | None:
    """Jumps from which the loss came back."""
    spikes = [(jump, return_of(trend, jump)) for jump in jumps(trend)]
    back = [(jump, end) for jump, end in spikes if end is not None]
    if not back:
        return None
    first, last = int(trend.steps[back[0][0]]), int(trend.steps[back[-1][1]])
    more = f", the first of {len(back)}" if len(back) > 1 else ""
    return Finding(
        "spike_recovered",
        False,
        f"at step {first:,} the training loss jumps to {trend.loss[back[0][0]]:.2f} nats{more}, "
        f"and is back by step {int(trend.steps[back[0][1]]):,}.",
        "nothing, if it stays rare; otherwise clip gradients at 1.0.",
        (first, last),
    )


def chinchilla(trend: Trend, facts: Facts) -> Finding | None:
    """Tokens per parameter beside 20."""
    if not facts.tokens or not facts.parameters:
        return None
    ratio = facts.tokens / facts.parameters
    if FEW_TOKENS <= ratio <= MANY_TOKENS:
        return None
    few = ratio < FEW_TOKENS
    return Finding(
        "undertrained" if few else "overtrained",
        False,
        f"{ratio:,.3g} tokens per parameter ({facts.tokens:,} / {facts.parameters:,}); "
        f"{TOKENS_PER_PARAMETER:.0f} use the computation best (Hoffmann et al. 2022).",
        "more steps or a smaller model." if few else "a larger model, if it may cost more to use.",
        (0, trend.last_step),
    )


def noise(trend: Trend, facts: Facts) -> Finding | None:
    """Rows above the one before, in a loss that falls."""
    rises = np.diff(trend.loss)
    ups = rises[rises > 0]
    if not len(ups) or trend.final >= trend.loss[0] or ups.max() > JUMP:
        return None
    return Finding(
        "noise",
        False,
        f"{len(ups)} of {len(rises)} times the training loss is above the row before, by up to "
        f"{ups.max():.2f} nats, while it falls from {trend.loss[0]:.2f} to {trend.final:.2f}: "
        "normal, since each row reads other text.",
        "",
        (trend.first_step, trend.last_step),
    )


def plateau(trend: Trend, facts: Facts) -> Finding | None:
    """The loss has stopped falling: converged, at this learning rate."""
    fall, late = trend.start - trend.final, trend.level(0.6, 0.7) - trend.final
    if trend.rows < ROWS or fall <= 0 or late > STILL * fall:
        return None
    first = trend.step_at(0.6)
    return Finding(
        "plateau",
        False,
        f"from step {first:,} to {trend.last_step:,} the training loss falls by {late:.2f} nats "
        f"only, of {fall:.2f} in all: converged, or stuck.",
        "stop earlier; a larger model or more text would go lower.",
        (first, trend.last_step),
    )


def too_slow(trend: Trend, facts: Facts) -> Finding | None:
    """The loss still falls fast at the end."""
    fall, late = trend.start - trend.final, trend.level(0.6, 0.7) - trend.final
    if trend.rows < ROWS or fall <= 0 or late < FALLING * fall:
        return None
    first, last = trend.step_at(0.65), trend.last_step
    return Finding(
        "too_slow",
        False,
        f"the training loss still falls by {100 * late / max(1, last - first):.2g} nats per 100 "
        f"steps between steps {first:,} and {last:,} ({fall / last * 100:.2g} over the whole run).",
        "train longer, or raise the learning rate or the batch.",
        (first, last),
    )


def trained_before(trend: Trend, facts: Facts) -> Finding | None:
    """The first loss is far below ln V."""
    if not facts.vocab_size or trend.start > math.log(facts.vocab_size) - OFF_START:
        return None
    return Finding(
        "trained_before",
        False,
        f"before step 1 the loss is {trend.start:.2f} nats already; guessing evenly gives ln V = "
        f"{math.log(facts.vocab_size):.2f}: the run began with trained weights.",
        "",
        (0, 0),
    )


def too_short(trend: Trend, facts: Facts) -> Finding | None:
    """Few rows tell little."""
    if trend.rows >= ROWS:
        return None
    return Finding(
        "too_short",
        False,
        f"{trend.rows} rows are too few to judge a trend; a rise among them may be noise.",
        "log more often, or train longer.",
        (trend.first_step, trend.last_step),
    )


NOTES: tuple[Rule, ...] = (
    too_short,
    trained_before,
    gap,
    recovered,
    noise,
    plateau,
    too_slow,
    chinchilla,
)
