"""The end of the loss, tokens, parameters -> plateau, too slow, overtrained, a model too small."""

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend


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
    """More tokens than pay off; or a loss that stands still, or falls fast, over the last third.

    Tokens that are read for the first time are those that compute-optimal training counts.
    """
    fall, last = trend.start - trend.final, trend.last_step
    late = trend.level(0.6, 0.7) - trend.final
    optimal = f"({limit.TOKENS_PER_PARAMETER:.0f} are compute-optimal, Hoffmann et al. 2022)"
    fresh = 0.0  # tokens per parameter
    if facts.tokens and facts.parameters:
        fresh = facts.tokens / max(1.0, facts.passes or 0.0) / facts.parameters
    if fresh > limit.MANY_TOKENS:
        says = f"{fresh:,.3g} fresh tokens per parameter {optimal}."
        return conclude("overtrained", says, 0, last)
    if trend.rows < limit.ROWS or fall <= 0:
        return None
    if late <= limit.PLATEAU * fall:
        first = trend.step_at(0.6)
        says = (
            f"from step {first:,} to {last:,} the training loss falls by only {late:.2f} nats of "
            f"{fall:.2f}: converged, or stuck."
        )
        return conclude("plateau", says, first, last)
    if late < limit.TOO_SLOW * fall:
        return None
    first = trend.step_at(0.65)
    says = (
        f"the training loss still falls by {100 * late / max(1, last - first):.2g} nats per 100 "
        f"steps between steps {first:,} and {last:,} ({fall / last * 100:.2g} over the whole run)"
    )
    after = f", after {fresh:,.2g} fresh tokens per parameter {optimal}" if fresh else ""
    return conclude("too_slow", f"{says}{after}.", first, last)
