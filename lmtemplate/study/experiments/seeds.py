"""`fit --seeds N` -> an arm: N runs that differ in seed alone, one after another, in RUN/seed-S."""

from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from lmtemplate.cli import TrainingCLI
from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.fit import fit
from lmtemplate.plain_file import at_home
from lmtemplate.record import is_recorded
from lmtemplate.run_dir import refuse_links, to_json
from lmtemplate.run_length import only_limit
from lmtemplate.study.experiments.flags import SEEDS, split_words


def first_of(words: list[str], allowed: list[str], verb: str = "fit") -> tuple[Path, int]:
    """The folder and the seed that a config and its flags name, for several runs one after another.

    Raises ConfigError where the folder is a run or has a link that leaves it, or the runs would take
    several devices, or have no length.
    """
    cli = TrainingCLI(words, allowed, verb)
    only_limit(cli.config)
    folder = at_home(cli.config.run_dir)
    if is_recorded(folder):
        raise ConfigError(f"{folder} is a run; name a folder for several with --run_dir")
    refuse_links(folder)
    if cli.machine.world_size > 1:
        raise ConfigError(
            "several runs in one process take one device; give --trainer.devices=1, or start each "
            f"by itself (--seed_everything=S --run_dir={quote(str(folder))}/seed-S)"
        )
    return folder, cli.config.seed_everything


def train_seed(words: list[str], allowed: list[str], arm: Path, seed: int) -> Path:
    """Train a seed of an arm, or go on with it; nothing is done where it has ended."""
    own = ["--resume=auto", f"--seed_everything={seed}", f"--run_dir={arm / f'seed-{seed}'}"]
    return fit([*words, *own], allowed)


def train_arm(words: list[str], allowed: list[str], count: int) -> Path:
    """Train each seed that is not finished yet, or go on with it; returns the arm's folder.

    A seed whose numbers turn bad is a result: the others are trained, then NumbersError is raised.
    """
    arm, first = first_of(words, allowed)
    failed = None
    for seed in range(first, first + count):
        print(f"seed {seed}, {seed - first + 1} of {count}", flush=True)
        try:
            train_seed(words, allowed, arm, seed)
        except NumbersError as error:
            failed = NumbersError(f"seed {seed}: {error}")
            print(f"{failed}; the other seeds go on", flush=True)
    print(spread_of(arm), flush=True)
    if failed:
        raise failed
    return arm


def scores_in(arm: Path) -> tuple[str, dict[Any, float]]:
    """What an arm is judged by, and seed -> score."""
    from lmtemplate.study.experiments.arms import named_arm, runs_in, score_name, scores_of

    found = named_arm(runs_in(arm), arm)
    name = score_name([found])
    return name, scores_of(found, name)


def spread_of(arm: Path) -> str:
    """The scores of an arm in a sentence."""
    name, by_seed = scores_in(arm)
    scores = np.array([*by_seed.values()])
    if len(scores) < 2:
        return f"{arm}: no two seeds to compare"
    return (
        f"{arm}: {len(scores)} seeds, {name} {scores.mean():.4f}, standard "
        f"deviation {scores.std(ddof=1):.4f}; next: lmtemplate compare OTHER {quote(str(arm))}"
    )


def fit_seeds(words: list[str], allowed: list[str]) -> None:
    """The core's `fit`, and with --seeds once for each."""
    if {"-h", "--help"} & {*words}:
        print(f"  --seeds N             {SEEDS['seeds']['help']}")
    if not any(word.partition("=")[0] == "--seeds" for word in words):
        fit(words, allowed)
    else:
        given, others = split_words("fit", words, SEEDS)
        arm = train_arm(others, allowed, given.seeds)
        if given.json:  # the last line
            name, scores = scores_in(arm)
            print(to_json({"arm": str(arm), "score": name, "scores": scores}, indent=None))
