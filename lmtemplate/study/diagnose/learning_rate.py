"""Humps, rises, swings and stops of the loss -> a wrong learning rate, no warmup, wrong targets."""

import math

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose import vitals
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import SHARE_OF_END, Trend, merged, swings

BLOCKS = 12  # medians of training rows that stand in for validations where there are few

TOO_HIGH = "learning_rate_too_high"


def hump(trend: Trend) -> tuple[int, int] | None:
    """First and last point of an early rise above the start, or above the best loss so far."""
    points = len(trend.loss)
    reached = np.minimum.accumulate(np.append(trend.start, trend.loss))[:-1]
    rise = trend.loss - reached
    rise[max(3, int(limit.HUMP_SHARE * points)) :] = 0  # a later rise may be a bad batch
    least = max(limit.HUMP, limit.JUMP_NOISE * trend.noise)
    above_start = limit.HUMP if trend.record.initial_val_loss is not None else least
    high = (trend.loss > trend.start + above_start) | (rise > least)
    above = np.flatnonzero(high[: max(3, int(limit.EARLY * points))])
    return (int(above[0]), int(above[-1])) if len(above) else None


def began_elsewhere(trend: Trend, facts: Facts) -> bool:
    """Whether the first loss is not that of guessing evenly, so that its fall tells little.

    Where the vocabulary is unknown: an untrained model finds all batches about equally hard.
    """
    if facts.vocab_size:
        return not abs(trend.start - math.log(facts.vocab_size)) < limit.OFF_START
    return trend.begins_late or trend.noise > limit.UNTRAINED_NOISE * trend.start


def has_no_warmup(trend: Trend, facts: Facts) -> bool:
    """Whether the learning rate began near its peak."""
    if facts.warmup_steps is not None:
        return facts.warmup_steps < int(trend.steps[0])
    known = trend.rate[~np.isnan(trend.rate)]
    return bool(len(known)) and known[0] >= limit.NO_WARMUP * known.max() > 0


def share_of_peaks(trend: Trend) -> float:
    """Sum of the peaks of the validation loss, as a share of the total fall of the loss.

    Validation reads the same windows each time, so its peaks are no noise of the data. Where there
    are few validations, medians of training rows take their place.
    """
    fall = max(trend.start - float(trend.smooth.min()), limit.OFF_START)
    if len(trend.val_loss) >= limit.VALIDATIONS:
        return swings(trend.val_loss, limit.PEAK) / fall
    blocks = merged(trend.loss, min(BLOCKS, len(trend.loss)))
    return swings(blocks, limit.PEAK + 2 * trend.noise) / fall


def is_unusable_rate(trend: Trend, facts: Facts) -> bool:
    """Whether no warmup could make this peak learning rate work with this optimizer."""
    peak, name = trend.peak_rate, facts.optimizer or ""
    highest = [rate for of, rate in limit.HIGHEST_RATE.items() if name.startswith(of)]
    return peak is not None and any(peak >= rate for rate in highest)


def learns_unigrams(trend: Trend, unigram: float) -> bool:
    """Whether token frequencies were learned by the middle of the run."""
    return trend.start - trend.level(0.3, 0.5) > limit.FAST * (trend.start - unigram)


def early_hump(trend: Trend, facts: Facts) -> Finding | None:
    """A loss above the start, early: warmup is missing where the run recovered from it."""
    found = hump(trend)
    if found is None or trend.begins_late:
        return None
    first, last = trend.steps[found[0]], trend.steps[found[1]]
    highest = float(trend.loss[found[0] : found[1] + 1].max())
    says = f"between steps {first:,} and {last:,} the training loss rises to {highest:.2f} nats"
    says += f"; it began at {trend.start:.2f} and ends at {trend.final:.2f}"
    recovered = trend.final <= trend.start - limit.HUMP and share_of_peaks(trend) <= limit.PEAKS
    is_unusable = is_unusable_rate(trend, facts)
    if recovered and not is_unusable and found[0] == found[1] and highest < trend.start:
        return None  # one row, as a bad batch leaves
    if is_unusable or not has_no_warmup(trend, facts) or not recovered:
        return conclude(TOO_HIGH, f"{says}.", first, last)
    says += ". The learning rate was at its peak from the first step on, and the run recovered."
    return conclude("missing_warmup", says, first, last)


