"""Settings of a run -> the one that is far from anything usual, where the run learned little."""

import math

import numpy as np

from lmtemplate import metric_names
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend

CLIP, CLIP_ALGORITHM = "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm"
OPTIMIZER_KEY, NET_KEY = "model.optimizer.init_args.", "model.net.init_args."
# Key -> the bound from which it explains, by itself, that little is learned; what it does then.
EXTREME = {
    OPTIMIZER_KEY + "eps": (1e-4, "makes steps small"),
    OPTIMIZER_KEY + "adamw_eps": (1e-4, "makes steps small"),
    OPTIMIZER_KEY + "momentum": (0.995, "averages over hundreds of steps"),
    OPTIMIZER_KEY + "betas": (0.995, "averages over hundreds of steps"),
    OPTIMIZER_KEY + "weight_decay": (2.0, "shrinks weights faster than they grow"),
    NET_KEY + "dropout": (0.5, "hides most of the net"),
    "model.label_smoothing": (0.5, "hides most of each target"),
    "model.z_loss": (0.1, "outweighs the loss"),
    NET_KEY + "logit_cap": (3.0, "lets no token become likely"),
    "data.block_size": (2, "leaves no context"),
}
TOO_SMALL = (NET_KEY + "logit_cap", "data.block_size")  # of these a small value is extreme


def number_of(value: object) -> float:
    """A setting's value, or the first of its values; NaN where it is no number."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, int | float) and abs(first) < 1e150:
        return float(first)
    return math.nan


def clip_far_below(trend: Trend, facts: Facts) -> Finding | None:
    """Nearly all gradients are far longer than the clip leaves them.

    A clip by value holds for each element, so that it leaves a gradient of N of them sqrt(N) times
    as long; where N is unknown, nothing is said of it.
    """
    norms, shares = trend.logged(metric_names.GRAD_NORM), trend.logged(metric_names.CLIPPED_SHARE)
    clip = number_of(facts.settings.get(CLIP))
    usual = float(np.median(norms)) if len(norms) else 0.0
    share = float(shares.mean()) if len(shares) else 1.0
    longest = clip
    if facts.settings.get(CLIP_ALGORITHM) == "value":
        longest = clip * math.sqrt(facts.parameters or math.inf)
    if not usual > limit.CLIPPED * longest or share < limit.CLIPPED_STEPS:
        return None
    in_steps = f" in {share:.0%} of the steps" if len(shares) else ""
    says = (
        f"{CLIP} is {clip:g}, which leaves little of gradients of {usual:.2g}{in_steps}; the loss "
        f"ends at {trend.final:.2f}."
    )
    return conclude("clipped", says, trend.steps[0], trend.last_step)


def extreme_setting(trend: Trend, facts: Facts) -> Finding | None:
    """The first setting beyond its bound, or a clip that leaves next to nothing of gradients."""
    for key, (bound, effect) in EXTREME.items():
        value = number_of(facts.settings.get(key))
        if (value <= bound) if key in TOO_SMALL else (value >= bound):
            says = (
                f"{key} is {facts.settings[key]}, which {effect}; the loss ends at "
                f"{trend.final:.2f}."
            )
            return conclude("extreme_setting", says, trend.steps[0], trend.last_step)
    clip = clip_far_below(trend, facts)
    return conclude("extreme_setting", clip.says, *clip.steps) if clip else None
