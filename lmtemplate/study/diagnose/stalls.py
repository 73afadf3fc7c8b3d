"""A loss that stops high, or hardly moves -> the rate, the labels, the size of the model."""

import math

from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.learning_rate import (
    absurd,
    missing_warmup,
    no_warmup,
    too_high,
    wild,
)
from lmtemplate.study.diagnose.thresholds import (
    ABOVE_BIGRAM,
    ADAM_RATE,
    FAST,
    FLAT,
    INFORMATIVE,
    MANY_TOKENS,
    NEAR_UNIGRAM,
    OFF_START,
    PEAKS,
    RISE,
    STEPS_FLAT,
    UNMOVED,
    UNMOVED_UNKNOWN,
    UP_TO_UNIGRAM,
    VALIDATIONS,
)
from lmtemplate.study.diagnose.trend import Trend


def is_flat(trend: Trend) -> bool:
    """Whether the loss has come to a standstill by the middle of the run."""
    fall = trend.start - trend.final
    return fall > 0 and trend.level(0.45, 0.55) - trend.final < FLAT * fall


def fell_fast(trend: Trend, unigram: float) -> bool:
    """Whether token frequencies were learned by the middle of the run."""
    return trend.start - trend.level(0.3, 0.5) > FAST * (trend.start - unigram)


def resting(trend: Trend, facts: Facts) -> Finding | None:
    """No more than token frequencies for long, at a rate that Adam rarely bears."""
    unigram, rate = facts.unigram_loss, trend.peak_rate
    if unigram is None or rate is None or "Adam" not in (facts.optimizer or ""):
        return None
    cold = no_warmup(trend, facts) and trend.final < unigram - RISE
    first, last = (0.15, 0.3) if cold else (0.3, 0.5)
    level = trend.level(first, last)
    if rate <= ADAM_RATE or level < unigram - UP_TO_UNIGRAM or not fell_fast(trend, unigram):
        return None
    steps = (trend.step_at(first), trend.step_at(last))
    says = (
        f"from step {steps[0]:,} to {steps[1]:,} the training loss is {level:.2f} nats, which is "
        f"as much as token frequencies alone give ({unigram:.2f}), and the learning rate is up to "
        f"{rate:.2g}"
    )
    if cold and not absurd(trend, facts):
        return missing_warmup(f"{says} from the first step on.", *steps)
    return too_high(f"{says}.", *steps)


def standstill(trend: Trend, facts: Facts) -> Finding | None:
    """Flat at the loss of token frequencies: what comes before a token does not help."""
    unigram, bigram = facts.unigram_loss, facts.bigram_loss
    if unigram is None or bigram is None or unigram - bigram < INFORMATIVE:
        return None
    late = trend.val_level(0.5) if len(trend.val_loss) >= VALIDATIONS else trend.level(0.5, 1.0)
    if not fell_fast(trend, unigram) or not is_flat(trend) or late < unigram - NEAR_UNIGRAM:
        return None
    first, last = trend.step_at(0.5), trend.last_step
    says = (
        f"from step {first:,} to {last:,} the loss stays at {late:.2f} nats; token frequencies "
        f"alone give {unigram:.2f}, token pairs {bigram:.2f}"
    )
    if late > unigram + NEAR_UNIGRAM or wild(trend) > PEAKS:
        return too_high(f"{says}: steps are too long for more.", first, last)
    if last < STEPS_FLAT:
        return None
    return Finding(
        "shuffled_labels",
        True,
        f"{says}: what comes before a token does not help to tell it.",
        "look whether each target is the token after its input; if it is, whether the blocks are "
        "trained, at another learning rate.",
        (first, last),
    )


def crawling(trend: Trend, facts: Facts) -> Finding | None:
    """Not even token frequencies were learned, and nothing else explains it."""
    fall = trend.start - trend.final
    if facts.vocab_size and trend.start < math.log(facts.vocab_size) - OFF_START:
        return None  # trained before: little was left to learn
    least = (UNMOVED if facts.vocab_size else UNMOVED_UNKNOWN) * trend.start
    if facts.unigram_loss is not None:
        least = max(least, trend.start - facts.unigram_loss - NEAR_UNIGRAM)
    if fall >= least:
        return None
    peak, known = trend.peak_rate, facts.unigram_loss
    rate = "" if peak is None else f"; the learning rate is {peak:.2g} at most"
    goal = "" if known is None else f" (token frequencies alone give {known:.2f})"
    return Finding(
        "learning_rate_too_low",
        True,
        f"in {trend.last_step:,} steps the training loss falls by {fall:.2f} nats only, from "
        f"{trend.start:.2f} to {trend.final:.2f}{goal}{rate}.",
        "raise the learning rate by 10 times; if that changes nothing, look whether all parameters "
        "are trained.",
        (trend.first_step, trend.last_step),
    )


def too_small(trend: Trend, facts: Facts) -> Finding | None:
    """Many tokens for each parameter, and token pairs would predict better."""
    if facts.bigram_loss is None or not facts.tokens or not facts.parameters:
        return None
    ratio = facts.tokens / facts.parameters
    if ratio < MANY_TOKENS or trend.final < facts.bigram_loss + ABOVE_BIGRAM:
        return None
    return Finding(
        "model_too_small",
        True,
        f"after {ratio:,.0f} tokens per parameter the training loss ends at {trend.final:.2f} "
        f"nats; counting token pairs gives {facts.bigram_loss:.2f}.",
        "use a wider or deeper model.",
        (trend.step_at(0.5), trend.last_step),
    )