def rising(trend: Trend, facts: Facts) -> Finding | None:
    """The loss ends far above its best level, or above its start."""
    lowest = int(np.argmin(trend.smooth))
    best = min(float(trend.smooth[lowest]), trend.start)
    is_late = lowest >= len(trend.loss) * (1 - SHARE_OF_END)  # among the rows of `final`
    end = float(trend.smooth[-1]) if is_late else trend.final
    if end - best <= max(limit.RISE, limit.RISE_NOISE * trend.noise):
        return None
    says = f"the training loss rises, from {best:.2f} nats at step {trend.steps[lowest]:,} to"
    says += f" {end:.2f} at step {trend.last_step:,}; it began at {trend.start:.2f}."
    return conclude(TOO_HIGH, says, trend.steps[lowest], trend.last_step)


def adam_held_at_unigram(trend: Trend, facts: Facts) -> Finding | None:
    """Adam stays at the unigram loss for long, at a learning rate that it rarely bears."""
    unigram, rate = facts.unigram_loss, trend.peak_rate
    if unigram is None or rate is None or "Adam" not in (facts.optimizer or ""):
        return None
    recovered = has_no_warmup(trend, facts) and trend.final < unigram - limit.RISE
    first, last = (0.15, 0.3) if recovered else (0.3, 0.5)
    level = trend.level(first, last)
    is_held = level >= unigram - limit.UP_TO_UNIGRAM and learns_unigrams(trend, unigram)
    if rate <= limit.ADAM_RATE or not is_held:
        return None
    steps = (trend.step_at(first), trend.step_at(last))
    says = f"from step {steps[0]:,} to {steps[1]:,} the training loss is {level:.2f} nats; token"
    says += f" frequencies alone give {unigram:.2f}. The learning rate is up to {rate:.2g}"
    if recovered and not is_unusable_rate(trend, facts):
        return conclude("missing_warmup", f"{says} from the first step on.", *steps)
    return conclude(TOO_HIGH, f"{says}.", *steps)


def oscillating(trend: Trend, facts: Facts) -> Finding | None:
    """The loss goes up and down again and again."""
    share = share_of_peaks(trend)
    if share <= limit.PEAKS:
        return None
    says = f"the loss oscillates: its peaks add up to {share:.0%} of its whole fall."
    return conclude(TOO_HIGH, says, trend.steps[0], trend.last_step)


def too_low(trend: Trend, facts: Facts) -> Finding | None:
    """Not even token frequencies were learned, and nothing else explains it."""
    fall, unigram = trend.start - trend.final, facts.unigram_loss
    if began_elsewhere(trend, facts):
        return None
    least = (limit.UNMOVED if facts.vocab_size else limit.UNMOVED_UNKNOWN) * trend.start
    if unigram is not None:
        least = max(least, trend.start - unigram - limit.NEAR_UNIGRAM)
    if fall >= least:
        return None
    rate = f"; the learning rate is at most {trend.peak_rate:.2g}" if trend.peak_rate else ""
    goal = "" if unigram is None else f" (token frequencies alone give {unigram:.2f})"
    says = f"in {trend.last_step:,} steps the training loss falls by only {fall:.2f} nats, to"
    says += f" {trend.final:.2f}{goal}{rate}."
    return conclude("learning_rate_too_low", says, trend.steps[0], trend.last_step)


def flat_at_unigram(trend: Trend, facts: Facts) -> Finding | None:
    """Flat at the unigram loss: wrong targets, or where it is higher or swings, a high rate."""
    unigram, bigram = facts.unigram_loss, facts.bigram_loss
    if unigram is None or bigram is None or unigram - bigram < limit.INFORMATIVE:
        return None
    if began_elsewhere(trend, facts):
        return None
    late, count = trend.level(0.5, 1.0), len(trend.val_loss)
    if count >= limit.VALIDATIONS:
        late = float(np.median(trend.val_loss[count // 2 :]))
    fall = trend.start - trend.final
    is_flat = fall > 0 and trend.level(0.45, 0.55) - trend.final < limit.FLAT * fall
    is_stuck = is_flat and late >= unigram - limit.NEAR_UNIGRAM
    if not (is_stuck and learns_unigrams(trend, unigram)):
        return None
    first, last = trend.step_at(0.5), trend.last_step
    says = f"from step {first:,} to {last:,} the loss stays at {late:.2f} nats; token frequencies"
    says += f" alone give {unigram:.2f}, token pairs {bigram:.2f}"
    if late > unigram + limit.NEAR_UNIGRAM or share_of_peaks(trend) > limit.PEAKS:
        return conclude(TOO_HIGH, f"{says}: the steps are too long to learn more.", first, last)
    if last < limit.STEPS_FLAT:
        return None
    says += ": the tokens before a token do not help to predict it."
    name = "not_learning" if len(trend.logged(vitals.NEXT)) else "wrong_targets"  # they follow
    return conclude(name, says, first, last)
