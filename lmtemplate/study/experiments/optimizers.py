"""A config -> SGD, momentum, Adam, AdamW and Muon on it: a table, one plot, and which is better.

All begin with the same weights and see the same batches, seed by seed. The learning rate of each is
chosen by the same search on the first seed: three rates half a decade apart, and further ones on
the side where the best is at the edge. Everything else is the class's default.
"""

import shutil
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.errors import NumbersError
from lmtemplate.run_dir import to_json
from lmtemplate.study.experiments.arms import Arm, named_arm, positions, runs_in, scores_of
from lmtemplate.study.experiments.comparison import compare_all
from lmtemplate.study.experiments.flags import SEEDS, split_words
from lmtemplate.study.experiments.seeds import first_of, train_seed
from lmtemplate.study.experiments.statistics import pool
from lmtemplate.study.run_files import duration, open_no_link, read_summary
from lmtemplate.study.show.compare import UNITS, Rows, as_text, write_comparison
from lmtemplate.study.show.page import BITS, RunFiles, number, read_run

HERE = "lmtemplate.optimizers"
MOST_RATES = 6
SEEDS_OF_EACH = 3
HALF_DECADE = 10**0.5


@dataclass(frozen=True)
class Contender:
    """An optimizer, the rate that its search begins at, and what else depends on the rate."""

    kind: str
    rate: float
    settings: tuple[tuple[str, float], ...] = ()
    follows: tuple[tuple[str, float], ...] = ()  # setting -> its share of the rate

    def words(self, rate: float) -> list[str]:
        """The flags that train with it."""
        values = [("lr", rate), *self.settings, *((name, s * rate) for name, s in self.follows)]
        chosen = f"--model.optimizer={HERE}.{self.kind}"
        return [chosen, *(f"--model.optimizer.{name}={value:.3g}" for name, value in values)]


# The first is what the others are compared with.
CONTENDERS = {
    "adamw": Contender("AdamW", 3e-3),
    "adam": Contender("Adam", 3e-3),
    "muon": Contender("MuonAdamW", 0.02, follows=(("adamw_lr", 0.15),)),
    "momentum": Contender("SGD", 0.1, (("momentum", 0.9),)),
    "sgd": Contender("SGD", 1.0, (("momentum", 0.0),)),
}


def next_rate(scores: dict[float, float], start: float) -> float | None:
    """The rate to try after these: rate -> score, lower is better; None when the search has ended."""
    for rate in (start, start / HALF_DECADE, start * HALF_DECADE):
        if not any(np.isclose(rate, tried) for tried in scores):
            return rate
    rates, best = sorted(scores), best_rate(scores)
    if len(rates) == MOST_RATES or best not in (rates[0], rates[-1]):
        return None
    return best / HALF_DECADE if best == rates[0] else best * HALF_DECADE


def best_rate(scores: dict[float, float]) -> float:
    """Of several that are as good, as when all have diverged, the lowest."""
    return min(sorted(scores), key=lambda rate: scores[rate])


@dataclass(frozen=True)
class Tournament:
    """Where and with which words all are trained."""

    words: list[str]
    allowed: list[str]
    folder: Path
    first_seed: int
    quiet: bool

    def arm_of(self, name: str, rate: float) -> Path:
        return self.folder / f"{name}-lr-{rate:.3g}"

    def train(self, name: str, rate: float, seed: int) -> float:
        """Bits per byte of a run, trained as far as it is not yet; infinite if it diverges."""
        arm, kind = self.arm_of(name, rate), CONTENDERS[name]
        run = arm / f"seed-{seed}"
        words = [
            *self.words,
            *kind.words(rate),
            "--report=false",
            "--trainer.enable_progress_bar=false",
        ]
        diverged = read_summary(run).get("stop_reason") == "numbers"
        log_file = self.folder / "output.log"
        with (
            open(log_file, "a", encoding="utf-8", opener=open_no_link) as log,
            redirect_stdout(log),
        ):
            try:
                if not diverged:
                    train_seed(words, self.allowed, arm, seed)
            except NumbersError:
                diverged = True
        bits = read_run(run).logged(BITS)[1]
        score = np.inf if diverged or not len(bits) else float(bits.min())
        if not self.quiet:
            print(
                f"  {name:<8}  rate {rate:<8.3g}  seed {seed}: {score:.4f} bits per byte",
                flush=True,
            )
        return score

    def search(self, name: str) -> dict[float, float]:
        """Rate -> bits per byte of the first seed, of every rate that was tried."""
        scores = dict[float, float]()
        while (rate := next_rate(scores, CONTENDERS[name].rate)) is not None:
            scores[rate] = self.train(name, rate, self.first_seed)
        return scores


