"""What the batches were seen to hold -> wrong targets, other tokens, padding, repeats."""

import math

import numpy as np

from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose import vitals
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend


def _share(trend: Trend, name: str) -> float:
    """Mean of what was logged under this name; NaN where nothing was."""
    logged = trend.logged(name)
    return float(logged.mean()) if len(logged) else math.nan


def wrong_targets(trend: Trend, facts: Facts) -> Finding | None:
    """Targets are not the tokens after their inputs, as the log or what the net predicts tells."""
    following, same = _share(trend, vitals.NEXT), _share(trend, vitals.SAME)
    says = ""
    if following < limit.FOLLOWING:
        says = (
            f"only {following:.0%} of the targets are the token after their input, {same:.0%} are "
            "the input itself."
        )
    elif facts.shift_loss is not None and facts.shift != 1:
        assert facts.val_measured is not None
        if facts.shift_loss < facts.val_measured - limit.SHIFTED:
            what = {0: "its input", 2: "the token after the next one", -1: "the token before"}
            says = (
                f"the net predicts {what[facts.shift or 0]} (loss {facts.shift_loss:.2f} nats) "
                f"better than the next token ({facts.val_measured:.2f})."
            )
    return conclude("wrong_targets", says, 0, trend.last_step) if says else None


def training_text_changes(trend: Trend, facts: Facts) -> Finding | None:
    """The kind of text that is read changes along the run: it is sorted."""
    logged = trend.logged(vitals.UNIGRAM)
    if len(logged) < limit.ROWS:
        return None
    parts = np.array_split(logged, limit.PARTS)
    means = [float(part.mean()) for part in parts]
    error = float(np.mean([part.std() for part in parts])) / math.sqrt(len(parts[0]))
    if max(means) - min(means) < max(limit.OTHER_TOKENS, limit.OTHER_TOKENS_ERRORS * error):
        return None
    says = (
        f"by the frequencies of the whole text, the targets cost {min(means):.2f} nats in one "
        f"part of the run and {max(means):.2f} in another: the text is read in some order."
    )
    return conclude("training_text_changes", says, trend.first_step, trend.last_step)


def other_tokens(trend: Trend, facts: Facts) -> Finding | None:
    """The tokens in the batches are not as frequent as in the prepared text."""
    logged, expected = trend.logged(vitals.UNIGRAM), facts.train_unigram_loss
    if expected is None or len(logged) < limit.ROWS // 2:
        return None
    if facts.settings.get("data.max_train_blocks"):
        return None
    error = float(logged.std()) / math.sqrt(len(logged))
    distance = abs(float(logged.mean()) - expected)
    if distance < max(limit.OTHER_TOKENS, limit.OTHER_TOKENS_ERRORS * error):
        return None
    says = (
        f"by the frequencies of the prepared text the targets cost {logged.mean():.2f} nats, and "
        f"that text {expected:.2f}: the model reads other tokens."
    )
    return conclude("other_tokens", says, trend.first_step, trend.last_step)


def padding(trend: Trend, facts: Facts) -> Finding | None:
    """Most of each batch teaches nothing: no loss, or the same token again and again."""
    ignored, same = _share(trend, vitals.UNCOUNTED), _share(trend, vitals.SAME)
    if ignored > limit.IGNORED:
        says = f"{ignored:.0%} of the targets carry no loss: so much of the computing is lost."
    elif facts.same_share is not None and same > facts.same_share + limit.SAME:
        says = (
            f"{same:.0%} of the targets equal the token before, and {facts.same_share:.0%} in the "
            "prepared text: the loss is that of padding."
        )
    else:
        return None
    return conclude("padding", says, trend.first_step, trend.last_step)


def repeated_data(trend: Trend, facts: Facts) -> Finding | None:
    """The training text, or a batch of it, says the same again and again."""
    twice, means = _share(trend, vitals.REPEATED), trend.logged(vitals.UNIGRAM)
    if facts.repeated_share is not None and facts.repeated_share >= limit.REPEATED:
        says = f"{facts.repeated_share:.0%} of the training text stands in it more than once."
    elif facts.settings.get("data.max_train_blocks"):
        return None
    elif twice >= limit.REPEATED:
        says = f"{twice:.0%} of the sequences of a batch stand in it more than once."
    elif len(means) >= limit.ROWS and len(np.unique(means)) < limit.REPEATED * len(means):
        says = f"{len(means)} batches that were looked at hold {len(np.unique(means))} texts."
    else:
        return None
    return conclude("repeated_data", says, 0, trend.last_step)
