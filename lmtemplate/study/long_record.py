"""A run's record -> arrays within seconds, also where it has a million rows."""

from dataclasses import replace
from itertools import chain, compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmtemplate import metric_names
from lmtemplate.metric_names import TRAIN_LOSS
from lmtemplate.record import (
    LINES,
    Floats,
    Ints,
    Line,
    Record,
    from_lines,
    is_recorded,
    parse_line,
    read_record,
)
from lmtemplate.run_dir import folder_of, refuse_links

STEP_KEY = b'{"step": '
LOSS_KEY = f'"{TRAIN_LOSS}": '.encode()
READ_WHOLE = 2**23  # bytes of a record, about 25,000 rows; of a much longer one this much is parsed
NUMBER_WIDTH = 25  # characters of a number, as -1.2345678901234567e-300
STRETCH = 20  # lines that follow each other: values may be logged at each tenth row alone


def _numbers(text: npt.NDArray[np.uint8], starts: Ints) -> Floats:
    """The number that begins at each of these places of a text and ends with a comma or brace."""
    digits = text[np.minimum(starts[:, None] + np.arange(NUMBER_WIDTH), len(text) - 1)]
    is_end = (digits == ord(",")) | (digits == ord("}"))
    digits[np.logical_or.accumulate(is_end, axis=1)] = 0
    return digits.view(f"S{NUMBER_WIDTH}")[:, 0].astype(np.float64)


def _read_long(path: Path, share: int) -> tuple[list[Line], Ints, Floats]:
    """Some lines in full: stretches of one in `share`, and all without a training loss.

    Of the others steps and training losses alone. Raises ValueError for what `Writer` never writes.
    """
    lines, steps, losses = list[Line](), list[Floats](), list[Floats]()
    with path.open("rb") as file:
        while rows := file.readlines(2**20):
            text, ends = np.frombuffer(b"".join(rows), np.uint8), np.cumsum([*map(len, rows)])
            starts = np.concatenate([[0], ends[:-1]])
            found = [row.find(LOSS_KEY) if row.startswith(STEP_KEY) else -1 for row in rows]
            loss_at = starts + np.array(found)
            is_brief = np.arange(len(rows)) // STRETCH % share > 0
            is_brief &= (loss_at > starts) & (text[ends - 2] == ord("}"))
            is_brief[np.flatnonzero(is_brief)[-1:]] = False  # values are known up to the last row
            steps.append(_numbers(text, starts[is_brief] + len(STEP_KEY)))
            losses.append(_numbers(text, loss_at[is_brief] + len(LOSS_KEY)))
            lines += filter(None, map(parse_line, compress(rows, ~is_brief)))
    numbers, loss = np.concatenate(steps), np.concatenate(losses)
    is_step = (numbers >= 0) & (numbers < 2**53) & (numbers % 1 == 0)
    if not is_step.all() or not (np.abs(loss) < 1e150).all():
        raise ValueError("a number is none that a run writes")
    return lines, numbers.astype(np.int64), loss


def read_any_record(run: Path) -> Record:
    """A run's record. Raises CheckpointError where there is none.

    Of a record above 2 x READ_WHOLE bytes every training loss, validation and sample is read, and
    other values in some stretches of rows; between these, learning rate and epoch are interpolated.
    """
    refuse_links(run)
    path = folder_of(run) / LINES
    share = path.stat().st_size // READ_WHOLE if is_recorded(run) else 0
    if share < 2:
        return read_record(run)
    try:
        lines, steps, losses = _read_long(path, share)
    except ValueError:
        return read_record(run)
    pairs = zip(steps.tolist(), losses.tolist(), strict=True)
    record = from_lines(chain(lines, ({"step": step, TRAIN_LOSS: loss} for step, loss in pairs)))
    rates, passes = record.learning_rate, record.values.get(metric_names.EPOCH)
    for column in (rates, passes):
        if column is not None and (known := ~np.isnan(column)).any():
            column[:] = np.interp(record.steps, record.steps[known], column[known])
    if passes is None:
        return record
    return replace(record, epochs=np.maximum(0, np.ceil(passes) - 1).astype(int))
