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

from lmtemplate import metric_names
from lmtemplate.data import Ints as Ints
from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.run_dir import folder_of, write_json, write_text

Floats = npt.NDArray[np.float64]
Line = dict[str, Any]

LINES = "training_metrics.jsonl"
ARRAYS = "training_metrics.json"


def is_recorded(run: Path) -> bool:
    """Whether there is a record at all: a run without loggers leaves none."""
    return (folder_of(run) / LINES).is_file()


def parse_line(text: str) -> Line | None:
    """What `Writer` has written; None for anything else, cut by a kill or sent by a stranger."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    numbers = {"step": None, "samples": {}, "nonfinite": [], **content}
    step, samples, bad = (numbers.pop(name) for name in ("step", "samples", "nonfinite"))
    sound = (
        type(step) is int
        and 0 <= step < 2**53
        and isinstance(samples, dict)
        and isinstance(bad, list)
        and all(isinstance(text, str) for text in (*samples.values(), *bad))
        and all(type(v) in (int, float) and abs(v) < 1e300 for v in numbers.values())
        and abs(numbers.get(metric_names.EPOCH, 0)) < 2**53
    )
    return content if sound else None


def read_lines(run: Path) -> Iterator[Line]:
    """The lines of a run's JSONL file in their order; one that a kill has cut short is left out."""
    if not is_recorded(run):
        return
    with (folder_of(run) / LINES).open(encoding="utf-8", errors="replace") as file:
        yield from filter(None, map(parse_line, file))


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


def from_lines(lines: Iterable[Line]) -> Record:
    """Lines of the JSONL file -> arrays. Lines of one step are merged."""
    points, bad = dict[int, Line](), set[int]()
    for entry in lines:
        points.setdefault(entry["step"], {}).update(entry)
        if {metric_names.TRAIN_LOSS, metric_names.VAL_LOSS} & set(entry.get("nonfinite", [])):
            bad.add(entry["step"])
    rows = list[Line]()
    for step in sorted(points):
        if metric_names.TRAIN_LOSS in points[step]:
            rows.append(points[step])
        elif metric_names.VAL_LOSS in points[step] and rows:
            # Its training losses were all NaN or inf: take loss and epoch of the row before.
            known = {metric_names.TRAIN_LOSS, metric_names.EPOCH} & rows[-1].keys()
            rows.append({**{name: rows[-1][name] for name in known}, **points[step]})
    initial = {name: v for name, v in points.get(0, {}).items() if isinstance(v, float)}
    names = {name for point in points.values() for name, v in point.items() if isinstance(v, float)}
    names -= {metric_names.TRAIN_LOSS, metric_names.VAL_LOSS, metric_names.LEARNING_RATE}

    def column(name: str) -> Floats:
        return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)

    return Record(
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        train_loss=column(metric_names.TRAIN_LOSS),
        val_loss=column(metric_names.VAL_LOSS),
        learning_rate=column(metric_names.LEARNING_RATE),
        epochs=np.maximum(0, np.ceil(np.nan_to_num(column(metric_names.EPOCH))) - 1).astype(int),
        initial_val_loss=initial.get(metric_names.VAL_LOSS),
        nonfinite_steps=tuple(sorted(bad)),
        values={name: column(name) for name in sorted(names)},
        initial=initial,
        samples={step: p["samples"] for step, p in points.items() if "samples" in p},
    )


def read_record(run: str | Path) -> Record:
    """A run's record. Raises CheckpointError where there is none."""
    run = Path(run)
    if not is_recorded(run):
        where = f"no record {folder_of(run) / LINES}"
        raise CheckpointError(f"{where}; a run directory is what `lmtemplate fit` has made")
    return from_lines(read_lines(run))


def last_points(run: Path) -> str:
    """The end of a run's record: ". Before: step 50: loss 3.1, rate 0.01, gradient 4.2; ..."."""
    points = [entry for entry in read_lines(run) if metric_names.TRAIN_LOSS in entry][-5:]
    shown = (metric_names.TRAIN_LOSS, metric_names.LEARNING_RATE, metric_names.GRAD_NORM)
    rows = ((p["step"], *(p.get(name, math.nan) for name in shown)) for p in points)
    texts = [f"step {s}: loss {x:.4g}, rate {r:.3g}, gradient {n:.3g}" for s, x, r, n in rows]
    return f". Before: {'; '.join(texts)}" if texts else ""


class Writer:
    """Appends lines to a run's record; what a killed start wrote from `first_step` on is dropped.

    A full disk costs neither the run nor a line: what cannot be written now is written later.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self.run = run
        self.path = folder_of(run) / LINES
        self._unwritten = b""
        run.mkdir(parents=True, exist_ok=True)
        if first_step and not is_recorded(run):
            print(f"the record {self.path} is gone: it begins anew at step {first_step:,}")
        kept = ""
        for entry in read_lines(run):
            if entry["step"] < first_step:
                kept += json.dumps(entry) + "\n"
            elif "nonfinite" in entry:  # stays, since it says why a run went back
                kept += json.dumps({name: entry[name] for name in ("step", "nonfinite")}) + "\n"
        if self.path.exists() or self.path.is_symlink():  # a link could lead anywhere
            write_text(self.path, kept)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a logging point; values that are not finite are named in it, and left out."""
        bad = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        point = {"step": step, **{k: v for k, v in values.items() if k not in bad}}
        text = json.dumps({**point, "nonfinite": bad} if bad else point, allow_nan=False)
        failed_before = bool(self._unwritten)
        self._unwritten += f"{text}\n".encode()
        try:
            self.path.parent.mkdir(exist_ok=True)  # but not a run directory that was removed
            with self.path.open("ab", buffering=0) as file:
                end = file.tell()
                if file.write(self._unwritten) < len(self._unwritten):  # all of it or nothing
                    file.truncate(end)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._unwritten = b""
        except OSError as error:
            if not failed_before:
                self._warn(error)

    def sync(self) -> None:
        """Let the lines outlive a power cut."""
        try:
            with self.path.open("r+b") as file:
                os.fsync(file.fileno())
        except OSError as error:
            self._warn(error)

    def write_arrays(self) -> None:
        """Bring training_metrics.json up to date; both files outlive a power cut then."""
        self.sync()
        if not is_recorded(self.run):
            return
        record = read_record(self.run)
        arrays: dict[str, Any] = {"steps": record.steps.tolist()}
        for name in ("train_loss", "val_loss", "learning_rate"):
            column = getattr(record, name).tolist()
            arrays[name] = [None if math.isnan(value) else value for value in column]
        arrays["epochs"] = record.epochs.tolist()
        arrays["initial_val_loss"] = record.initial_val_loss
        arrays["nonfinite_steps"] = record.nonfinite_steps
        try:
            write_json(self.path.with_name(ARRAYS), arrays, indent=None)
        except DiskError as error:
            self._warn(error)

    def _warn(self, error: OSError | DiskError) -> None:
        if not isinstance(error, FileNotFoundError):  # the run directory is gone: see RunEnd
            print(f"the record waits in memory: {error}", flush=True)
