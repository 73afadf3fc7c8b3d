"""What a run logged, point by point -> training_metrics.jsonl, training_metrics.json, arrays.

The JSONL file is the truth: one line of strict JSON per logging point, `{"step": 5, "train/loss":
4.19, ...}`, appended while the run goes on; a validation, and the samples written at it, have lines
of their own. The JSON file is made from it: the arrays that scripts and plots read.
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

from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.run_dir import folder_of, write_json, write_text

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
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


def cut(run: Path, first_step: int) -> list[Line]:
    """Forget what a killed start logged from this step on, which is about to be logged again.

    Returns the lines that are left.
    """
    kept = list[Line]()
    for entry in read_lines(run):
        if entry["step"] < first_step:
            kept.append(entry)
        elif "nonfinite" in entry:  # why a run went back is worth keeping
            kept.append({name: entry[name] for name in ("step", "nonfinite")})
    if is_recorded(run) or (folder_of(run) / LINES).is_symlink():  # it could lead anywhere
        text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in kept)
        write_text(folder_of(run) / LINES, text)
    return kept


@dataclass
class Columns:
    """Rows of a record as they come in, one per step at which training was logged."""

    steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    val_loss: list[float | None] = field(default_factory=list)
    learning_rate: list[float | None] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    initial_val_loss: float | None = None
    nonfinite_steps: list[int] = field(default_factory=list)

    def add(self, entry: Line) -> None:
        """Take one line of the JSONL file."""
        step = entry["step"]
        if {TRAIN, VAL} & set(entry.get("nonfinite", [])) and step not in self.nonfinite_steps:
            self.nonfinite_steps = sorted({*self.nonfinite_steps, step})
        if TRAIN in entry and step > max(self.steps[-1:], default=-1):
            self._add_row(entry)
        if VAL in entry and step == 0:
            self.initial_val_loss = entry[VAL]
        elif VAL in entry and self.steps:
            if self.steps[-1] < step:  # all losses since the last row were not finite
                self._add_row({EPOCH: self.epochs[-1] + 1, TRAIN: self.train_loss[-1], **entry})
            self.val_loss[-1] = entry[VAL]

    def _add_row(self, entry: Line) -> None:
        self.steps.append(entry["step"])
        self.train_loss.append(entry[TRAIN])
        self.val_loss.append(None)
        self.learning_rate.append(entry.get(RATE))
        # 0-based: the pass that the step's last sequence belongs to
        self.epochs.append(max(0, math.ceil(entry.get(EPOCH, 0)) - 1))

    def write(self, run: Path) -> None:
        """Replace training_metrics.json at once. Raises DiskError."""
        write_json(folder_of(run) / ARRAYS, vars(self), indent=None)


def _array(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


@dataclass(frozen=True)
class Record:
    """A run's record as arrays of N rows, one for each logging point; NaN where nothing was logged.

    Attributes:
        steps: (N,) optimizer updates made.
        train_loss: (N,) nats per token, the mean since the row before; always finite.
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
    """Lines of the JSONL file, in their order -> arrays."""
    columns, rows, initial = Columns(), dict[int, Line](), dict[str, float]()
    samples: dict[int, dict[str, str]] = {}
    for entry in lines:
        columns.add(entry)
        rows.setdefault(entry["step"], {}).update(entry)
        if "samples" in entry:
            samples[entry["step"]] = entry["samples"]
    for name, value in rows.get(0, {}).items():
        if isinstance(value, float):
            initial[name] = value
    known = {name for entry in rows.values() for name, v in entry.items() if isinstance(v, float)}
    return Record(
        steps=np.array(columns.steps, dtype=np.int64),
        train_loss=_array(columns.train_loss),
        val_loss=_array(columns.val_loss),
        learning_rate=_array(columns.learning_rate),
        epochs=np.array(columns.epochs, dtype=np.int64),
        initial_val_loss=columns.initial_val_loss,
        nonfinite_steps=tuple(columns.nonfinite_steps),
        values={
            name: _array(rows[step].get(name) for step in columns.steps)
            for name in sorted(known - {TRAIN, VAL, RATE})
        },
        initial=initial,
        samples=samples,
    )


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


def _append(content: bytes, path: Path) -> None:
    """All of it or, where a disk fills up, nothing. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        if file.write(content) < len(content):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Writer:
    """Appends lines to a run's record and keeps the arrays beside them.

    A full disk costs neither the run nor a line: what cannot be written now is written later.

    Args:
        run: the run directory.
        first_step: steps from here on are new; what a killed start wrote there is dropped.
    """

    def __init__(self, run: Path, first_step: int) -> None:
        self.run = run
        self.columns = Columns()
        self.changed = False  # since the arrays were written
        self._unwritten: list[str] = []
        for entry in cut(run, first_step):
            self.columns.add(entry)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a logging point; it outlives a kill of this process."""
        text, path = line(step, values), folder_of(self.run) / LINES
        failed_before = bool(self._unwritten)
        self._unwritten.append(text)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append("".join(self._unwritten).encode(), path)
            self._unwritten = []
        except OSError as error:
            self._warn(error.strerror, failed_before)
        self.columns.add(json.loads(text))
        self.changed = True

    def write_arrays(self) -> None:
        """Bring training_metrics.json up to date; both files outlive a power cut then."""
        try:
            with (folder_of(self.run) / LINES).open("ab") as file:
                os.fsync(file.fileno())
            self.columns.write(self.run)
            self.changed = False
        except (DiskError, OSError) as error:
            self._warn(str(error), bool(self._unwritten))

    def _warn(self, problem: str | None, again: bool) -> None:
        if not again:
            print(f"the record waits in memory: {problem}", flush=True)
