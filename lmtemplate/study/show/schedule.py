"""Schedule, peak rates and length -> the learning rate over the run, drawn before it starts."""

from collections.abc import Mapping

import numpy as np

from lmtemplate.cli import TrainingCLI, check_settings
from lmtemplate.errors import ConfigError
from lmtemplate.fit import make_plan
from lmtemplate.record import Floats, Ints
from lmtemplate.schedules import Schedule
from lmtemplate.study.show.plots import rate_in_terminal
from lmtemplate.trainer import quieten

POINTS = 2000  # that a drawing takes at most


def rates(schedule: Schedule, steps: int, peak: float) -> tuple[Ints, Floats]:
    """(N,) steps, the first being 1, and the rate that each is made with."""
    chosen = np.unique(np.linspace(1, steps, min(steps, POINTS)).round().astype(np.int64))
    factors = [schedule.factor(int(step) - 1, steps) for step in chosen]
    return chosen, peak * np.array(factors, dtype=np.float64)


def _warmup(schedule: Schedule, steps: int) -> str:
    warmup = schedule.warmup_steps
    if not warmup:
        return "none: step 1 has the full rate"
    share = f"{warmup / steps:.1%} of the run"
    long = "; more than half of it is warm-up" if warmup > steps / 2 else ""
    return f"steps 1 to {warmup:,}, {share}, from 1/{warmup:,} of the peak{long}"


def drawing(schedule: Schedule, steps: int, peaks: Mapping[str, float]) -> str:
    """The rate as a curve, and its warm-up, peak and floor in words.

    Args:
        schedule: its shape.
        steps: of the run.
        peaks: group of parameters -> its full rate; the first one is drawn.
    """
    name, peak = next(iter(peaks.items()))
    if not peak > 0:
        raise ConfigError(f"the learning rate of {name} is {peak:g}: nothing would be learned")
    chosen, values = rates(schedule, steps, peak)
    top = chosen[values >= values.max() * (1 - 1e-9)]
    others = ", ".join(f"{group} {rate:g}" for group, rate in peaks.items() if group != name)
    last = f"{values[-1]:.3g} at step {steps:,}, {values[-1] / values.max():.2%} of the peak"
    rows = {
        "warmup": _warmup(schedule, steps),
        "peak": f"{values.max():g} at steps {top[0]:,} to {top[-1]:,}"
        + (f" (other groups: {others})" if others else ""),
        "floor": f"{schedule.floor_ratio * peak:g}; the last update has {last}",
    }
    words = "\n".join(f"  {row:<8} {text}" for row, text in rows.items())
    title = f"{type(schedule).__name__} over {steps:,} steps"
    return f"{title}\n{rate_in_terminal(chosen, values)}\n{words}"


def schedule(words: list[str], allowed: list[str]) -> None:
    """Draw the learning rate of a planned run."""
    quieten()
    cli = TrainingCLI(words, allowed, "schedule")
    steps = make_plan(cli).length.steps
    check_settings(cli, steps)
    groups = cli.model.recipe.build(cli.model.net).param_groups
    peaks = {str(group.get("name", number)): group["lr"] for number, group in enumerate(groups)}
    print(drawing(cli.model.schedule, steps, peaks))
