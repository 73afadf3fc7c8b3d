"""Settings of a run that learned little -> the one that is far from anything usual."""

import math

import numpy as np

from lmtemplate import metric_names
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend

OPTIMIZER_KEY, NET_KEY = "model.optimizer.init_args.", "model.net.init_args."
# Key -> the value from which it explains, by itself, that little is learned; what it does then.
LARGE = {
    OPTIMIZER_KEY + "eps": (1e-4, "makes steps small"),
    OPTIMIZER_KEY + "adamw_eps": (1e-4, "makes steps small"),
    OPTIMIZER_KEY + "momentum": (0.995, "averages over hundreds of steps"),
    OPTIMIZER_KEY + "betas": (0.995, "averages over hundreds of steps"),
    OPTIMIZER_KEY + "weight_decay": (2.0, "shrinks weights faster than they grow"),
    NET_KEY + "dropout": (0.5, "hides most of the net"),
    "model.label_smoothing": (0.5, "hides most of each target"),
    "model.z_loss": (0.1, "outweighs the loss"),
}
SMALL = {
    NET_KEY + "logit_cap": (3.0, "lets no token become likely"),
    "data.block_size": (2, "leaves no context"),
}
CLIP = "trainer.gradient_clip_val"
CLIPPED = 30.0  # half of all gradients are longer than the clip by this factor


def _number(value: object) -> float:
    """A setting's value, or the first of its values; NaN where it is no number."""
    first = value[0] if isinstance(value, list) and value else value
    return float(first) if isinstance(first, int | float) else math.nan


def extreme_setting(trend: Trend, facts: Facts) -> Finding | None:
    """The first setting beyond its bound, or a clip that leaves next to nothing of gradients."""
    norms = trend.logged(metric_names.GRAD_NORM)
    values = {key: _number(value) for key, value in facts.settings.items()}
    found = [(k, effect) for k, (most, effect) in LARGE.items() if values.get(k, 0) >= most]
    found += [
        (k, effect) for k, (least, effect) in SMALL.items() if values.get(k, least + 1) <= least
    ]
    if len(norms) and np.median(norms) > CLIPPED * values.get(CLIP, math.nan):
        found.append((CLIP, f"leaves little of gradients of {np.median(norms):.2g}"))
    if not found:
        return None
    key, effect = found[0]
    says = f"{key} is {facts.settings[key]}, which {effect}; the loss ends at {trend.final:.2f}."
    return conclude("extreme_setting", says, trend.first_step, trend.last_step)
