"""Runs, or arms of seeds -> which is better and by how much, a table, a page with their curves."""

import json as json_text
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmtemplate.checkpoint.compatibility import differences
from lmtemplate.errors import ConfigError
from lmtemplate.record import Floats
from lmtemplate.run_dir import to_json, write_text
from lmtemplate.study.diagnose.diagnose import examine, few_words
from lmtemplate.study.experiments.arms import (
    NO_MATTER,
    SEED_KEY,
    Arm,
    common_budget,
    differ,
    read_arms,
    score_name,
    scores_of,
)
from lmtemplate.study.experiments.comparison import Comparison, Scores, compare_all
from lmtemplate.study.experiments.ledger import seeds_in_ledger
from lmtemplate.study.experiments.statistics import pool
from lmtemplate.study.progress import pieces, progress_shown
from lmtemplate.study.show import page
from lmtemplate.study.show.overlay import overlay
from lmtemplate.study.show.page import BITS, NONE, RunFiles

Axis = Literal["steps", "tokens", "flops", "seconds"]
UNITS = {BITS: "bits per byte"}
MOST_LISTED = 8  # seeds
SHORT = "too short to judge"
Rows = list[tuple[str, list[str]]]


def verdict_of(run: RunFiles, allow: Sequence[str] = ()) -> str:
    """That of `diagnose`, in a few words: the first fault and how many more there are."""
    return few_words(examine(run.folder, allow=allow)) if len(run.record) else NONE


def labels_of(arms: list[Arm]) -> list[str]:
    """A name for each arm: its own, or its path where two are alike; shortened if unique."""
    names = [arm.name for arm in arms]
    labels = [
        name if names.count(name) == 1 else str(arm.folder)
        for name, arm in zip(names, arms, strict=True)
    ]
    short = [f"{name[:17]}…{name[-18:]}" if len(name) > 36 else name for name in labels]
    return short if len({*short}) == len(arms) else labels


def setting_rows(arms: list[Arm]) -> Rows:
    """Settings that differ between the arms, named as on the command line."""
    all_settings = [arm.runs[0].settings for arm in arms]
    known = [settings for settings in all_settings if settings]
    keys = sorted({key for other in known[1:] for key in differences(known[0], other)})

    def cells(key: str) -> list[str]:
        values = [settings.get(key, NONE) for settings in all_settings]
        return [v if isinstance(v, str) else json_text.dumps(v, default=str) for v in values]

    names = {key: key.replace("init_args.", "").removesuffix(".class_path") for key in keys}
    seed = () if any(len(arm.runs) > 1 for arm in arms) else (SEED_KEY,)
    shown = (key for key in keys if key in seed or not key.startswith(NO_MATTER))
    return [(names[key], cells(key)) for key in shown]


def count_verdicts(verdicts: list[str]) -> str:
    """The verdicts of an arm's runs: "no fault seen", or "spike (1 of 5), no fault seen (4 of 5)"."""
    counts = {verdict: verdicts.count(verdict) for verdict in sorted({*verdicts})}
    if len(counts) == 1:
        return verdicts[0]
    return ", ".join(f"{said} ({count} of {len(verdicts)})" for said, count in counts.items())


