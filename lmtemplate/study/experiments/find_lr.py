"""A config -> the loss at learning rates from tiny to absurd, and a rate to start from.

The range test of Smith (2017, section 3.3): one short training in which the rate grows by the same
factor at each step, until the loss explodes. Nothing is written.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.record import Floats
from lmtemplate.run_dir import to_json
from lmtemplate.study.experiments.flags import Flags, split_words
from lmtemplate.study.experiments.trial_steps import TrialSteps
from lmtemplate.study.progress import pieces, progress_shown
from lmtemplate.study.show.plots import text_plot

MOST_STEPS = 100_000
SMOOTHING = 0.9  # share of the mean so far in the mean of losses
EXPLODED = 4.0  # times the fall so far: a smoothed loss that has risen by as much ends the test
BELOW_LOWEST = 3.0  # the suggestion lies at most this factor below the rate with the lowest loss


@dataclass(frozen=True)
class RangeTest:
    """Rates of the first parameter group, the losses met at them, and what follows."""

    rates: list[float]
    losses: list[float]  # of each batch, in nats
    smoothed: list[float]
    steepest: float  # rate at which the smoothed loss falls fastest
    lowest: float  # rate at which it is lowest
    rises: float | None  # lowest rate above that at which it is higher than at the start
    diverged: float | None  # rate at which it exploded
    suggestion: float


def smooth(losses: Floats) -> Floats:
    """Exponential mean, corrected for its start (as in Adam: Kingma and Ba 2015, section 3)."""
    mean, means = 0.0, []
    for count, loss in enumerate(losses, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**count))
    return np.array(means)


def has_exploded(smoothed: Floats) -> bool:
    """Whether the loss has risen far above where it was lowest, measured by its fall till there."""
    if not math.isfinite(smoothed[-1]):
        return True
    lowest = smoothed.min()
    fall = max(smoothed[0] - lowest, 0.05)
    return bool(smoothed[-1] > lowest + EXPLODED * fall)


def judge_rates(rates: Floats, losses: Floats, exploded: bool) -> RangeTest:
    """What rates and losses say; the last rate is where the loss exploded, if it did."""
    smoothed = smooth(losses)
    if not np.isfinite(smoothed[:1]).all():
        raise NumbersError("the first loss is not finite, before any rate is tried")
    known = np.where(np.isfinite(smoothed), smoothed, np.inf)
    best = int(known.argmin())
    slopes = np.gradient(known[: best + 1], np.log(rates[: best + 1])) if best > 1 else np.zeros(1)
    above = rates[best:][known[best:] > known[0]]
    steepest, lowest = float(rates[int(slopes.argmin())]), float(rates[best])
    return RangeTest(
        rates.tolist(),
        np.where(np.isfinite(losses), losses, -1).tolist(),
        np.where(np.isfinite(smoothed), smoothed, -1).tolist(),
        steepest,
        lowest,
        float(above[0]) if len(above) else None,
        float(rates[-1]) if exploded else None,
        float(f"{max(steepest, lowest / BELOW_LOWEST):.2g}"),
    )


def range_test(trial: TrialSteps, low: float, high: float, steps: int) -> RangeTest:
    """Train on the config's own batches, the rate growing from `low` to `high`.

    All parameter groups grow together: each keeps its ratio to the first.
    """
    groups = trial.optimizer.param_groups
    if not groups[0]["lr"]:
        raise ConfigError("model.optimizer.lr=0: nothing would be learned; give a rate above 0")
    ratios = [group["lr"] / groups[0]["lr"] for group in groups]
    rates, losses, exploded = np.geomspace(low, high, steps), list[float](), False
    for rate in pieces(rates.tolist(), "learning rates"):
        for group, ratio in zip(groups, ratios, strict=True):
            group["lr"] = rate * ratio
        losses.append(trial.step(*trial.next_batch()))
        if exploded := has_exploded(smooth(np.array(losses))):
            break
    return judge_rates(rates[: len(losses)], np.array(losses), exploded)


def describe_test(test: RangeTest, key: str) -> str:
    """The curve, and what to make of it."""
    rates, losses = np.log10(test.rates), np.array(test.smoothed)
    shown = losses > 0
    top = losses[0] + 0.3 * (losses[0] - losses[shown].min() + 0.1)
    drawn = (rates[shown], np.minimum(losses[shown], top))
    cut = f", cut off at {top:.3g}" if losses.max() > top else ""
    ends = {"x_min": float(rates[0]), "x_max": float(rates[-1])}
    plot = text_plot([drawn], "*", 72, height=12, **ends)
    says = f"falls fastest at {test.steepest:.2g}, lowest at {test.lowest:.2g}, "
    says += f"above its start from {test.rises:.2g} on" if test.rises else "never above its start"
    says += f", explodes at {test.diverged:.2g}" if test.diverged else ""
    return "\n".join(
        [
            f"smoothed loss against learning rate (10^x){cut}",
            plot,
            says,
            f"suggestion: {key} {test.suggestion:g}, for a long run rather less; to be sure:",
            f"  lmtemplate sweep ... --over {key}={test.suggestion / 3:.2g}..{test.suggestion * 3:.2g}:log:5",
        ]
    )


def find_lr(words: list[str], allowed: list[str]) -> None:
    """Try growing learning rates on a config's net and data.

    Args:
        words: of the command line, after the verb: --low, --high, --steps, --json, and those of fit.
        allowed: packages outside lmtemplate whose classes a config may name.
    """
    flags: Flags = {
        "low": {"type": float, "default": 1e-5, "help": "first rate"},
        "high": {"type": float, "default": 10.0, "help": "last rate"},
        "steps": {"type": int, "default": 120, "help": "steps from the first to the last"},
    }
    given, rest = split_words("find-lr", words, flags)
    if not 0 < given.low < given.high < math.inf or not 10 <= given.steps <= MOST_STEPS:
        says = f"--steps from 10 to {MOST_STEPS:,}"
        raise ConfigError(f"find-lr needs 0 < --low < --high, and {says}")
    trial = TrialSteps("find-lr", rest, allowed)
    with progress_shown(unless=given.json):
        test = range_test(trial, given.low, given.high, given.steps)
    if given.json:
        print(to_json(asdict(test), indent=None))
    else:
        print(describe_test(test, "model.optimizer.lr"))
