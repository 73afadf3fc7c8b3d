"""A finished run -> one line of the ledger beside it; the ledger -> a table of all runs."""

import hashlib
import json as json_text
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from lmtemplate.checkpoint.compatibility import differences
from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.record import Floats, is_recorded
from lmtemplate.run_dir import to_json
from lmtemplate.study.experiments.arms import SEED_KEY, recipe_settings, score
from lmtemplate.study.run_files import DIFF, append_line, check_kinds, duration
from lmtemplate.study.show.page import BITS, NONE, RunFiles, number, read_run, table_lines

LEDGER = "ledger.jsonl"
KINDS_OF_LINE = {
    **dict.fromkeys(("run", "finished", "verdict", "parent", "stopped"), str),
    **dict.fromkeys(("device", "commit", "diff"), str),
    **dict.fromkeys(("bits_per_byte", "val_loss", "flops", "seconds"), float),
    **dict.fromkeys(("step", "tokens"), int),
    "changed": dict,
    "settings": {SEED_KEY: int},
    "dirty": bool,
}
LedgerLine = dict[str, Any]


def ledger_of(run: Path) -> Path:
    """Where a run's line stands: beside its folder; for a seed of an arm, beside the arm's."""
    folder = run.resolve()
    return (folder.parent.parent if folder.name.startswith("seed-") else folder.parent) / LEDGER


def read_ledger(path: Path) -> tuple[list[LedgerLine], list[str]]:
    """The last line of each run, in the order in which they finished, and notes on bad lines."""
    entries, notes = dict[str, LedgerLine](), list[str]()
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link, and what it leads to is not shown; copy the file")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for place, line in enumerate(text.splitlines(), 1):
        try:
            entry = json_text.loads(line)
            check_kinds(entry, KINDS_OF_LINE, path)
            name = entry["run"]
            if not name:
                raise ValueError("no name")
            entries.pop(name, None)
            entries[name] = {"settings": {}, "changed": {}, **entry}
        except (ValueError, KeyError, TypeError, RecursionError, CheckpointError):
            if line:
                notes.append(f"{path}:{place} is not a line of a ledger (cut by a kill?); left out")
    return [*entries.values()], notes


def nearest(settings: dict[str, Any], before: list[LedgerLine]) -> LedgerLine | None:
    """The earlier run whose settings differ in the fewest keys; of several, the latest."""
    return min(
        reversed(before),
        key=lambda entry: len(differences(entry["settings"], settings)),
        default=None,
    )


def entry_of(run: RunFiles, before: list[LedgerLine], verdict: str | None) -> LedgerLine:
    """The line of a run, as it has ended; `before` are those of earlier runs."""
    folder, kept = run.folder.resolve(), run.folder / DIFF
    settings = {**recipe_settings(run), SEED_KEY: run.settings.get(SEED_KEY)}
    parent = nearest(settings, before)
    git, hardware = run.manifest.get("git", {}), run.manifest.get("hardware", {})
    bits, losses = score(run, BITS), run.record.validations[1]
    return {
        "run": str(folder.relative_to(ledger_of(folder).parent)),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "bits_per_byte": bits if np.isfinite(bits) else None,
        "val_loss": float(losses.min()) if len(losses) else None,
        "verdict": verdict,
        "parent": parent and parent["run"],
        "changed": differences(parent["settings"], settings) if parent else {},
        "stopped": run.summary.get("stop_reason"),
        **{key: run.summary.get(key) for key in ("step", "tokens", "flops", "seconds")},
        "device": hardware.get("name"),
        "commit": git.get("commit"),
        "dirty": git.get("dirty"),
        "diff": hashlib.sha256(kept.read_bytes()).hexdigest()[:12] if kept.is_file() else None,
        "settings": settings,
    }


def add_to_ledger(run: Path, verdict: str | None) -> None:
    """Append a finished run to its ledger. The run is safe: what goes wrong costs a line."""
    path = ledger_of(run)
    try:
        before, _ = read_ledger(path)
        name = str(run.resolve().relative_to(path.parent))
        entry = entry_of(read_run(run), [one for one in before if one["run"] != name], verdict)
        append_line(path, json_text.dumps(entry, default=str))
    except (OSError, ValueError, CheckpointError) as error:
        print(f"note: the run is safe, but not in {path}: {error}", flush=True)


