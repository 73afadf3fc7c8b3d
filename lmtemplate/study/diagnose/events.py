"""Any program's TensorBoard event files -> a record, as far as its tags tell."""

import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from lmtemplate import metric_names
from lmtemplate.errors import ConfigError
from lmtemplate.record import Floats, Ints, Record

StepValues = dict[int, float]
NUMBERS = (1, 2, 3, 4, 5, 6, 9, 14, 17, 19, 22, 23)  # TensorFlow's types of floats and integers


def read_curves(folder: Path) -> dict[str, StepValues]:
    """Every scalar in a folder's event files: tag -> step -> value; what was logged last counts.

    Steps below 0 and those that no float holds are left out; values above 1e150 count as infinite.

    Raises ConfigError where the folder has no event files, or damaged ones.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]
    from tensorboard.util import tensor_util  # type: ignore[import-untyped]

    found = [*folder.glob("*tfevents*")]
    for path in found:  # a link into /proc may lead to a file without size or end
        if not path.is_file() or (path.is_symlink() and not path.stat().st_size):
            raise ConfigError(f"--events: {path} is no plain file; remove it")
    if not found:
        below = sorted({str(path.parent) for path in folder.glob("**/*tfevents*")})
        hint = f"; there are some in {', '.join(below[:3])}" if below else ""
        raise ConfigError(f"--events {folder}: no TensorBoard event files there{hint}")
    board = event_accumulator.EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "tensors": 0}
    )
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # what it warns of is told here
    try:
        board.Reload()
    except (DecodeError, MemoryError, OSError) as error:  # of a record whose checksum is right
        raise ConfigError(
            f"--events {folder}: an event file there is damaged ({error!r}); remove it"
        ) from error
    tags = board.Tags()
    curves = {tag: {e.step: float(e.value) for e in board.Scalars(tag)} for tag in tags["scalars"]}
    for tag in tags["tensors"]:  # TensorFlow 2 and others write numbers as tensors
        points = [(e.step, e.tensor_proto) for e in board.Tensors(tag)]
        if all(tensor.dtype in NUMBERS and not tensor.tensor_shape.dim for _, tensor in points):
            # what only says that it is a number
            with suppress(ValueError, TypeError, OverflowError):
                curves[tag] = {s: float(tensor_util.make_ndarray(tensor)) for s, tensor in points}
    return {
        tag: {s: math.inf if abs(v) >= 1e150 else v for s, v in curve.items() if 0 <= s < 2**53}
        for tag, curve in curves.items()
    }


def _choose(curves: Mapping[str, StepValues], flag: str, tag: str | None) -> StepValues:
    if tag is not None and tag not in curves:
        known = ", ".join(sorted(curves)) or "none"
        raise ConfigError(f"--{flag} {tag}: no such tag in the event files; there are: {known}")
    return curves[tag] if tag is not None else {}


def _latest(steps: Ints, curve: StepValues) -> Floats:
    """The curve's latest value at each step; its first one before that; NaN for no curve."""
    known = np.array(sorted(curve), dtype=np.int64)
    if not len(known):
        return np.full(len(steps), math.nan)
    place = np.maximum(np.searchsorted(known, steps, side="right") - 1, 0)
    return np.array([curve[int(step)] for step in known[place]])


def _validations(steps: Ints, curve: StepValues) -> Floats:
    """Each validation on the row of its step, or on the one before it; NaN on the others."""
    losses = np.full(len(steps), math.nan)
    for step, loss in sorted(curve.items()):
        row = int(np.searchsorted(steps, step, side="right")) - 1
        if row >= 0:
            losses[row] = loss
    return losses


def read_events(
    folder: Path,
    train_loss: str = metric_names.TRAIN_LOSS,
    val_loss: str | None = metric_names.VAL_LOSS,
    lr: str | None = metric_names.LEARNING_RATE,
) -> Record:
    """A record of what TensorBoard would draw. Its rows are the points of the training loss.

    The losses (tags) are in nats per token; None for a run without. Raises ConfigError where there
    are no event files, or a tag is missing; it names all tags.
    """
    curves = read_curves(folder)
    training = _choose(curves, "train_loss", train_loss)
    validation = _choose(curves, "val_loss", val_loss)
    rate = _choose(curves, "lr", lr)
    bad = {s for curve in (training, validation) for s, v in curve.items() if not math.isfinite(v)}
    finite = sorted(step for step, loss in training.items() if math.isfinite(loss))
    steps, first = np.array(finite, dtype=np.int64), finite[0] if finite else 0
    sound = {step: validation[step] for step in sorted(validation) if step not in bad}
    others = {tag: c for tag, c in curves.items() if tag not in (train_loss, val_loss, lr)}
    return Record(
        steps=steps,
        train_loss=np.array([training[step] for step in finite], dtype=np.float64),
        val_loss=_validations(steps, sound),
        learning_rate=_latest(steps, rate),
        epochs=np.zeros(len(steps), dtype=np.int64),
        initial_val_loss=next((loss for step, loss in sound.items() if step < first), None),
        nonfinite_steps=tuple(sorted(bad)),
        values={tag: np.array([c.get(s, math.nan) for s in finite]) for tag, c in others.items()},
        initial={tag: curve[0] for tag, curve in others.items() if 0 in curve},
    )
