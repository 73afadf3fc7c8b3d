"""A config and a budget of time -> a ladder of real runs, the law that they follow, a prediction.

The ladder has narrower nets and shorter runs than the largest one. The law is fitted to all but
that run, says its loss before it is made, and is then held against it.
"""

import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate import run_dir
from lmtemplate.cli import TrainingCLI
from lmtemplate.data import IGNORED
from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.fit import make_plan, measured_seconds
from lmtemplate.plain_file import at_home
from lmtemplate.run_dir import to_json
from lmtemplate.study.diagnose.artifacts import Model, RunCorpus, open_artifacts
from lmtemplate.study.diagnose.evidence import SAMPLE_TOKENS, TRAINING_TOKENS, write_samples
from lmtemplate.study.diagnose.ngrams import longest_copy
from lmtemplate.study.diagnose.probes import AT_ONCE
from lmtemplate.study.experiments.flags import Flags, split_words
from lmtemplate.study.experiments.law import fit_law
from lmtemplate.study.experiments.scaling_results import Point, Scaling, write_page
from lmtemplate.study.experiments.sweep import Runner, SweepPlan, end
from lmtemplate.study.experiments.trials import Book
from lmtemplate.study.run_files import read_checked
from lmtemplate.study.show.page import read_run
from lmtemplate.study.understand.text_losses import predict_text

WIDTHS = (0.35, 0.5, 0.7, 1.0)  # of the config's n_embd
SHARES = (0.25, 0.5, 1.0)  # of the longest run
VALIDATED = 8192  # tokens of the validation text, for rare and common ones
SHORTEST_LADDER = 40  # of the longest run
START_SECONDS = 10.0  # of each run, for its process, validations and saving
LEAST_LOSS = 1e-9  # nats per token
LEAST_SPREAD = 1.01  # the largest net, and the longest run, is as many times the smallest at least
SECONDS_IN = {"s": 1, "m": 60, "h": 3600}
KINDS_OF_LADDER = {
    "points": [{"n_embd": 1, "steps": 1}],
    **dict.fromkeys(("parameters", "tokens"), 1),
}


