"""`--over KEY=SPEC` -> the settings of each trial: all of a grid, or what Optuna suggests."""

import itertools
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmtemplate.errors import ConfigError
from lmtemplate.study.experiments.trials import Trial

Sampler = Literal["grid", "random", "tpe"]
Listed = tuple[str, ...]

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?(?::(\d+))?", re.IGNORECASE)
SPEC = "give values as 0.1,0.2 or a range as 1e-4..1e-1, :log and :POINTS behind it if wanted"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; `points` of them are a grid's."""

    low: float
    high: float
    is_log: bool
    is_whole: bool
    points: int | None

    def grid(self) -> Listed:
        """Evenly spaced, on a log axis if asked for, as text."""
        space = np.geomspace if self.is_log else np.linspace
        spaced = space(self.low, self.high, self.points or 2)
        numbers = [round(x) if self.is_whole else float(f"{x:.4g}") for x in spaced.tolist()]
        return tuple(dict.fromkeys(f"{number:g}" for number in numbers))


Space = dict[str, Listed | Range]  # key of a setting -> what it may be


def parse_over(text: str) -> tuple[str, Listed | Range]:
    """A key and what it may be. Raises ConfigError."""
    key, equals, spec = text.partition("=")
    key = key.removeprefix("--")
    if not (key and equals and spec):
        raise ConfigError(f"--over {text!r} is not KEY=SPEC; {SPEC}")
    if ".." not in spec:
        values = tuple(dict.fromkeys(value.strip() for value in spec.split(",")))
        if not all(values):
            raise ConfigError(f"--over {text!r} has an empty value; {SPEC}")
        return key, values
    if not (parts := RANGE.fullmatch(spec)):
        raise ConfigError(f"--over {text!r} is no range; {SPEC}")
    low, high, log, points = parts.groups()
    whole = low.lstrip("+-").isdecimal() and high.lstrip("+-").isdecimal()
    span = Range(float(low), float(high), bool(log), whole, int(points) if points else None)
    if (
        not 0 < span.high - span.low < math.inf
        or (span.is_log and span.low <= 0)
        or span.points in (0, 1)
    ):
        rule = "LOW below HIGH, LOW above 0 for :log, two POINTS or more"
        raise ConfigError(f"--over {text!r} is no range: {rule}")
    return key, span


def parse_space(overs: Sequence[str]) -> Space:
    """All keys of a sweep. Raises ConfigError for none, or for one that is there twice."""
    pairs = [parse_over(text) for text in overs]
    keys = [key for key, _ in pairs]
    if not keys:
        raise ConfigError(f"a sweep needs --over KEY=SPEC; {SPEC}")
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"--over {twice[0]} is there twice; keep one")
    return dict(pairs)


def choose_sampler(space: Space, sampler: str | None) -> Sampler:
    """A grid where each key has a list of values. Raises ConfigError where there can be none."""
    endless = [key for key, of in space.items() if isinstance(of, Range) and not of.points]
    if sampler == "grid" and endless:
        raise ConfigError(f"a grid over {endless[0]} needs its number of points: LOW..HIGH:POINTS")
    if sampler not in (None, "grid", "random", "tpe"):
        raise ConfigError(f"--sampler {sampler} is none of grid, random, tpe")
    return sampler or ("tpe" if endless else "grid")  # type: ignore[return-value]


def grid(space: Space) -> list[dict[str, str]]:
    """The settings of every point, the last key changing fastest."""
    columns = [of.grid() if isinstance(of, Range) else of for of in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*columns)]


def load_optuna() -> Any:
    """Raises ConfigError where the extra is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError(
            "random and tpe sampling, --prune and importances need Optuna: pip install -e '.[sweep]'"
        ) from error
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna


def distributions(space: Space) -> dict[str, Any]:
    """What Optuna calls the space."""
    kinds = load_optuna().distributions

    def kind(of: Listed | Range) -> Any:
        if not isinstance(of, Range):
            return kinds.CategoricalDistribution(of)
        if of.is_whole:
            return kinds.IntDistribution(int(of.low), int(of.high), log=of.is_log)
        return kinds.FloatDistribution(of.low, of.high, log=of.is_log)

    return {key: kind(of) for key, of in space.items()}


def typed(of: Listed | Range, text: str) -> str | float:
    """A setting as Optuna knows it."""
    if not isinstance(of, Range):
        return text
    return int(text) if of.is_whole else float(text)


def study_of(space: Space, trials: Sequence[Trial], sampler: Any, pruner: Any) -> Any:
    """An Optuna study that knows what has ended, in the order of the trials' numbers.

    It is made anew for each question, so the files of the trials are all that must survive a kill.
    """
    optuna = load_optuna()
    states = optuna.trial.TrialState
    known = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
    study, kinds = optuna.create_study(sampler=sampler, pruner=pruner), distributions(space)
    for trial in sorted(trials, key=lambda trial: trial.number):
        if trial.state is None:
            continue
        values = {key: typed(space[key], text) for key, text in trial.settings.items()}
        study.add_trial(
            optuna.trial.create_trial(
                state=known[trial.state],
                params=values,
                distributions=kinds,
                value=trial.loss if trial.state == "complete" else None,
                intermediate_values=trial.losses,
            )
        )
    return study


def suggest(
    space: Space, trials: Sequence[Trial], number: int, sampler: Sampler, seed: int
) -> dict[str, str]:
    """Settings of a trial: a function of its number, the seed and what has ended."""
    samplers = load_optuna().samplers
    kind = samplers.TPESampler if sampler == "tpe" else samplers.RandomSampler
    study = study_of(space, trials, kind(seed=seed + number), None)
    drawn: Mapping[str, Any] = study.ask(distributions(space)).params
    return {key: f"{v:.6g}" if isinstance(v, float) else str(v) for key, v in drawn.items()}


def are_chosen(trials: Sequence[Trial], space: Space, points: Sequence[Mapping[str, str]]) -> bool:
    """Whether trials are those of a sweep: its points in order, or settings inside of its space."""
    settings = [trial.settings for trial in trials]
    if points:
        return settings == [*points[: len(settings)]]

    def holds(of: Listed | Range, text: str) -> bool:
        if not isinstance(of, Range):
            return text in of
        number = r"[-+]?\d{1,15}" if of.is_whole else NUMBER
        return bool(re.fullmatch(number, text, re.I)) and of.low <= float(text) <= of.high

    return all(
        one.keys() == space.keys() and all(holds(space[key], text) for key, text in one.items())
        for one in settings
    )


def is_hopeless(space: Space, trials: Sequence[Trial], losses: Mapping[int, float]) -> bool:
    """Whether the best loss so far is worse than the median of other trials at that step."""
    optuna = load_optuna()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3)
    trial = study_of(space, trials, None, pruner).ask()
    for step, loss in losses.items():
        trial.report(loss, step)
    return bool(losses) and bool(trial.should_prune())


def main_effects(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Share of the variance of a grid's losses that each key alone explains (eta squared)."""
    done = [trial for trial in trials if trial.state == "complete"]
    losses = np.array([trial.loss for trial in done], dtype=np.float64)
    shares = {}
    for key in space:
        _, level = np.unique([trial.settings[key] for trial in done], return_inverse=True)
        means = np.bincount(level, losses) / np.bincount(level)
        shares[key] = float(means[level].var() / (losses.var() or 1.0))
    return shares


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Share that each key has in what makes a trial good (PED-ANOVA: Watanabe et al. 2023)."""
    optuna = load_optuna()
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    study = study_of(space, trials, None, None)
    shares: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return shares
