"""Logged values -> TensorBoard's events, and the record: one curve across resumes."""

import importlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lmtemplate import metric_names
from lmtemplate.checkpoint.compatibility import flatten
from lmtemplate.checkpoint.resume import read_best
from lmtemplate.record import Writer
from lmtemplate.run_dir import say_once

# TensorBoard's first chart, for capitals sort before all other names. Both losses are in it; lines
# of one chart differ in colour only if they are of two runs, so validation is a run of its own.
BOTH_LOSSES = "Loss"
VALIDATION = "validation"
VAL_LOSSES = (metric_names.VAL_LOSS, metric_names.EARLY_VAL_LOSS)

EVENTS = "events.out.tfevents."  # and the second in which the file was begun
COMPARED = ("model.", "data.", "trainer.", "seed_everything")  # settings in the hparams tab


@rank_zero_only
def put_before_now(run: Path) -> None:
    """Rename event files that a clock set back would sort behind the next one.

    TensorBoard reads files in the order of their names, which begin with the time.
    """
    known = sorted(run.glob(f"{EVENTS}*"))
    if known and known[-1].name >= f"{EVENTS}{int(time.time()):010d}":
        for number, path in enumerate(known):
            rest = path.name.removeprefix(EVENTS).partition(".")[2]
            path.rename(path.with_name(f"{EVENTS}{number:010d}.{rest}"))


def at_true_step(metrics: Mapping[str, float], step: int | None) -> tuple[dict[str, float], int]:
    """Values, and the optimizer step that they belong to, the first being 1.

    `self.log` at the end of an epoch adds Lightning's own (always 0), and counts steps from 0.
    """
    values = {name: float(value) for name, value in metrics.items() if name != "epoch"}
    return values, (step or 0) + ("epoch" in metrics)


def add_scalars(board: Any, values: Mapping[str, float], step: int) -> None:
    """One event for all values of a step, where torch's own `add_scalar` makes one for each."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    content = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    board.file_writer.add_summary(Summary(value=content), step)


class TensorBoard(TensorBoardLogger):
    """Writes events into the run directory: curves, one chart of both losses, and the hparams tab.

    What an earlier, killed start wrote from `first_step` on is hidden.
    """

    def __init__(self, run_dir: Path, first_step: int, settings: dict[str, Any]) -> None:
        importlib.import_module("torch.utils.tensorboard")  # a broken one fails before the run
        super().__init__(run_dir, "", "", default_hp_metric=False, purge_step=first_step)
        for folder in (run_dir, run_dir / VALIDATION):
            put_before_now(folder)
        self._excepthook = threading.excepthook
        threading.excepthook = self._leave_to_main_thread
        self.run, self.first_step = run_dir, first_step
        self.settings = settings
        self._last_step: int | None = None  # that has a value

    @property
    def log_dir(self) -> str:  # Lightning's expands variables, and a folder may have a dollar
        return str(self.run)

    @cached_property
    def validation(self) -> Any:
        """Writer of the run that holds the validation losses alone."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self.run / VALIDATION, purge_step=self.first_step)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values, step = at_true_step(metrics, step)
        if not values:
            return
        with self.forgiving():
            self._last_step = step
            for loss in (values[name] for name in VAL_LOSSES if name in values):
                add_scalars(self.validation, {BOTH_LOSSES: loss}, step)
            if metric_names.TRAIN_LOSS in values:
                values[BOTH_LOSSES] = values[metric_names.TRAIN_LOSS]
            add_scalars(self.experiment, values, step)

    def save(self) -> None:
        pass  # Lightning calls this whenever it logs; no hparams.yaml: config.yaml says it already

    def sync(self) -> None:
        """Let all values so far reach their file."""
        with self.forgiving():
            for board in (self.experiment, vars(self).get("validation")):
                if board:
                    board.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self.forgiving():
            if status == "success" and (best := read_best(self.run)):
                settings = flatten(self.settings).items()
                shown = {key: value for key, value in settings if key.startswith(COMPARED)}
                loss = {"val/best_loss": best["val_loss"]}
                self.log_hyperparams(shown, loss, step=self._last_step)
            super().finalize(status)
            if "validation" in vars(self):
                self.validation.close()
        threading.excepthook = self._excepthook

    def _leave_to_main_thread(self, error: threading.ExceptHookArgs) -> None:
        """No traceback of the thread that writes events: the next call meets the same error."""
        is_writer = type(error.thread).__module__.startswith("tensorboard.")
        if not (is_writer and isinstance(error.exc_value, OSError)):
            self._excepthook(error)

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """A full disk costs curves, not the run: the record has them, too."""
        try:
            yield
        except OSError as error:
            if not isinstance(error, FileNotFoundError):  # the run directory is gone: see RunEnd
                say_once(f"TensorBoard cannot write to {self.run}: {error.strerror}")


class RecordLogger(Logger):
    """Writes the record. Lightning's CSVLogger deletes what an earlier start of the run has logged.

    Each call becomes a line, and readers merge the lines of one step. Steps from `first_step` on
    are new.
    """

    name = "record"
    version = ""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        super().__init__()
        self.run_dir = run_dir
        self.first_step = first_step

    @cached_property
    def writer(self) -> Writer:
        """Made by the first value, in the first process."""
        return Writer(self.run_dir, self.first_step)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass  # config.yaml has them

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values, step = at_true_step(metrics, step)
        if values:
            self.writer.append(step, values)
        if metric_names.VAL_LOSS in values and self.writer.has_grown:
            self.writer.write_arrays()

    @rank_zero_only
    def log_samples(self, texts: Mapping[str, str], step: int) -> None:
        """Keep what the model wrote: prompt -> continuation."""
        self.writer.append(step, {"samples": dict(texts)})

    @rank_zero_only
    def sync(self) -> None:
        """Let all values so far outlive a power cut."""
        if "writer" in vars(self):  # without a value there is no record
            self.writer.sync()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if "writer" in vars(self):
            self.writer.write_arrays()
