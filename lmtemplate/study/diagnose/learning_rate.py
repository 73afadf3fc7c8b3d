"""Jumps, humps, rises and swings of the loss -> a learning rate too high, no warmup, a crash."""

from collections.abc import Callable

import numpy as np

from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.thresholds import (
    ABSURD,
    BACK,
    EARLY,
    FIRST,
    HUMP,
    JUMP,
    JUMP_NOISE,
    NO_WARMUP,
    PEAK,
    PEAKS,
    RISE,
    ROWS_AFTER,
    ROWS_BEFORE,
    VALIDATIONS,
)
from lmtemplate.study.diagnose.trend import Trend, merged, running_median, swings

Rule = Callable[[Trend, Facts], Finding | None]

LOWER_RATE = "lower the learning rate by 3 to 10 times, or clip gradients at 1.0."
BLOCKS = 12  # medians of which stand in for validations


def too_high(says: str, first_step: int, last_step: int) -> Finding:
    """The finding that several rules come to."""
    return Finding("learning_rate_too_high", True, says, LOWER_RATE, (first_step, last_step))


def missing_warmup(says: str, first_step: int, last_step: int) -> Finding:
    """The finding that two rules come to."""
    return Finding(
        "missing_warmup",
        True,
        says,
        "set model.schedule.warmup_steps to 5 to 20 % of the run; if nothing changes, lower the "
        "learning rate.",
        (first_step, last_step),
    )


def jumps(trend: Trend) -> list[int]:
    """Points at which the loss leaps over those before it, once it has begun to fall."""
    found = list[int]()
    least = max(JUMP, JUMP_NOISE * trend.noise)
    for point in range(ROWS_BEFORE, len(trend.loss)):
        before = float(np.median(trend.loss[point - ROWS_BEFORE : point]))
        fresh = not found or point - found[-1] > ROWS_BEFORE
        if fresh and trend.loss[point] > before + least and before < trend.start - HUMP:
            found.append(point)
    return found


def return_of(trend: Trend, jump: int) -> int | None:
    """The point at which the level before a jump is reached again; None if never."""
    before = float(np.median(trend.loss[jump - ROWS_BEFORE : jump]))
    later = running_median(trend.loss[jump:], 3)
    back = np.flatnonzero(later <= before + max(BACK, trend.noise))
    return int(jump + back[0]) if len(back) else None


def hump(trend: Trend) -> tuple[int, int] | None:
    """First and last point of an early rise: above the start, or above what had been reached."""
    points = len(trend.loss)
    reached = np.minimum.accumulate(np.append(trend.start, trend.loss))[:-1]
    rise = trend.loss - reached
    rise[max(3, int(FIRST * points)) :] = 0  # later, a rise above the best may be a bad batch
    high = (trend.loss > trend.start + HUMP) | (rise > max(HUMP, JUMP_NOISE * trend.noise))
    above = np.flatnonzero(high[: max(3, int(EARLY * points))])
    return (int(above[0]), int(above[-1])) if len(above) else None


def crashed(trend: Trend, facts: Facts) -> Finding | None:
    """A jump after which the loss never came back."""
    for jump in jumps(trend):
        early = jump < EARLY * len(trend.loss)
        if early or jump > len(trend.loss) - ROWS_AFTER or return_of(trend, jump) is not None:
            continue
        before = float(np.median(trend.loss[jump - ROWS_BEFORE : jump]))
        if facts.unigram_loss is not None and before > facts.unigram_loss:
            continue  # it had learned nothing that it could lose
        step = int(trend.steps[jump])
        return Finding(
            "spike_not_recovered",
            True,
            f"at step {step:,} the training loss jumps from {before:.2f} to "
            f"{trend.loss[jump]:.2f} nats, and never comes back: at step {trend.last_step:,} it is "
            f"{trend.final:.2f}. A crashed run.",
            f"go back to a checkpoint before step {step:,}, with a lower learning rate or with "
            "gradients clipped at 1.0, and look at what was read there.",
            (step, trend.last_step),
        )
    return None


def no_warmup(trend: Trend, facts: Facts) -> bool:
    """Whether the rate began near its peak."""
    if facts.warmup_steps is not None:
        return facts.warmup_steps < trend.first_step
    known = trend.rate[~np.isnan(trend.rate)]
    return bool(len(known)) and known[0] >= NO_WARMUP * known.max() > 0


def wild(trend: Trend) -> float:
    """How far validation goes up and down, as a share of the fall of the loss.

    Validation reads the same windows each time, so that its peaks are no noise of the data. Where
    there are few, medians of training rows have to do.
    """
    fall = max(trend.start - float(trend.smooth.min()), 1e-9)
    if len(trend.val_loss) >= VALIDATIONS:
        return swings(trend.val_loss, PEAK) / fall
    blocks = merged(trend.loss, min(BLOCKS, len(trend.loss)))
    return swings(blocks, PEAK + 2 * trend.noise) / fall


def absurd(trend: Trend, facts: Facts) -> bool:
    """Whether nobody trains with such a rate, with or without warmup."""
    most = [rate for name, rate in ABSURD.items() if (facts.optimizer or "").startswith(name)]
    return trend.peak_rate is not None and any(trend.peak_rate >= rate for rate in most)


def early_hump(trend: Trend, facts: Facts) -> Finding | None:
    """A loss above the start, early: warmup is missing where the run got over it."""
    found = hump(trend)
    if found is None:
        return None
    first, last = int(trend.steps[found[0]]), int(trend.steps[found[1]])
    highest = float(trend.loss[found[0] : found[1] + 1].max())
    says = (
        f"between steps {first:,} and {last:,} the training loss rises to {highest:.2f} nats "
        f"(it began at {trend.start:.2f})"
    )
    over = trend.final <= trend.start - HUMP and wild(trend) <= PEAKS
    if absurd(trend, facts) or not no_warmup(trend, facts) or not over:
        return too_high(f"{says}, and it ends at {trend.final:.2f}.", first, last)
    return missing_warmup(
        f"{says}; the learning rate was at its peak from the first step on, and the run got over "
        f"it (it ends at {trend.final:.2f}).",
        first,
        last,
    )


def rising(trend: Trend, facts: Facts) -> Finding | None:
    """The level ends far above its best, or above where it began."""
    lowest = int(np.argmin(trend.smooth))
    best, least = min(float(trend.smooth[lowest]), trend.start), max(RISE, 3 * trend.noise)
    if trend.final - best <= least:
        return None
    return too_high(
        f"the training loss rises, from {best:.2f} nats at step {int(trend.steps[lowest]):,} to "
        f"{trend.final:.2f} at step {trend.last_step:,} (it began at {trend.start:.2f}).",
        int(trend.steps[lowest]),
        trend.last_step,
    )


def oscillating(trend: Trend, facts: Facts) -> Finding | None:
    """The loss goes up and down again and again."""
    share = wild(trend)
    if share <= PEAKS:
        return None
    return too_high(
        f"the loss oscillates: its peaks add up to {share:.0%} of its whole fall, from "
        f"{trend.start:.2f} to {trend.smooth.min():.2f} nats.",
        trend.first_step,
        trend.last_step,
    )
