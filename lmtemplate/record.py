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
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtemplate.data import Ints as Ints
from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.metric_names import EPOCH, GRAD_NORM, LEARNING_RATE, TOKENS, TRAIN_LOSS, VAL_LOSS
from lmtemplate.run_dir import folder_of, write_text

Floats = npt.NDArray[np.float64]
Line = dict[str, Any]

LINES = "training_metrics.jsonl"
ARRAYS = "training_metrics.json"

MOST_CELLS = 2**27  # 1 GiB: names of values x steps
IN_ARRAYS = {"step", "nonfinite", TRAIN_LOSS, VAL_LOSS, LEARNING_RATE, EPOCH}
COUNTS = (EPOCH, TOKENS)
WRITTEN = re.compile(rb'{"step": (\d{1,15}),.*}\n')
TAIL_BYTES = 2**16  # that are read at a time, from the end


def is_recorded(run: Path) -> bool:
    """Whether there is a record at all: a run without loggers leaves none."""
    return (folder_of(run) / LINES).is_file()


def parse_line(text: str | bytes) -> Line | None:
    """What `Writer` has written; None for anything else, cut by a kill or sent by a stranger."""
    try:
        content = json.loads(text)
        numbers = {"step": None, "samples": {}, "nonfinite": [], **content}
        step, samples, bad = (numbers.pop(name) for name in ("step", "samples", "nonfinite"))
        sound = (
            type(step) is int
            and 0 <= step < 2**53
            and isinstance(samples, dict)
            and isinstance(bad, list)
            and all(isinstance(text, str) for text in (*samples.values(), *bad))
            and {int, float}.issuperset(map(type, numbers.values()))
            and all(abs(value) < 1e150 for value in numbers.values())  # plots square them
            and all(0 <= numbers.get(name, 0) < 2**53 for name in COUNTS)
        )
    except (ValueError, TypeError, RecursionError):  # TypeError: it is no object
        return None
    return content if sound else None


def read_lines(run: Path) -> Iterator[Line]:
    """The lines of a run's JSONL file in their order; one that a kill has cut short is left out."""
    if not is_recorded(run):
        return
    with (folder_of(run) / LINES).open("rb") as file:
        yield from filter(None, map(parse_line, file))


def last_lines(run: Path, name: str, count: int, before: int = 2**53) -> list[Line]:
    """The last lines with this value, at most `count`, of steps up to `before`, in their order."""
    found = list[Line]()
    if not is_recorded(run):
        return found
    with (folder_of(run) / LINES).open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end and len(found) < count:
            start = max(0, end - TAIL_BYTES)
            file.seek(start)
            piece = file.read(end - start)
            head = piece.find(b"\n") + 1 if start else 0  # a line's end, of the piece before
            end = start + head if head < len(piece) else start
            lines = filter(None, map(parse_line, piece[head:].splitlines()))
            found = [one for one in lines if name in one and one["step"] <= before] + found
    return found[-count:]


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
    steps, bad, samples = array("q"), set[int](), dict[int, dict[str, str]]()
    columns: dict[str, tuple[array[int], array[float]]]  # name -> numbers of lines, values
    columns = defaultdict(lambda: (array("q"), array("d")))
    for line, entry in enumerate(lines):
        steps.append(step := entry["step"])
        for name, value in entry.items():
            if name == "samples":
                samples[step] = value
            elif name == "nonfinite":
                bad |= {step} if {TRAIN_LOSS, VAL_LOSS} & {*value} else set()
            elif name != "step":
                columns[name][0].append(line)
                columns[name][1].append(value)
    points, point_of_line = np.unique(np.array(steps, dtype=np.int64), return_inverse=True)
    if len(columns) * len(points) > MOST_CELLS:
        raise CheckpointError(
            f"{len(columns):,} names x {len(points):,} steps: no record has these"
        )
    at = {name: np.full(len(points), math.nan) for name in (*columns, TRAIN_LOSS, VAL_LOSS)}
    for name, (places, found) in columns.items():  # of several lines of a step the last counts
        at[name][point_of_line[np.array(places)]] = found
    has_loss, is_validated = ~np.isnan(at[TRAIN_LOSS]), ~np.isnan(at[VAL_LOSS])
    rows = np.flatnonzero(has_loss | (is_validated & np.logical_or.accumulate(has_loss)))
    at_start = {name: float(column[0]) for name, column in at.items() if 0 in points[:1]}
    initial = {name: value for name, value in at_start.items() if not math.isnan(value)}
    values = {name: at[name][rows] for name in sorted(at)}
    missing = np.full(len(rows), math.nan)
    train_loss, epochs = values.pop(TRAIN_LOSS), values.get(EPOCH, missing)
    for row in np.flatnonzero(np.isnan(train_loss)):
        # Its training losses were all NaN or inf: take loss and epoch of the row before.
        train_loss[row] = train_loss[row - 1]
        epochs[row] = epochs[row - 1] if math.isnan(epochs[row]) else epochs[row]
    return Record(
        steps=points[rows],
        train_loss=train_loss,
        val_loss=values.pop(VAL_LOSS),
        learning_rate=values.pop(LEARNING_RATE, missing),
        epochs=np.maximum(0, np.ceil(np.nan_to_num(epochs)) - 1).astype(int),
        initial_val_loss=initial.get(VAL_LOSS),
        nonfinite_steps=tuple(sorted(bad)),
        values=values,
        initial=initial,
        samples=samples,
    )


