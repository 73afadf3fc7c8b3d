"""Steps, validations and the clock -> checkpoints, and which of them is the best."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lmtemplate.callbacks.state import all_finite, loops_at, random_states, set_random_states
from lmtemplate.callbacks.throughput import Throughput
from lmtemplate.checkpoint import files, resume
from lmtemplate.errors import ConfigError, DiskError, NumbersError
from lmtemplate.module import LitLanguageModel, is_logged
from lmtemplate.run_dir import folder_of


def milestone_steps(count: int, max_steps: int) -> set[int]:
    """Step 0 and about `count` steps, evenly spaced on a logarithmic axis, up to the last one."""
    spaced = np.geomspace(1, max_steps, count) if max_steps > 1 else np.array([1])
    return {0, *(int(step) for step in spaced.round())}


MOST_FAILURES = 3  # saves in a row
MILESTONE_ROOM = 4  # times its size: itself, and then a checkpoint with two moments


class Checkpoint(ModelCheckpoint):
    """One verified file per step; the best and the newest two stay, weights-only milestones always.

    A save that fails is told at once and costs the run nothing; the third in a row ends it, and so
    does that of the last step.

    Lightning's own triggers are replaced: with a monitor they save stale scores or an old `last`,
    and pruning in the same class deletes before the new file is known to be good (see
    resume.prune).

    Args:
        every_minutes: also save this often between validations; null for never.
        milestones: number of log-spaced steps whose weights are kept for good; null for none.
    """

    def __init__(
        self,
        every_minutes: float | None = 15.0,
        milestones: int | None = 12,
    ) -> None:
        for name, value in (("every_minutes", every_minutes), ("milestones", milestones)):
            if value is not None and value <= 0:
                raise ConfigError(f"checkpoint.{name}={value} has to be above 0, or null for none")
        super().__init__(monitor="val/loss", save_top_k=-1, auto_insert_metric_name=False)
        self.every_minutes = every_minutes
        self.milestones = milestones
        self.best: tuple[float, int] | None = None  # value, step
        self.saved_step: int | None = None
        self.failures = 0  # in a row
        self._milestone_saved: int | None = None
        self._random_states: list[dict[str, Any]] = []

    @property
    def state_key(self) -> str:
        return type(self).__name__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.run = Path(trainer.default_root_dir)
        self.dirpath = str(folder_of(self.run))

    def _write(self, trainer: Trainer, path: Path, *, weights_only: bool = False) -> None:
        """Save while the clock of tokens per second stands. Raises NumbersError, DiskError."""
        if not all_finite(trainer):
            raise NumbersError(f"weights or moments are not finite at step {trainer.global_step:,}")
        meters = [c for c in trainer.callbacks if isinstance(c, Throughput)]  # type: ignore[attr-defined]
        running = [meter for meter in meters if meter.pause(trainer)]
        try:
            trainer.save_checkpoint(path, weights_only=weights_only)
        except DiskError:
            trainer.strategy.barrier()  # the other processes wait in save_checkpoint for this one
            raise
        finally:
            for meter in running:
                meter.resume()

    def _save_curves(self, trainer: Trainer) -> None:
        """Before the checkpoint: a resume cuts what is too long, but fills no gap."""
        for logger in trainer.loggers:
            try:
                logger.save()
            except OSError as error:
                trainer.lightning_module.print(f"{type(logger).__name__} cannot save: {error}")

    def _write_and_prune(self, trainer: Trainer) -> None:
        """Raises DiskError."""
        step = trainer.global_step
        self._save_curves(trainer)
        self._write(trainer, folder_of(self.run) / files.file_name(step))
        if trainer.is_global_zero:
            resume.prune(self.run, newest=step, best=self._point_at_best())

    def _point_at_best(self) -> int | None:
        """Write best.json; returns its step, None where there is none (yet)."""
        if self.best is None or self.best[1] not in resume.steps_saved(self.run):
            return None
        resume.write_best(self.run, self.best[1], self.best[0])
        return self.best[1]

    def _save(self, trainer: Trainer) -> None:
        """Raises DiskError at the third failure in a row, and where no other save will follow."""
        self.saved_at, problem = time.monotonic(), ""
        try:
            self._write_and_prune(trainer)
        except DiskError as error:
            problem = str(error)
        if not trainer.strategy.reduce_boolean_decision(bool(problem), all=False):
            self.saved_step, self.failures = trainer.global_step, 0
            return
        self.failures += 1
        last = f"last good: step {self.saved_step:,}" if self.saved_step else "none is saved yet"
        count = f"{self.failures}/{MOST_FAILURES}"
        trainer.lightning_module.print(f"save failed ({count}): {problem}; {last}", flush=True)
        if self.failures == MOST_FAILURES or trainer.should_stop:
            go_on = "resume" if self.saved_step else "train"
            raise DiskError(
                f"step {trainer.global_step:,} is not saved: {problem or 'see the first process'}; "
                f"{last}. Mend that, then go on with make {go_on} RUN={self.run}"
            )

    def save_if_new(self, trainer: Trainer) -> None:
        """Save, unless this very step is saved already or nothing is trained yet."""
        if trainer.global_step not in (0, self.saved_step):
            self._save(trainer)

    def _save_milestone(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if not self.milestones or step not in self.milestone_steps - {self._milestone_saved}:
            return
        self._milestone_saved = step
        try:
            needed = MILESTONE_ROOM * files.size(trainer.lightning_module.state_dict())
            # only the first process writes; on another machine there is no such folder
            has_room = not trainer.is_global_zero or shutil.disk_usage(self.run).free >= needed
            if not trainer.strategy.reduce_boolean_decision(has_room):
                raise DiskError("checkpoints need the room that is left")
            path = folder_of(self.run) / "milestones" / files.file_name(step)
            self._write(trainer, path, weights_only=True)
        except DiskError as error:
            trainer.lightning_module.print(f"milestone not saved: {error}", flush=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish what a kill has cut short."""
        if not trainer.is_global_zero:
            return
        resume.clear_leftovers(self.run)
        if self._point_at_best() is None:
            if self.best is not None:
                lost = f"the best checkpoint, step {self.best[1]:,}, is gone"
                pl_module.print(f"{lost}: the next is best")
            self.best = None
            resume.forget_best(self.run)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at = time.monotonic()
        self.milestone_steps = milestone_steps(self.milestones or 1, trainer.max_steps)
        if trainer.global_rank < len(self._random_states):
            set_random_states(self._random_states[trainer.global_rank])
        elif trainer.global_rank:
            # each rank drops out other units
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save here: all checks and hooks of the step before, and its validation, are over."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        self._save_milestone(trainer)
        if self.every_minutes is None:
            return
        if trainer.world_size > 1 and not is_logged(trainer, trainer.global_step):
            return  # ranks have to agree on the time, which is not worth a wait at every step
        due = time.monotonic() - self.saved_at >= self.every_minutes * 60
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self.save_if_new(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert isinstance(pl_module, LitLanguageModel)
        value = pl_module.latest["val/loss"]  # float64; Lightning's copy is float32
        if value < (self.best or (float("inf"), 0))[0]:  # never true for NaN
            self.best = (value, trainer.global_step)
            self.best_model_score = torch.tensor(value)
            self.best_model_path = f"{self.dirpath}/{files.file_name(trainer.global_step)}"
        self._save_milestone(trainer)  # before what may be the end of the run
        self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass  # the one epoch is the whole run

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_milestone(trainer)
        if self.saved_step != trainer.global_step:
            self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the random states of all ranks: Lightning saves none."""
        own = random_states()
        states: list[Any] = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, own)
        checkpoint["random_states"] = states

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._random_states = checkpoint["random_states"]
        checkpoint["loops"]["fit_loop"] = loops_at(trainer, checkpoint["global_step"])
        self.saved_step = checkpoint["global_step"]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
