"""Settings of a run that learned little -> the one that is far from anything usual."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lmtemplate import metric_names
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.finding import Facts, Finding, conclude
from lmtemplate.study.diagnose.trend import Trend

Rule = tuple[str, Callable[[Any, Trend, Facts], bool], str]


def _is_clipped_away(clip: float, trend: Trend, facts: Facts) -> bool:
    norms = trend.logged(metric_names.GRAD_NORM)
    return bool(len(norms)) and float(np.median(norms)) > limit.CLIPPED * clip


# Key, what it must be to explain that little is learned, what it does.
RULES: tuple[Rule, ...] = (
    (
        "model.optimizer.init_args.eps",
        lambda v, t, f: v > limit.EPS,
        "makes all steps of Adam small",
    ),
    ("model.optimizer.init_args.adamw_eps", lambda v, t, f: v > limit.EPS, "makes steps small"),
    ("model.net.init_args.dropout", lambda v, t, f: v >= limit.DROPOUT, "hides most of the net"),
    ("model.label_smoothing", lambda v, t, f: v >= limit.SMOOTHING, "hides most of each target"),
    ("model.z_loss", lambda v, t, f: v >= limit.Z_LOSS, "outweighs the loss"),
    ("model.net.init_args.logit_cap", lambda v, t, f: v <= limit.CAP, "lets no token be likely"),
    ("trainer.gradient_clip_val", _is_clipped_away, "cuts nearly all of each gradient away"),
    ("data.block_size", lambda v, t, f: v <= limit.CONTEXT, "leaves no context to learn from"),
    (
        "model.optimizer.init_args.momentum",
        lambda v, t, f: v >= limit.MOMENTUM,
        "averages over more steps than the run has, or nearly",
    ),
    (
        "model.optimizer.init_args.betas",
        lambda v, t, f: v[0] >= limit.MOMENTUM,
        "averages over more steps than the run has, or nearly",
    ),
    (
        "model.optimizer.init_args.weight_decay",
        lambda v, t, f: v > limit.DECAY and v * (t.peak_rate or 0.0) > limit.DECAYED,
        "shrinks weights faster than they grow",
    ),
    (
        "weight_averaging.init_args.decay",
        lambda v, t, f: (1 - v) * t.last_step < 1,
        "averages over more steps than the run has",
    ),
)


def extreme_setting(trend: Trend, facts: Facts) -> Finding | None:
    """A setting that explains, by itself, that little is learned."""
    for key, is_extreme, effect in RULES:
        value = facts.settings.get(key)
        try:
            if value is None or not is_extreme(value, trend, facts):
                continue
        except (TypeError, LookupError):  # a stranger's config
            continue
        says = f"{key} is {value}, which {effect}; the training loss ends at {trend.final:.2f}."
        return conclude("extreme_setting", says, trend.first_step, trend.last_step)
    return None