def reached(run: RunFiles, target: float) -> tuple[float, float]:
    """Steps and seconds until a run's bits per byte are at a target, by straight lines; NaN: never.

    Before step 1 a run has what it logged for step 0.
    """
    steps, bits = run.logged(BITS)
    steps, bits = np.insert(steps, 0, 0), np.insert(bits, 0, run.record.initial.get(BITS, np.nan))
    below = np.flatnonzero(bits <= target)
    if not len(below):
        return np.nan, np.nan
    after = max(1, below[0])
    part = (bits[after - 1] - target) / (bits[after - 1] - bits[after])
    places = positions(run, steps)
    at = [
        values[after - 1] + part * (values[after] - values[after - 1])
        for values in (places["steps"], places["seconds"])
    ]
    return at[0], at[1]


def tournament_rows(arms: list[Arm], rates: list[float], target: float) -> Rows:
    """The table, a column for each arm; figures are means of the seeds."""
    scores = [np.array([*scores_of(arm, BITS).values()]) for arm in arms]
    noises = [pool([values]) for values in scores]
    ends = [np.array([reached(run, target) for run in arm.runs]).mean(axis=0) for arm in arms]
    return [
        ("learning rate", [f"{rate:.3g}" for rate in rates]),
        ("best bits per byte", [number(values.mean(), ".4f") for values in scores]),
        ("deviation of seeds", [number(n.deviation if n else None, ".4f") for n in noises]),
        ("seeds", [str(len(values)) for values in scores]),
        (f"steps to {target:.4f}", [number(steps) for steps, _ in ends]),
        (f"time to {target:.4f}", [number(seconds, duration) for _, seconds in ends]),
    ]


def conclude_tournament(
    tournament: Tournament, searches: dict[str, dict[float, float]]
) -> dict[str, Any]:
    """What came of it, as one object; draws the page."""
    names, rates = [*searches], [best_rate(scores) for scores in searches.values()]
    paths = [tournament.arm_of(name, rate) for name, rate in zip(names, rates, strict=True)]
    arms = [named_arm(runs_in(path), path) for path in paths]
    scores = [scores_of(arm, BITS) for arm in arms]
    target = max(score for of_arm in scores for score in of_arm.values())  # every run reached it
    rows = tournament_rows(arms, rates, target)
    sentences = [one.sentence for one in compare_all(names, scores, UNITS[BITS], 0.01)]
    tried = ", ".join(f"{name} {len(found)}" for name, found in searches.items())
    notes = [f"Rates tried on seed {tournament.first_seed}, of which the best was taken: {tried}."]
    drawn, title = tournament.folder / "optimizers.html", "Optimizers on the same batches"
    write_comparison(drawn, title, arms, names, rows, sentences, notes)
    described = [
        {
            "name": name,
            "rate": rate,
            "tried": {f"{r:.3g}": s if np.isfinite(s) else None for r, s in searches[name].items()},
            "scores": {str(seed): score for seed, score in of_arm.items()},
        }
        for name, rate, of_arm in zip(names, rates, scores, strict=True)
    ]
    concluded = {"target": target, "table": rows, "sentences": sentences, "notes": notes}
    return {"optimizers": described, **concluded, "page": str(drawn)}


def compare_optimizers(words: list[str], allowed: list[str]) -> None:
    """Train a config with each optimizer in DIR, and print and draw them beside each other.

    What is there is not trained again, so the same command goes on after a kill.
    """
    given, words = split_words("compare-optimizers", words, SEEDS)
    folder, first = first_of(words, allowed, "compare-optimizers")
    folder.mkdir(parents=True, exist_ok=True)
    tournament = Tournament(words, allowed, folder, first, given.json)
    searches = {name: tournament.search(name) for name in CONTENDERS}
    if np.isinf(min(min(scores.values()) for scores in searches.values())):
        raise NumbersError(
            f"every run diverged, or logged no {BITS}; {folder / 'output.log'} says which: mend the "
            "config, and name another --run_dir"
        )
    for seed in range(first + 1, first + (given.seeds or SEEDS_OF_EACH)):
        for name, scores in searches.items():
            tournament.train(name, best_rate(scores), seed)
    told = conclude_tournament(tournament, searches)
    if given.json:
        print(to_json(told))
        return
    print("", as_text(told["table"], [*searches], shutil.get_terminal_size().columns), sep="\n")
    print("", *told["sentences"], *told["notes"], f"curves: {told['page']}", sep="\n")
