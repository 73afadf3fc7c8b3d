"""The training loss -> its jumps, and whether it recovered."""

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend, running_median


def level_before(trend: Trend, jump: int) -> float:
    """Median loss of the rows before a point."""
    return float(np.median(trend.loss[jump - limit.ROWS_BEFORE : jump]))


def jumps(trend: Trend) -> list[int]:
    """Points at which the loss leaps over those before it, once it has begun to fall."""
    found = list[int]()
    least = max(limit.JUMP, limit.JUMP_NOISE * trend.noise)
    for point in range(limit.ROWS_BEFORE, len(trend.loss)):
        before = level_before(trend, point)
        fresh = not found or point - found[-1] > limit.ROWS_BEFORE
        if fresh and trend.loss[point] > before + least and before < trend.start - limit.HUMP:
            found.append(point)
    return found


def recovery(trend: Trend, jump: int) -> int | None:
    """The point at which the level before a jump is reached again; None if never."""
    later = running_median(trend.loss[jump:], 3)
    back = np.flatnonzero(later <= level_before(trend, jump) + max(limit.RECOVERED, trend.noise))
    return int(jump + back[0]) if len(back) else None


def spike_not_recovered(trend: Trend, facts: Facts) -> Finding | None:
    """A jump after which the loss never came back."""
    for jump in jumps(trend):
        early = jump < limit.EARLY * len(trend.loss)
        if early or jump > len(trend.loss) - limit.ROWS_AFTER or recovery(trend, jump) is not None:
            continue
        before, step = level_before(trend, jump), int(trend.steps[jump])
        if facts.unigram_loss is not None and before > facts.unigram_loss:
            continue  # it had learned nothing that it could lose
        place = int(np.searchsorted(trend.val_steps, step))  # of the validation after it
        around = trend.val_loss[max(0, place - 1) : place + 1]
        crashed = len(around) < 2 or not place or around[1] > around[0] + limit.RECOVERED
        says = f"at step {step:,} the training loss jumps from {before:.2f} to"
        says += f" {trend.loss[jump]:.2f} nats, and never comes back: it ends at {trend.final:.2f}."
        if crashed:
            return conclude("spike_not_recovered", says, step, trend.last_step)
        says += " Validation does not jump."
        return conclude("training_text_changes", says, step, trend.last_step)
    return None


def spike_recovered(trend: Trend, facts: Facts) -> Finding | None:
    """Jumps from which the loss came back."""
    spikes = [(jump, recovery(trend, jump)) for jump in jumps(trend)]
    back = [(jump, end) for jump, end in spikes if end is not None]
    if not back:
        return None
    (jump, end), last = back[0], back[-1][1]
    more = f", the first of {len(back)}" if len(back) > 1 else ""
    says = f"at step {trend.steps[jump]:,} the training loss jumps to {trend.loss[jump]:.2f} nats"
    says += f"{more}, and is back by step {trend.steps[end]:,}."
    return conclude("spike_recovered", says, trend.steps[jump], trend.steps[last])