def result_rows(arms: list[Arm], scores: list[Scores], verdicts: list[list[str]]) -> Rows:
    """What came of each arm: the figures of its median run, and what its seeds say together."""
    columns = []
    for arm, of_arm, said in zip(arms, scores, verdicts, strict=True):
        order = np.argsort([of_arm.get(seed, np.inf) for seed in arm.seeds])
        column = page.figures_of(arm.runs[order[(len(order) - 1) // 2]])
        if any(len(other.runs) > 1 for other in arms):
            values = np.array([*of_arm.values()])
            noise = pool([values])
            few = len(arm.seeds) <= MOST_LISTED
            column["seeds"] = ", ".join(map(str, arm.seeds)) if few else str(len(arm.seeds))
            column["mean of seeds"] = page.number(values.mean() if len(values) else None, ".4f")
            column["deviation"] = page.number(noise.deviation if noise else None, ".4f")
        columns.append({**column, "verdict": count_verdicts(said)})
    return [(name, [column[name] for column in columns]) for name in columns[0]]


def notes_on(
    arms: list[Arm], labels: list[str], verdicts: list[list[str]], at: str | None = None
) -> list[str]:
    """What one must know before comparing the figures."""
    notes = []
    if differ(arms, "tokenizer_sha256"):
        notes.append(
            "The tokenizers differ, so losses per token cannot be compared. Compare bits per byte; "
            "the plot shows those."
        )
    elif differ(arms, "fingerprint"):
        notes.append("The data differ: each run was validated on its own text.")
    named = list(zip(labels, arms, verdicts, strict=True))
    without = [name for name, arm, _ in named if not all(run.flops_per_token for run in arm.runs)]
    if without:
        notes.append(f"The FLOPs of {', '.join(without)} are unknown: no summary.json yet.")
    ended = (run.summary.get("stop_reason") for arm in arms for run in arm.runs)
    if unfinished := sum(reason in (None, "interrupted") for reason in ended):
        notes.append(f"{unfinished} of the runs have not finished.")
    short = [name for name, _, said in named if any(verdict.startswith(SHORT) for verdict in said)]
    if short:
        notes.append(f"{', '.join(short)}: {SHORT}; longer runs may turn out otherwise.")
    tokens = [arm.runs[0].summary.get("tokens") or np.nan for arm in arms]
    if not at and max(tokens) > 1.01 * min(tokens):
        notes.append("They had different numbers of tokens; --at tokens compares at equal cost.")
    return notes


def as_text(rows: Rows, labels: list[str], width: int) -> str:
    """The table for a terminal: one column for each run, in blocks that fit `width` characters."""
    names = ["", *(name for name, _ in rows)]
    first = max(map(len, names))
    left = [f"{name:<{first}}" for name in names]
    blocks = [left]
    for index, label in enumerate(labels):
        column = [label, *(cells[index] for _, cells in rows)]
        wide = max(map(len, column))
        if first < len(blocks[-1][0]) > width - wide - 2:
            blocks.append(left)
        blocks[-1] = [f"{a}  {b:>{wide}}" for a, b in zip(blocks[-1], column, strict=True)]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def comparison_json(
    arms: list[Arm], scores: list[Scores], found: list[Comparison], **more: Any
) -> str:
    """All that was found, as one object of strict JSON."""
    described = [
        {
            "name": arm.name,
            "runs": [str(run.folder) for run in arm.runs],
            "scores": {str(seed): value for seed, value in of_arm.items()},
        }
        for arm, of_arm in zip(arms, scores, strict=True)
    ]
    concluded = [
        asdict(one) | {"better": one.better, "more_seeds": one.more_seeds, "sentence": one.sentence}
        for one in found
    ]
    content = {"comparisons": concluded, "arms": described, **more}
    return to_json(content)


def write_comparison(
    output: Path,
    title: str,
    arms: list[Arm],
    labels: list[str],
    rows: Rows,
    sentences: list[str],
    notes: list[str],
) -> None:
    """The page: what can be concluded, the table, and all curves in one plot. Raises DiskError."""
    parts = {
        "rows": [(name, *cells) for name, cells in rows],
        "head": ["", *labels],
        "sentences": sentences,
        "notes": notes,
        "curves": page.plot_html(overlay(arms, labels)),
    }
    write_text(output, page.render("compare", title, parts))


def conclude(
    arms: list[Arm], labels: list[str], at: Axis | None, budget: float | None, effect: float
) -> tuple[list[Scores], list[Comparison]]:
    """Scores of each arm, and what they say of each against the first."""
    name = score_name(arms)
    scores = [scores_of(arm, name, at, budget or np.inf) for arm in arms]
    if name != BITS and differ(arms, "tokenizer_sha256"):
        scores = [{} for _ in arms]  # nats per token of other tokens

    def earlier() -> list[Floats]:
        known = name == BITS and at is None
        return [seeds_in_ledger(arm.runs[0]) for arm in arms] if known else []

    return scores, compare_all(labels, scores, UNITS.get(name, "nats per token"), effect, earlier)


def compare(
    runs: list[Path],
    output: Path = Path("compare.html"),
    at: Axis | None = None,
    effect: float = 0.01,
    json: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Say which is better and by how much; print all side by side, and draw them in one page.

    Args:
        runs: run directories, or folders of runs that differ in seed alone: each is an arm. The
            others are compared with the first.
        output: the page to write; it opens without a network.
        at: compare at as many steps, tokens, FLOPs or seconds as all had; at the best validation
            of each run if not given.
        effect: the difference that would matter, in bits per byte.
        json: print one JSON object and nothing else.
        allow: packages outside lmtemplate whose classes the checkpoints may name.
    """
    if not effect > 0:
        raise ConfigError(f"--effect {effect:g} has to be above 0")
    arms, notes = read_arms(runs)
    labels, budget = labels_of(arms), common_budget(arms, at) if at else None
    scores, found = conclude(arms, labels, at, budget, effect)
    with progress_shown(unless=json):
        verdicts = [
            [verdict_of(run, allow or ()) for run in pieces(arm.runs, f"verdicts of {label}")]
            for arm, label in zip(arms, labels, strict=True)
        ]
    rows = setting_rows(arms) + result_rows(arms, scores, verdicts)
    notes += notes_on(arms, labels, verdicts, at)
    cost = f"at {budget:,.4g} {at}: " if budget else ""
    sentences = [cost + one.sentence for one in found]
    notes = [one.against_noise for one in found if one.against_noise] + notes
    title = f"{len(arms)} arms beside each other"
    write_comparison(output, title, arms, labels, rows, sentences, notes)
    if json:
        basis = {"at": at, "budget": budget, "page": str(output)}
        print(comparison_json(arms, scores, found, **basis, notes=notes))
        return
    print(as_text(rows, labels, shutil.get_terminal_size().columns), "", sep="\n")
    print(*sentences, *notes, f"curves: {output}", sep="\n")
