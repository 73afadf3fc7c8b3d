"""A loss that stops, or still falls at the end -> wrong targets, a small model, a plateau."""

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose import vitals
from lmtemplate.study.diagnose.data import fresh_tokens
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.learning_rate import TOO_HIGH, learns_unigrams, share_of_peaks
from lmtemplate.study.diagnose.trend import Trend


def is_flat(trend: Trend) -> bool:
    """Whether the loss has stopped falling by the middle of the run."""
    fall = trend.start - trend.final
    return fall > 0 and trend.level(0.45, 0.55) - trend.final < limit.FLAT * fall


def flat_at_unigram(trend: Trend, facts: Facts) -> Finding | None:
    """Flat at the unigram loss: wrong targets, or where it is higher or swings, a high rate."""
    unigram, bigram = facts.unigram_loss, facts.bigram_loss
    if unigram is None or bigram is None or unigram - bigram < limit.INFORMATIVE:
        return None
    late, count = trend.level(0.5, 1.0), len(trend.val_loss)
    if count >= limit.VALIDATIONS:
        late = float(np.median(trend.val_loss[count // 2 :]))
    is_stuck = late >= unigram - limit.NEAR_UNIGRAM and is_flat(trend)
    if not (is_stuck and learns_unigrams(trend, unigram)):
        return None
    first, last = trend.step_at(0.5), trend.last_step
    says = (
        f"from step {first:,} to {last:,} the loss stays at {late:.2f} nats; token frequencies "
        f"alone give {unigram:.2f}, token pairs {bigram:.2f}"
    )
    if late > unigram + limit.NEAR_UNIGRAM or share_of_peaks(trend) > limit.PEAKS:
        return conclude(TOO_HIGH, f"{says}: the steps are too long to learn more.", first, last)
    if last < limit.STEPS_FLAT:
        return None
    says += ": the tokens before a token do not help to predict it."
    name = "not_learning" if len(trend.logged(vitals.NEXT)) else "wrong_targets"  # they follow
    return conclude(name, says, first, last)


def model_too_small(trend: Trend, facts: Facts) -> Finding | None:
    """Many tokens for each parameter, and token pairs would predict better."""
    if facts.bigram_loss is None or not facts.tokens or not facts.parameters:
        return None
    ratio = facts.tokens / facts.parameters
    if ratio < limit.MANY_TOKENS or trend.final < facts.bigram_loss + limit.ABOVE_BIGRAM:
        return None
    says = (
        f"after {ratio:,.0f} tokens per parameter the training loss ends at {trend.final:.2f} "
        f"nats; counting token pairs gives {facts.bigram_loss:.2f}."
    )
    return conclude("model_too_small", says, trend.step_at(0.5), trend.last_step)


def pace(trend: Trend, facts: Facts) -> Finding | None:
    """The loss has stopped falling, or still falls fast, over the last third."""
    fall, last = trend.start - trend.final, trend.last_step
    late = trend.level(0.6, 0.7) - trend.final
    if trend.rows < limit.ROWS or fall <= 0:
        return None
    if late <= limit.PLATEAU * fall:
        first = trend.step_at(0.6)
        says = (
            f"from step {first:,} to {last:,} the training loss falls by only {late:.2f} nats, of "
            f"{fall:.2f} in all: converged, or stuck."
        )
        return conclude("plateau", says, first, last)
    if late < limit.TOO_SLOW * fall:
        return None
    first, fresh = trend.step_at(0.65), fresh_tokens(facts)
    says = (
        f"the training loss still falls by {100 * late / max(1, last - first):.2g} nats per 100 "
        f"steps between steps {first:,} and {last:,} ({fall / last * 100:.2g} over the whole run)"
    )
    if fresh and facts.parameters:
        says += (
            f", after {fresh / facts.parameters:,.2g} fresh tokens per parameter "
            f"({limit.TOKENS_PER_PARAMETER:.0f} are compute-optimal, Hoffmann et al. 2022)"
        )
    return conclude("too_slow", f"{says}.", first, last)