def seconds_of(budget: str) -> float:
    """ "10m" -> 600. Raises ConfigError."""
    try:
        seconds = float(budget[:-1]) * SECONDS_IN[budget[-1:]]
    except (KeyError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--budget {budget!r} is no time; give it as 90s, 10m or 2h")
    return seconds


def with_sizes(n_embd: int, steps: int) -> dict[str, str]:
    """Settings of a run of the ladder; it validates at its end."""
    sizes = {"model.net.init_args.n_embd": n_embd, "trainer.max_steps": steps}
    return {key: str(v) for key, v in {**sizes, "trainer.val_check_interval": steps}.items()}


def ladder(rest: list[str], allowed: list[str], seconds: float) -> dict[str, Any]:
    """The settings of each run that fits into the time, the largest last, and that run's sizes.

    Raises ConfigError where there is no ladder.
    """
    cli = TrainingCLI(rest, allowed, "scaling")
    sizes = cli.settings["model"]["net"].get("init_args", {})
    if not {"n_embd", "n_head"} <= sizes.keys():
        raise ConfigError("scaling varies model.net.n_embd, and this net has none")
    cli.datamodule.setup("fit")
    unit = 2 * sizes["n_head"]  # a head has an even number of channels
    widths = sorted({max(1, round(share * sizes["n_embd"] / unit)) * unit for share in WIDTHS})
    if len(widths) < 2:
        raise ConfigError(f"model.net.n_embd={sizes['n_embd']} is too small for a ladder of widths")
    accumulate, per_step = make_plan(cli).accumulate, list[float]()
    for width in widths:
        smaller = TrainingCLI([*rest, f"--model.net.init_args.n_embd={width}"], allowed, "scaling")
        smaller.datamodule.setup("fit")
        per_step.append(accumulate * measured_seconds(smaller))
    left = seconds - START_SECONDS * len(widths) * len(SHARES)
    steps = max(0, int(left / (sum(per_step) * sum(SHARES))))
    if (epoch := cli.datamodule.train_sequences) is not None:  # the law is about fresh tokens
        steps = min(steps, epoch // (cli.datamodule.batch_size * accumulate))
    if steps < SHORTEST_LADDER:
        needed = SHORTEST_LADDER * sum(per_step) * sum(SHARES) + seconds - left
        raise ConfigError(
            f"a ladder up to {steps} steps is too short; give --budget {needed / 60 + 1:.0f}m or "
            "more, a smaller net, or more text"
        )
    lengths, data = [round(share * steps) for share in SHARES], cli.datamodule
    tokens = steps * accumulate * data.batch_size * data.block_size * cli.machine.world_size
    return {
        "points": [{"n_embd": width, "steps": length} for width in widths for length in lengths],
        "parameters": smaller.model.net.parameter_count(),
        "tokens": tokens,
    }


def read_ladder(path: Path) -> dict[str, Any]:
    """What `ladder` gave, and for what; {} where there is none. Raises CheckpointError."""
    known = read_checked(path, KINDS_OF_LADDER)
    sizes = [one.get(key) for one in known.get("points", ()) for key in ("n_embd", "steps")]
    is_whole = len(sizes) >= 4 * len(SHARES) and None not in sizes
    if known and not (is_whole and known.get("parameters") and known.get("tokens")):
        raise CheckpointError(f"{path} is damaged: it is no ladder; move it away")
    return known


def token_losses(model: Model, corpus: RunCorpus) -> tuple[float, float, float]:
    """Of some validation text: loss on the rarest tokens that make up a tenth, and on the others.

    The third number is the mean probability of the likeliest token: how sure the model is.
    """
    net, size = model.net, model.net.block_size
    inputs, targets, _ = corpus.batch("val", size, max(AT_ONCE, VALIDATED // size))
    (nats,), (likeliest,), _ = predict_text(net, inputs, targets, [1.0])
    seen = np.bincount(corpus.training_tokens(TRAINING_TOKENS), minlength=net.vocab_size)
    order = seen[targets[targets != IGNORED].numpy()].argsort(kind="stable")
    each, rarest = nats[order], max(1, len(order) // 10)
    return float(each[:rarest].mean()), float(each[rarest:].mean()), float(likeliest.mean())


def measure_run(run: Path, n_embd: int, steps: int, allowed: Sequence[str]) -> Point:
    """What a run of the ladder came to. Raises CheckpointError where it has no validation."""
    files = read_run(run)
    if not len(losses := files.record.validations[1]):
        raise CheckpointError(f"{run} has no validation: see its log")
    sizes = (files.summary.get("parameters") or 0, files.summary.get("tokens") or 0)
    if min(sizes) < 1:
        raise CheckpointError(f"{run / 'summary.json'} tells no parameters or tokens")
    if losses[-1] < LEAST_LOSS:
        raise CheckpointError(
            f"{run}: no law has a val/loss of {losses[-1]:g}; name another --run_dir"
        )
    point = Point(str(run), n_embd, steps, *sizes, float(losses[-1]))
    artifacts = open_artifacts(run, deep=True, allow=allowed)
    if not (artifacts.model and artifacts.corpus):
        return point
    rare, common, sure = token_losses(artifacts.model, artifacts.corpus)
    training = artifacts.corpus.training_tokens(TRAINING_TOKENS)
    copied = longest_copy(write_samples(artifacts.model, training, SAMPLE_TOKENS), training)
    return replace(point, rare=rare, common=common, sure=sure, copied=len(copied))


def check_spread(folder: Path, points: Sequence[Point]) -> None:
    """Raises CheckpointError where the sizes of the runs are too close for a law."""
    for name in ("parameters", "tokens"):
        sizes = [getattr(point, name) for point in points]
        if max(sizes) < LEAST_SPREAD * min(sizes):
            raise CheckpointError(
                f"{folder}: the runs have {min(sizes):,} to {max(sizes):,} {name} (summary.json), "
                "too close for a law; name another --run_dir"
            )


def climb(plan: SweepPlan, parameters: int, tokens: int) -> Scaling:
    """Train the ladder; the loss of the largest run is predicted, and written, before it begins."""
    book = Book(plan.folder)

    def train_to(count: int) -> list[Point]:
        Runner(replace(plan, trials=count), book).run()
        return [
            measure_run(
                plan.folder / f"trial-{trial.number:03d}",
                int(trial.settings["model.net.init_args.n_embd"]),
                int(trial.settings["trainer.max_steps"]),
                plan.allowed,
            )
            for trial in book.trials[len(made) : count]
        ]

    made = list[Point]()
    made += train_to(plan.trials - 1)
    check_spread(plan.folder, made)
    law, laws = fit_law(*zip(*((p.parameters, p.tokens, p.loss) for p in made), strict=True))
    predicted = float(law.loss(parameters, tokens))
    run_dir.write_json(plan.folder / "prediction.json", {"val_loss": predicted, **asdict(law)})
    print(f"predicted for the largest run: val/loss {predicted:.4f}", file=sys.stderr, flush=True)
    made += train_to(plan.trials)
    return Scaling(made, law, laws, predicted)


def scaling(words: list[str], allowed: list[str]) -> None:
    """Fit the law of how loss falls with parameters and tokens, and test it on the largest run.

    Args:
        words: of the command line, after the verb: --budget, --run_dir, --json, and those of fit.
        allowed: packages outside lmtemplate whose classes a config may name.
    """
    flags: Flags = {
        "budget": {"default": "10m", "help": "time for all runs, as 90s, 10m or 2h"},
        "run_dir": {"help": "folder of the runs"},
    }
    given, rest = split_words("scaling", words, flags)
    if not given.run_dir:
        raise ConfigError("scaling needs --run_dir, a folder for its runs")
    seconds, folder = seconds_of(given.budget), at_home(given.run_dir)
    with run_dir.lock(folder):
        asked = {"budget": seconds, "words": rest}
        known = read_ladder(folder / "ladder.json")
        if known and {name: known.get(name) for name in asked} != asked:
            raise ConfigError(
                f"{folder} holds a ladder of another budget or config; name another folder with "
                "--run_dir"
            )
        steps = known or {**asked, **ladder(rest, allowed, seconds)}
        run_dir.write_json(folder / "ladder.json", steps)
        words = ["--report=false", *rest]
        points = [with_sizes(one["n_embd"], one["steps"]) for one in steps["points"]]
        plan = SweepPlan(folder, {}, "grid", len(points), 1, 0, False, words, allowed, points)
        signal.signal(signal.SIGTERM, end)
        found = climb(plan, steps["parameters"], steps["tokens"])
        write_page(folder, found)
    print(to_json(found.as_json()) if given.json else found.text())
