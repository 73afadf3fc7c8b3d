"""`fit --seeds N` -> an arm: N runs that differ in seed alone, one after another, in RUN/seed-S."""

from pathlib import Path
from shlex import quote

import numpy as np

from lmtemplate.cli import TrainingCLI
from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.fit import fit
from lmtemplate.record import is_recorded
from lmtemplate.run_dir import refuse_link
from lmtemplate.trainer import quieten

HELP = (
    "  --seeds N             as many runs, in RUN/seed-S; the first has seed_everything, then + 1\n"
)


def take_seeds(words: list[str]) -> tuple[int | None, list[str]]:
    """Split off `--seeds N`: (N or None, other words). Raises ConfigError."""
    count, others, rest = None, list[str](), iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--seeds":
            others.append(word)
            continue
        value = value if equals else next(rest, "")
        if not value.isdecimal() or int(value) < 1:
            says = f"expected a whole number from 1 on, got {value or 'nothing'}"
            raise ConfigError(f"--seeds (command line): {says}")
        count = int(value)
    return count, others


def say_help(words: list[str], more: str = "") -> None:
    """Explain the flags that are no settings of a run, where help is asked for."""
    if {"-h", "--help"} & {*words}:
        print(f"{HELP}{more}")


def first_of(words: list[str], allowed: list[str], verb: str = "fit") -> tuple[Path, int]:
    """The folder and the seed that a config and its flags name, for several runs one after another.

    Raises ConfigError where the folder is a run, or the runs would take several devices.
    """
    quieten()
    cli = TrainingCLI(words, allowed, verb)
    folder = Path(cli.config.run_dir).expanduser()
    if is_recorded(folder):
        raise ConfigError(f"{folder} is a run; name a folder for several with --run_dir")
    if cli.machine.world_size > 1:
        raise ConfigError(
            "several runs in one process take one device; give --trainer.devices=1, or start each "
            f"by itself (--seed_everything=S --run_dir={quote(str(folder))}/seed-S)"
        )
    return folder, cli.config.seed_everything


def train_seed(words: list[str], allowed: list[str], arm: Path, seed: int) -> Path:
    """Train a seed of an arm, or go on with it; nothing is done where it has ended."""
    refuse_link(run := arm / f"seed-{seed}")
    return fit([*words, "--resume=auto", f"--seed_everything={seed}", f"--run_dir={run}"], allowed)


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


def spread_of(arm: Path) -> str:
    """The scores of an arm in a sentence."""
    from lmtemplate.study.experiments.arms import named_arm, runs_in, score_name, scores_of

    found = named_arm(runs_in(arm), arm)
    scores = np.array([*scores_of(found, score_name([found])).values()])
    if len(scores) < 2:
        return f"{arm}: no two seeds to compare"
    return (
        f"{arm}: {len(scores)} seeds, {score_name([found])} {scores.mean():.4f}, standard "
        f"deviation {scores.std(ddof=1):.4f}; next: lmtemplate compare OTHER {quote(str(arm))}"
    )


def fit_seeds(words: list[str], allowed: list[str]) -> None:
    """The core's `fit`, and with --seeds once for each."""
    count, others = take_seeds(words)
    say_help(words)
    if count is None:
        fit(words, allowed)
    else:
        train_arm(others, allowed, count)
