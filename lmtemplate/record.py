"""What a run logged, point by point -> training_metrics.jsonl, training_metrics.json, arrays.

The JSONL file is the truth: one line of strict JSON per logging point, `{"step": 5, "train/loss":
4.19, ...}`, appended while the run goes on. A validation, and the samples written at it, have lines
of their own; a reader merges the lines of one step. The JSON file is made from it at each
validation: the arrays that scripts and plots read.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtemplate.data import Ints as Ints
from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.run_dir import folder_of, write_json, write_text

Floats = npt.NDArray[np.float64]
Line = dict[str, Any]

LINES = "training_metrics.jsonl"
ARRAYS = "training_metrics.json"
TRAIN, VAL, RATE, EPOCH = "train/loss", "val/loss", "optim/lr", "data/epoch"


def line(step: int, values: Mapping[str, Any]) -> str:
    """One line of the JSONL file. Values that are not finite are named in it, and left out."""
    bad = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
    finite = {name: value for name, value in values.items() if name not in bad}
    content = {"step": step, **finite, **({"nonfinite": bad} if bad else {})}
    return json.dumps(content, allow_nan=False) + "\n"


def is_recorded(run: Path) -> bool:
    """Whether there is a record at all: a run without loggers leaves none."""
    return (folder_of(run) / LINES).is_file()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf


def _is_entry(content: Any) -> bool:
    """Whether a line is one that `line` writes; a file may come from a stranger."""
    if not isinstance(content, dict):
        return False
    samples, names = content.get("samples", {}), content.get("nonfinite", [])
    texts = [*samples, *samples.values()] if isinstance(samples, dict) else [None]
    texts += names if isinstance(names, list) else [None]
    values = (v for k, v in content.items() if k not in ("step", "samples", "nonfinite"))
    sound = all(isinstance(text, str) for text in texts) and all(map(_is_number, values))
    return sound and type(content.get("step")) is int and 0 <= content["step"] < 2**53


def read_lines(run: Path) -> Iterator[Line]:
    """The lines of a run's JSONL file in their order; one that a kill has cut short is left out."""
    path = folder_of(run) / LINES
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                content = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if _is_entry(content):
                yield content


def cut(run: Path, first_step: int) -> None:
    """Forget what a killed start logged from this step on, which is about to be logged again."""
    kept = list[Line]()
    for entry in read_lines(run):
        if entry["step"] < first_step:
            kept.append(entry)
        elif "nonfinite" in entry:  # keep why a run went back
            kept.append({name: entry[name] for name in ("step", "nonfinite")})
    if is_recorded(run) or (folder_of(run) / LINES).is_symlink():  # a link could lead anywhere
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in kept)
        write_text(folder_of(run) / LINES, text)


