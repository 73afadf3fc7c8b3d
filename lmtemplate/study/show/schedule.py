"""Schedule, peak rates and length -> the learning rate over the run, drawn before it starts."""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lmtemplate.cli import TrainingCLI, check_settings
from lmtemplate.errors import ConfigError
from lmtemplate.fit import make_plan
from lmtemplate.record import Floats, Ints
from lmtemplate.schedules import Schedule
from lmtemplate.study.experiments.flags import split_words
from lmtemplate.study.show.plots import rate_in_terminal

DRAWN_POINTS = 2000  # a drawing has at most as many
LENGTH_LIMIT = 2**53  # from here on, floats leave out whole numbers
WALKED_STEPS = 10**7  # at most, for torch's schedules say a step's rate after all steps before it


def points(steps: int) -> Ints:
    """The steps that are drawn, from the first to the last."""
    return np.unique(np.linspace(1, steps, min(steps, DRAWN_POINTS)).round().astype(np.int64))


def rates(schedule: Schedule, steps: int, peak: float) -> tuple[Ints, Floats]:
    """(N,) steps, of which the first is 1, and (N,) learning rates at them."""
    chosen = points(steps)
    factors = [schedule.factor(int(step) - 1, steps) for step in chosen]
    return chosen, peak * np.array(factors, dtype=np.float64)


def drawing(schedule: Schedule, steps: int, peaks: Mapping[str, float]) -> str:
    """The learning rate as a curve, and its warm-up, peak and floor in words.

    Of the parameter groups and their peak rates, the first is drawn. Raises ConfigError at rate 0.
    """
    (name, peak), *others = peaks.items()
    if not peak > 0:
        raise ConfigError(f"the learning rate of {name} is {peak:g}: nothing would be learned")
    chosen, values = rates(schedule, steps, peak)
    highest, last, warmup = values.max(), values[-1], schedule.warmup_steps
    top = chosen[values >= highest * (1 - 1e-9)]
    share = f"{warmup / steps:.1%} of the run"
    long = "; more than half of it is warm-up" if warmup > steps / 2 else ""
    rise = f"steps 1 to {warmup:,}, {share}, from 1/{warmup or 1:,} of the peak{long}"
    groups = ", ".join(f"{group} {rate:g}" for group, rate in others)
    return "\n".join(
        [
            f"{type(schedule).__name__} over {steps:,} steps",
            rate_in_terminal(chosen, values),
            f"  warmup   {rise if warmup else 'none: step 1 has the full rate'}",
            f"  peak     {highest:g} at steps {top[0]:,} to {top[-1]:,}"
            + (f" (other groups: {groups})" if groups else ""),
            f"  floor    {schedule.floor_ratio * peak:g}; the last update has {last:.3g} "
            f"at step {steps:,}, {last / highest:.2%} of the peak",
        ]
    )


def drawing_of_torch(
    make: Callable[[Optimizer], LRScheduler], optimizer: Optimizer, steps: int
) -> str:
    """The same of a schedule of torch, which says no more than a rate at each step.

    Raises ConfigError for one that cannot go so far, or not with this optimizer.
    """
    groups = [str(group.get("name", n)) for n, group in enumerate(optimizer.param_groups)]
    taken = list[list[float]]()
    try:
        scheduler = make(optimizer)
        name = type(scheduler).__name__
        if isinstance(scheduler, ReduceLROnPlateau):
            first = optimizer.param_groups[0]["lr"]
            return f"{name}: {first:g} until validations stop falling; when, only the run can tell"
        with warnings.catch_warnings(action="ignore"):  # that the optimizer makes no steps here
            for _ in range(steps):
                taken.append([group["lr"] for group in optimizer.param_groups])
                scheduler.step()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model.schedule, after {len(taken):,} steps: {error}") from error
    values = np.array(taken)  # (steps, groups)
    highest, curve = values.max(0), values[:, 0]
    if not highest[0] > 0:
        raise ConfigError(f"the learning rate of {groups[0]} is 0: nothing would be learned")
    others = zip(groups[1:], highest[1:], strict=True)
    told = ", ".join(f"{group} {rate:g}" for group, rate in others)
    return "\n".join(
        [
            f"{name} over {steps:,} steps",
            rate_in_terminal(points(steps), curve[points(steps) - 1]),
            f"  peak     {highest[0]:g}, first at step {curve.argmax() + 1:,}"
            + (f" (other groups: {told})" if told else ""),
            f"  end      {curve[-1]:.3g} at step {steps:,}, {curve[-1] / highest[0]:.2%} of the peak",
        ]
    )


def schedule(words: list[str], allowed: list[str]) -> None:
    """Draw the learning rate of a planned run."""
    _, words = split_words("schedule", words, {})
    cli = TrainingCLI(words, allowed, "schedule")
    length = make_plan(cli)
    is_ours = isinstance(cli.model.schedule, Schedule)
    if (steps := length.steps) >= (LENGTH_LIMIT if is_ours else WALKED_STEPS):
        raise ConfigError(f"{length} comes to {steps:.3g} steps; give the run a smaller length")
    check_settings(cli, steps)
    optimizer = cli.model.recipe.build(cli.model.net)
    if not isinstance(cli.model.schedule, Schedule):
        print(drawing_of_torch(cli.model.schedule, optimizer, steps))
        return
    groups = enumerate(optimizer.param_groups)
    peaks = {str(group.get("name", number)): group["lr"] for number, group in groups}
    print(drawing(cli.model.schedule, steps, peaks))