def close_run(run: Path, allow: Sequence[str], report: bool) -> None:
    """What the core asks for when a run has ended: explain it if wanted, note it in the ledger."""
    verdict = None
    if report:
        from lmtemplate.study.show.closing import explain_run

        verdict = explain_run(run, allow)
    if is_recorded(run):
        add_to_ledger(run, verdict)


def seeds_in_ledger(run: RunFiles) -> Floats:
    """(N,) bits per byte of the runs of the same recipe in a run's ledger, one for each seed."""
    wanted, scores = recipe_settings(run), dict[Any, float]()
    for entry in read_ledger(ledger_of(run.folder))[0]:
        settings = dict(entry["settings"])
        seed = settings.pop(SEED_KEY, None)
        if settings == wanted and isinstance(entry.get("bits_per_byte"), float):
            scores[seed] = entry["bits_per_byte"]
    return np.array([*scores.values()])


def change_in_words(entry: LedgerLine) -> str:
    """What differs from the parent: "lr 0.1 -> 0.2, from quickstart"."""
    if not entry.get("parent"):
        return "the first"
    changed = (
        f"{key.replace('init_args.', '')} {' -> '.join(map(str, old_and_new))}"
        for key, old_and_new in entry["changed"].items()
        if isinstance(old_and_new, list | tuple)
    )
    return f"{', '.join(changed) or 'nothing'}, from {entry['parent']}"


def ledger_rows(entries: list[LedgerLine]) -> Iterator[tuple[str, ...]]:
    """The table, its head first."""
    yield "run", "bits/byte", "verdict", "steps", "time", "device", "commit", "changed"
    for entry in entries:
        commit = (entry.get("commit") or NONE)[:7] + ("+" if entry.get("dirty") else "")
        yield (
            entry["run"],
            number(entry.get("bits_per_byte"), ".4f"),
            entry.get("verdict") or NONE,
            number(entry.get("step")),
            number(entry.get("seconds"), duration),
            entry.get("device") or NONE,
            commit,
            change_in_words(entry),
        )


def below(folder: Path) -> list[str]:
    """Where more runs are, as the trials of a sweep: they have a ledger of their own."""
    ledgers = {path.parent: len(read_ledger(path)[0]) for path in folder.glob(f"*/{LEDGER}")}
    # a folder's name is no flag
    words = {at: f"./{at}" if str(at)[0] == "-" else str(at) for at in sorted(ledgers)}
    return [
        f"{ledgers[at]:,} more in {at}: lmtemplate ledger {quote(word)}"
        for at, word in words.items()
    ]


def ledger(run: Path | None = None, sort: str | None = None, json: bool = False) -> None:
    """Show every run that has finished in a folder: result, verdict, cost, and what was changed.

    Args:
        run: folder of runs; runs/ if not given.
        sort: a key of a line, as bits_per_byte or seconds; the order of finishing if not given.
        json: print one JSON object with all that the lines say, and nothing else.
    """
    path = (run or Path("runs")) / LEDGER
    entries, notes = read_ledger(path)
    notes += below(path.parent)
    if not entries:
        others = "".join(f"; {note}" for note in notes)
        raise CheckpointError(
            f"no run in {path}; `lmtemplate fit` adds each that has finished{others}"
        )
    if sort:
        known = sorted(KINDS_OF_LINE.keys() - {"settings", "changed"})
        if sort not in known:
            raise ConfigError(f"--sort {sort}: no such key; there are {', '.join(known)}")
        there = [entry for entry in entries if entry.get(sort) is not None]
        rest = [entry for entry in entries if entry.get(sort) is None]
        entries = sorted(there, key=lambda entry: entry[sort]) + rest
    if json:
        print(to_json({"runs": entries, "notes": notes}))
        return
    rows = [*ledger_rows(entries)]
    lines = table_lines(rows)
    if max(map(len, lines)) > shutil.get_terminal_size().columns:
        narrow = table_lines([cells[:-1] for cells in rows])
        lines = [f"{line}\n    {cells[-1]}" for line, cells in zip(narrow, rows, strict=True)]
    print(*lines, *notes, sep="\n")
