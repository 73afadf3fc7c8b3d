"""Paths of runs, or of folders of runs -> arms: runs that differ in their seed alone, and scores."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate import metric_names
from lmtemplate.errors import ConfigError
from lmtemplate.record import Ints, is_recorded
from lmtemplate.run_dir import refuse_links
from lmtemplate.study.check.reproduce import HARMLESS
from lmtemplate.study.show.page import BITS, RunFiles, read_run

SEED_KEY = "seed_everything"
NO_MATTER = (*HARMLESS, SEED_KEY, "pictures", "tensorboard", "trainer.enable_progress_bar")
Places = dict[str, list[float]]  # a curve's points on each axis


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone; or one run."""

    name: str
    folder: Path
    runs: list[RunFiles]

    @property
    def seeds(self) -> list[Any]:
        return [run.settings.get(SEED_KEY) for run in self.runs]


def recipe_settings(run: RunFiles) -> dict[str, Any]:
    """The settings that decide what is trained, but for the seed: key path -> value."""
    return {key: v for key, v in run.settings.items() if not key.startswith(NO_MATTER)}


def runs_in(path: Path) -> list[RunFiles]:
    """The run at a path, or those one folder below it.

    Raises CheckpointError if there is none, ConfigError where a link leaves the path.
    """
    refuse_links(path)
    below = [] if is_recorded(path) or not path.is_dir() else sorted(path.iterdir())
    found = [read_run(folder) for folder in below if is_recorded(folder)]
    return found or [read_run(path)]


def by_recipe(runs: list[RunFiles]) -> list[list[RunFiles]]:
    """The runs of one recipe together, in the order of their seeds.

    Alone stays a run without a config, or one whose recipe and seed another has.
    """
    groups = list[list[RunFiles]]()
    for run in runs:
        for group in groups:
            same = run.settings and recipe_settings(run) == recipe_settings(group[0])
            if same and run.settings.get(SEED_KEY) not in [
                one.settings.get(SEED_KEY) for one in group
            ]:
                group.append(run)
                break
        else:
            groups.append([run])
    return [
        sorted(group, key=lambda run: str(run.settings.get(SEED_KEY)).zfill(12)) for group in groups
    ]


def named_arm(runs: list[RunFiles], folder: Path | None = None) -> Arm:
    """An arm called as its folder; as its run, without the seed where there are several."""
    if folder or len(runs) == 1:
        folder = folder or runs[0].folder
        return Arm(folder.resolve().name, folder, runs)
    home = runs[0].folder.resolve().parent
    return Arm(re.sub(r"[-_.]?(seed)?[-_.]?\d*$", "", runs[0].name) or home.name, home, runs)


def read_arms(paths: list[Path]) -> tuple[list[Arm], list[str]]:
    """The arms to compare, and notes on how they came about.

    A folder of runs is an arm, or several where its runs differ in more than the seed. Runs that
    are named one by one join where they differ in seed alone and other arms are left.

    Raises:
        ConfigError: if there are fewer than two arms, or a run is named twice.
        CheckpointError: if a path holds no run.
    """
    arms, loose, notes = list[Arm](), list[RunFiles](), list[str]()
    for path in paths:
        runs = runs_in(path)
        if runs[0].folder == path:
            loose += runs
            continue
        groups = by_recipe(runs)
        arms += [named_arm(group, path if len(groups) == 1 else None) for group in groups]
        if len(groups) > 1:
            notes.append(f"The runs in {path} differ in more than the seed: {len(groups)} arms.")
    groups = by_recipe(loose)
    if len(groups) + len(arms) == 1 < len(loose):
        groups = [[run] for run in loose]
        notes.append("The runs differ in seed alone, so any difference is noise.")
    arms += [named_arm(group) for group in groups]
    folders = [run.folder.resolve() for arm in arms for run in arm.runs]
    if len(arms) < 2 or len({*folders}) < len(folders):
        what = "two runs or more (or folders whose runs differ in seed alone), each named once"
        raise ConfigError(f"compare needs {what}, got: {' '.join(map(str, paths))}")

    def given(arm: Arm) -> int:
        folder = arm.runs[0].folder
        return next(i for i, path in enumerate(paths) if path in (folder, *folder.parents))

    return sorted(arms, key=given), notes


def differ(arms: list[Arm], key: str) -> bool:
    """Whether their manifests tell of different data: "fingerprint", or "tokenizer_sha256"."""
    runs = [run for arm in arms for run in arm.runs]
    return len({run.manifest.get("data", {}).get(key) for run in runs} - {None}) > 1


def positions(run: RunFiles, steps: Ints) -> Places:
    """The places of a run's steps on each axis; NaN where that is not known."""
    tokens = run.counted(metric_names.TOKENS, steps)
    return {
        "steps": steps.tolist(),
        "tokens": tokens.tolist(),
        "flops": (tokens * (run.flops_per_token or np.nan)).tolist(),
        "seconds": run.counted(metric_names.TRAINING_SECONDS, steps).tolist(),
    }


def common_budget(arms: list[Arm], axis: str) -> float:
    """The most steps, tokens, FLOPs or seconds that every run has a validation at or after.

    Raises ConfigError where a run does not say how many it had.
    """
    ends = list[float]()
    for run in (run for arm in arms for run in arm.runs):
        places = positions(run, run.record.validations[0])[axis]
        if not places or not np.isfinite(places[-1]):
            raise ConfigError(f"--at {axis}: how many {axis} {run.folder} had is not known")
        ends.append(places[-1])
    return min(ends)


def score(run: RunFiles, name: str, axis: str | None = None, budget: float = np.inf) -> float:
    """The lowest value of a run's validations; on an axis, the value at a budget. NaN if unknown.

    Between two validations the curve is a straight line.
    """
    steps, values = run.record.validations if name == metric_names.VAL_LOSS else run.logged(name)
    if not len(steps):
        return np.nan
    if axis is None:
        return float(values.min())
    return float(np.interp(budget, positions(run, steps)[axis], values, left=np.nan))


def scores_of(
    arm: Arm, name: str, axis: str | None = None, budget: float = np.inf
) -> dict[Any, float]:
    """Seed -> score of its run; a run without one is left out."""
    scores = (score(run, name, axis, budget) for run in arm.runs)
    return {s: v for s, v in zip(arm.seeds, scores, strict=True) if np.isfinite(v)}


def score_name(arms: list[Arm]) -> str:
    """What to compare: bits per byte, or nats per token where a run has not logged them."""
    known = all(len(run.logged(BITS)[0]) for arm in arms for run in arm.runs)
    return BITS if known else metric_names.VAL_LOSS