def read_record(run: str | Path) -> Record:
    """A run's record. Raises CheckpointError where there is none."""
    if not is_recorded(run := Path(run)):
        where = f"no record {folder_of(run) / LINES}"
        raise CheckpointError(f"{where}; a run directory is what `lmtemplate fit` has made")
    return from_lines(read_lines(run))


def last_points(run: Path) -> str:
    """The end of a run's record: ". Before: step 50: loss 3.1, rate 0.01, gradient 4.2; ..."."""
    points = last_lines(run, TRAIN_LOSS, 5)
    shown = (TRAIN_LOSS, LEARNING_RATE, GRAD_NORM)
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
        sizes = [len(text) for text in self._kept(first_step)] if is_recorded(run) else []
        self._lines, self._new_lines = len(sizes), 0  # in the arrays; since they were written
        is_whole = is_recorded(run) and sum(sizes) == self.path.stat().st_size
        if self.path.is_symlink() or (self.path.exists() and not is_whole):  # links lead anywhere
            kept = b"".join(self._kept(first_step) if sizes else ())
            write_text(self.path, kept.decode(errors="replace"))

    def _kept(self, first_step: int) -> Iterator[bytes]:
        """Lines of steps before `first_step`, as they are; of later ones why a run went back."""
        with self.path.open("rb") as file:
            for text in file:
                if found := WRITTEN.fullmatch(text):
                    step = int(found[1])  # a long record is not parsed: that takes a minute
                elif entry := parse_line(text):
                    step, text = entry["step"], f"{json.dumps(entry)}\n".encode()
                else:
                    continue
                if step < first_step:
                    yield text
                elif b'"nonfinite"' in text and (entry := parse_line(text)):
                    bad = {name: entry[name] for name in ("step", "nonfinite")}
                    yield f"{json.dumps(bad)}\n".encode()

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a logging point; values that are not finite are named in it, and left out."""
        bad = [k for k, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        point = {"step": step, **{k: v for k, v in values.items() if k not in bad}}
        text = json.dumps({**point, "nonfinite": bad} if bad else point, allow_nan=False)
        failed_before = bool(self._unwritten)
        self._unwritten += f"{text}\n".encode()
        self._new_lines += 1
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

    @property
    def has_grown(self) -> bool:
        """Whether the arrays lack a twentieth of the lines: to make them takes time of each line."""
        return self._new_lines * 20 > self._lines

    def write_arrays(self) -> None:
        """Bring training_metrics.json up to date; both files outlive a power cut then."""
        self.sync()
        if not is_recorded(self.run):
            return
        lines = read_lines(self.run)
        record = from_lines({k: v for k, v in line.items() if k in IN_ARRAYS} for line in lines)
        arrays: dict[str, Any] = {"steps": record.steps.tolist()}
        for name in ("train_loss", "val_loss", "learning_rate"):
            column = getattr(record, name).tolist()
            arrays[name] = [None if math.isnan(value) else value for value in column]
        arrays["epochs"] = record.epochs.tolist()
        arrays["initial_val_loss"] = record.initial_val_loss
        arrays["nonfinite_steps"] = record.nonfinite_steps
        self._lines, self._new_lines = self._lines + self._new_lines, 0
        try:
            write_text(self.path.with_name(ARRAYS), f"{json.dumps(arrays, allow_nan=False)}\n")
        except DiskError as error:
            self._warn(error)

    def _warn(self, error: OSError | DiskError) -> None:
        if not isinstance(error, FileNotFoundError):  # the run directory is gone: see RunEnd
            print(f"the record waits in memory: {error}", flush=True)