@dataclass(frozen=True)
class Record:
    """A run's record as arrays of N rows, one for each logging point; NaN where nothing was logged.

    Attributes:
        steps: (N,) optimizer updates made, ascending.
        train_loss: (N,) nats per token, the mean since the last row; always finite.
        val_loss: (N,) nats per token.
        learning_rate: (N,) of the first parameter group, of the update just made.
        epochs: (N,) the pass over the data that the row's last sequence belongs to, 0-based.
        initial_val_loss: before step 1.
        nonfinite_steps: where a loss was not finite; such a point has no row.
        values: any other logged name -> (N,), as "val/bits_per_byte" or "optim/grad_norm".
        initial: name -> value before step 1.
        samples: step -> {prompt: continuation}.
    """

    steps: Ints
    train_loss: Floats
    val_loss: Floats
    learning_rate: Floats
    epochs: Ints
    initial_val_loss: float | None = None
    nonfinite_steps: tuple[int, ...] = ()
    values: dict[str, Floats] = field(default_factory=dict)
    initial: dict[str, float] = field(default_factory=dict)
    samples: dict[int, dict[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def validations(self) -> tuple[Ints, Floats]:
        """Steps and losses of the validations after step 0."""
        there = ~np.isnan(self.val_loss)
        return self.steps[there], self.val_loss[there]


def _rows(points: dict[int, Line]) -> list[Line]:
    """The points with a training loss, ascending.

    A validation whose training losses were all NaN or inf has a row, too, with the training loss
    and epoch of the row before.
    """
    rows = list[Line]()
    for step in sorted(points):
        if TRAIN in points[step]:
            rows.append(points[step])
        elif VAL in points[step] and rows:
            known = {name: value for name, value in rows[-1].items() if name in (TRAIN, EPOCH)}
            rows.append({**known, **points[step]})
    return rows


def from_lines(lines: Iterable[Line]) -> Record:
    """Lines of the JSONL file -> arrays. Lines of one step are merged."""
    points, bad, samples = dict[int, Line](), set[int](), dict[int, dict[str, str]]()
    for entry in lines:
        step = entry["step"]
        points.setdefault(step, {}).update(entry)
        if {TRAIN, VAL} & set(entry.get("nonfinite", [])):
            bad.add(step)
        if "samples" in entry:
            samples[step] = entry["samples"]
    initial = {name: v for name, v in points.get(0, {}).items() if isinstance(v, float)}
    rows = _rows(points)
    names = {name for point in points.values() for name, v in point.items() if isinstance(v, float)}

    def column(name: str) -> Floats:
        return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)

    return Record(
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        train_loss=column(TRAIN),
        val_loss=column(VAL),
        learning_rate=column(RATE),
        # 0-based: the pass that the step's last sequence belongs to
        epochs=np.array([max(0, math.ceil(r.get(EPOCH, 0)) - 1) for r in rows], dtype=np.int64),
        initial_val_loss=initial.get(VAL),
        nonfinite_steps=tuple(sorted(bad)),
        values={name: column(name) for name in sorted(names - {TRAIN, VAL, RATE})},
        initial=initial,
        samples=samples,
    )


def as_lists(record: Record) -> dict[str, Any]:
    """What training_metrics.json holds: lists of N values, null where nothing was logged."""
    columns = {
        "train_loss": record.train_loss,
        "val_loss": record.val_loss,
        "learning_rate": record.learning_rate,
    }
    return {
        "steps": record.steps.tolist(),
        **{k: [None if math.isnan(x) else x for x in v.tolist()] for k, v in columns.items()},
        "epochs": record.epochs.tolist(),
        "initial_val_loss": record.initial_val_loss,
        "nonfinite_steps": list(record.nonfinite_steps),
    }


def read_record(run: Path) -> Record:
    """A run's record. Raises CheckpointError where there is none."""
    if not is_recorded(run):
        raise CheckpointError(
            f"no record {folder_of(run) / LINES}; a run directory is what `lmtemplate fit` has made"
        )
    return from_lines(read_lines(run))


def last_points(run: Path, count: int = 5) -> str:
    """The end of a run's record: ". Before: step 50: loss 3.1, rate 0.01, gradient 4.2; ..."."""
    record = read_record(run) if is_recorded(run) else None
    if not record:
        return ""
    norms = record.values.get("optim/grad_norm", record.train_loss * math.nan)
    columns = (record.steps, record.train_loss, record.learning_rate, norms)
    rows = zip(*(column[-count:] for column in columns), strict=True)
    return ". Before: " + "; ".join(
        f"step {s}: loss {x:.4g}, rate {r:.3g}, gradient {n:.3g}" for s, x, r, n in rows
    )


class Writer:
    """Appends lines to a run's record.

    A full disk costs neither the run nor a line: what cannot be written now is written later.

    Args:
        run: the run directory.
        first_step: steps from here on are new; what a killed start wrote there is dropped.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self.run = run
        self._unwritten = b""
        cut(run, first_step)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a logging point; it outlives a kill of this process."""
        path, failed_before = folder_of(self.run) / LINES, bool(self._unwritten)
        self._unwritten += line(step, values).encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(self._unwritten) < len(self._unwritten):  # all of it or nothing
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unwritten = b""
        except OSError as error:
            self._warn(str(error.strerror), failed_before)

    def sync(self) -> None:
        """Let the lines outlive a power cut."""
        try:
            with (folder_of(self.run) / LINES).open("ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            self._warn(str(error), bool(self._unwritten))

    def write_arrays(self) -> None:
        """Bring training_metrics.json up to date; both files outlive a power cut then."""
        self.sync()
        try:
            arrays = as_lists(from_lines(read_lines(self.run)))
            write_json(folder_of(self.run) / ARRAYS, arrays, indent=None)
        except DiskError as error:
            self._warn(str(error), bool(self._unwritten))

    def _warn(self, problem: str, again: bool) -> None:
        if not again:
            print(f"the record waits in memory: {problem}", flush=True)
