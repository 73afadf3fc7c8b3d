"""A config with a change -> an arm of seeds, compared with the standing best: kept or not, and why."""

import hashlib
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.errors import ConfigError
from lmtemplate.run_dir import git_state, read_json, to_json, write_json
from lmtemplate.study.experiments.arms import Arm, differ, named_arm, runs_in
from lmtemplate.study.experiments.flags import SEEDS, split_words
from lmtemplate.study.experiments.seeds import first_of, train_arm
from lmtemplate.study.experiments.uncommitted import uncommitted_changes
from lmtemplate.study.run_files import open_no_link
from lmtemplate.study.show.compare import conclude

BEST, OUTCOME = "best.json", "experiment.json"
SEEDS_OF_EXPERIMENT = 3
MOST_COST = 1.05  # times the FLOPs of the best
HOW_VALIDATED = ("data.path", "data.max_val_blocks", "trainer.limit_val_batches")
EFFECT = 0.01  # bits per byte


def cost_of(arm: Arm) -> float:
    """Mean training FLOPs of its runs; NaN if unknown."""
    return float(np.mean([run.summary.get("flops") or np.nan for run in arm.runs]))


def judge_experiment(arm: Arm, best: Arm) -> tuple[bool, str]:
    """Whether an arm replaces the best, and why."""
    settings = [each.runs[0].settings for each in (best, arm)]
    other = [key for key in HOW_VALIDATED if settings[0].get(key) != settings[1].get(key)]
    if other or differ([best, arm], "fingerprint"):
        return (
            False,
            f"it was validated on other text than {best.name}: {', '.join(other) or 'data'}",
        )
    _, (found,) = conclude([best, arm], [best.name, arm.name], None, None, EFFECT)
    ratio = cost_of(arm) / cost_of(best)
    if found.better == arm.name and not ratio <= MOST_COST:
        return False, f"{found.sentence}, but for {ratio:.2f} times the FLOPs"
    return found.better == arm.name, found.sentence


def check_same_code(folder: Path) -> None:
    """Note the code of a new experiment. Raises ConfigError where it began with other code."""
    before = read_json(folder / OUTCOME)
    changes = hashlib.sha256(uncommitted_changes().encode()).hexdigest()
    now = {"commit": git_state()["commit"], "changes_sha256": changes}
    if before and any(before.get(key) != now[key] for key in now):
        raise ConfigError(f"{folder} was trained with other code; give the experiment another name")
    write_json(folder / OUTCOME, {**before, **now})


def conclude_experiment(folder: Path) -> dict[str, Any]:
    """Compare a trained arm with the standing best, and put it in its place if it is better."""
    standing = folder.parent / BEST
    best = read_json(standing).get("experiment")
    arms = [one.name for one in folder.parent.iterdir() if one.is_dir() and not one.is_symlink()]
    if best not in arms:  # a stranger's best.json could name any folder of the disk
        best, kept, reason = None, True, "it is the first: the next are compared with it"
    elif best == folder.name:
        kept, reason = True, "it is the standing best"
    else:
        before = folder.parent / best
        kept, reason = judge_experiment(*(named_arm(runs_in(p), p) for p in (folder, before)))
    if kept:
        write_json(standing, {"experiment": folder.name})
    outcome = {"experiment": folder.name, "kept": kept, "reason": reason, "against": best}
    write_json(folder / OUTCOME, {**read_json(folder / OUTCOME), **outcome})
    return outcome


def experiment(words: list[str], allowed: list[str]) -> None:
    """Train a config and its changes with several seeds, and say whether to keep the changes.

    The standing best is named in best.json beside the experiment's folder. The same command goes on
    after a kill.
    """
    given, words = split_words("experiment", words, SEEDS)
    folder, _ = first_of(words, allowed, "experiment")
    check_same_code(folder)
    path = folder / "output.log" if given.json else Path(os.devnull)
    with (
        open(path, "a", encoding="utf-8", opener=open_no_link) as log,
        redirect_stdout(log if given.json else sys.stdout),
    ):
        train_arm(words, allowed, given.seeds or SEEDS_OF_EXPERIMENT)
    outcome = conclude_experiment(folder)
    if given.json:
        print(to_json(outcome))
    else:
        print(f"{'kept' if outcome['kept'] else 'not kept'}: {outcome['reason']}")
