"""Steps, validations and the clock -> checkpoints, and which of them is the best."""

import shlex
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer, callbacks

from lmtemplate import metric_names
from lmtemplate.callbacks.run_end import any_rank, check_run_dir, told
from lmtemplate.checkpoint import files, resume
from lmtemplate.errors import ConfigError, DiskError, NumbersError, amount
from lmtemplate.module import LitLanguageModel
from lmtemplate.run_dir import folder_of

MOST_FAILURES = 3  # saves in a row
MILESTONE_ROOM = 4  # times its size: itself, and then a checkpoint with two moments


class SafeCheckpointIO(CheckpointIO):
    """Lightning's way to checkpoint files. Its own writes pass through TMPDIR without fsync.

    `description` joins every checkpoint, so that one file is enough to use it; `resumed` is the
    checkpoint that the run continues, which is loaded already. Nothing is removed but where this
    process has saved: a stranger's checkpoint may name any path to ModelCheckpoint.
    """

    def __init__(self, description: dict[str, Any], resumed: resume.Resumed | None = None) -> None:
        self.description = description
        self.resumed = resumed
        self.folders = set[Path]()  # that something was saved in

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        self.folders.add(Path(path).parent)
        files.write({**self.description, **checkpoint}, Path(path))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """The loaded one is handed over once, so that its tensors do not stay in memory."""
        resumed, self.resumed = self.resumed, None
        if resumed is not None and resumed.path == Path(path):
            return resumed.checkpoint
        return files.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        if Path(path).parent in self.folders:
            Path(path).unlink(missing_ok=True)
            files.set_sum(Path(path).parent)


def all_finite(trainer: Trainer) -> bool:
    """Whether what a checkpoint would hold could be trained on."""
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    moments = [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]
    tensors = [*trainer.lightning_module.parameters(), *moments]
    # smallest and largest show what is not finite, and `isfinite` would copy each tensor first
    extremes = (torch.stack(tensor.aminmax()) for tensor in tensors if tensor.numel())
    return all(bool(extreme.isfinite().all()) for extreme in extremes)


def milestone_steps(count: int, max_steps: int) -> set[int]:
    """Step 0 and about `count` steps, evenly spaced on a logarithmic axis, up to the last one."""
    return {0, *np.geomspace(1, max_steps, count).round().astype(int).tolist()}


class Checkpoint(callbacks.Checkpoint):
    """Save one verified file per step; keep the best, the newest, and weights-only milestones.

    A save that fails is reported at once and costs the run nothing; the third in a row ends the
    run, and so does a failed save of the last step. An older file is deleted only after the new one
    is verified. Lightning runs a callback of this base class after all others.

    Args:
        every_minutes: also save this often between validations; null for never.
        milestones: number of log-spaced steps whose weights are never deleted; null for none.
        keep: number of newest checkpoints that stay, beside the best one.
    """

    def __init__(
        self, every_minutes: float | None = 15.0, milestones: int | None = 12, keep: int = 2
    ) -> None:
        if keep < 1:
            raise ConfigError(f"checkpoint.keep={keep} has to be 1 or more")
        for name, value in (("every_minutes", every_minutes), ("milestones", milestones)):
            if value is not None and value <= 0:
                raise ConfigError(f"checkpoint.{name}={value} has to be above 0, or null for none")
        if milestones is not None and milestones > 10_000:
            raise ConfigError(f"checkpoint.milestones={milestones} has to be at most 10,000")
        self.every_minutes = every_minutes
        self.milestones = milestones
        self.keep = keep
        self.run = Path()
        self.best: tuple[float, int] | None = None  # validation loss, step; step 0 has no file
        self.initial: float | None = None  # validation loss before step 1
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()
        self.failures = 0  # in a row
        self._due_milestones = set[int]()

    def _write(self, trainer: Trainer, path: Path, *, weights_only: bool = False) -> None:
        """Save while the clock of tokens per second is paused. Raises NumbersError, DiskError."""
        if not all_finite(trainer):
            raise NumbersError(f"weights or moments are not finite at step {trainer.global_step:,}")
        paused = told(trainer, "paused") or nullcontext  # of Throughput
        with paused(trainer):
            try:
                check_run_dir(trainer)
                trainer.save_checkpoint(path, weights_only=weights_only)
            except DiskError:
                trainer.strategy.barrier()  # the others wait in save_checkpoint for this one
                raise

    def _point_at_best(self) -> int | None:
        """Write best.json; returns its step, None where there is none (yet)."""
        if self.best is None or self.best[1] not in resume.steps_saved(self.run):
            return None
        resume.write_best(self.run, self.best[1], self.best[0], self.initial)
        return self.best[1]

    def _save(self, trainer: Trainer) -> None:
        """Raises DiskError at the third failure in a row, and where no other save will follow."""
        self.saved_at, problem, step = time.monotonic(), "", trainer.global_step
        try:
            for logger in trainer.loggers:  # first: a resume can cut a curve, but not fill a gap
                getattr(logger, "sync", logger.save)()
            self._write(trainer, folder_of(self.run) / files.file_name(step))
            if trainer.is_global_zero:
                resume.prune(self.run, newest=step, best=self._point_at_best(), keep=self.keep)
        except (DiskError, OSError) as error:  # OSError: of a logger of one's own
            problem = str(error)
        if not trainer.strategy.reduce_boolean_decision(bool(problem), all=False):
            self.saved_step, self.failures = step, 0
            return
        self.failures += 1
        last = f"last good: step {self.saved_step:,}" if self.saved_step else "none is saved yet"
        count = f"{self.failures}/{MOST_FAILURES}"
        trainer.lightning_module.print(f"save failed ({count}): {problem}; {last}")
        if self.failures == MOST_FAILURES or trainer.should_stop:
            go_on = "resume" if self.saved_step else "train"
            raise DiskError(
                f"step {step:,} is not saved: {problem or 'see the first process'}; "
                f"{last}. Repair that, then go on with make {go_on} "
                + shlex.quote(f"RUN={self.run}")
            )

    def save_if_new(self, trainer: Trainer) -> None:
        """Save, unless this very step is saved already or nothing is trained yet."""
        if trainer.global_step not in (0, self.saved_step):
            self._save(trainer)

    def _save_milestone(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step not in self._due_milestones:
            return
        self._due_milestones.remove(step)
        needed = MILESTONE_ROOM * files.size(trainer.lightning_module.state_dict())
        # only the first process writes; another machine may not have the folder
        has_room = not trainer.is_global_zero or shutil.disk_usage(self.run).free >= needed
        path = folder_of(self.run) / "milestones" / files.file_name(step)
        try:
            if not trainer.strategy.reduce_boolean_decision(has_room):
                raise DiskError("checkpoints need the space that is left on the disk")
            self._write(trainer, path, weights_only=True)
        except DiskError as error:
            trainer.lightning_module.print(f"milestone not saved: {error}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish what a kill interrupted."""
        self.run = Path(trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        if self._point_at_best() is None:
            if self.best is not None:
                gone = f"the best checkpoint, step {self.best[1]:,}, is gone"
                pl_module.print(f"{gone}: the next is best")
            self.best = None
            (folder_of(self.run) / "best.json").unlink(missing_ok=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step
        if self.milestones:
            self._due_milestones = milestone_steps(self.milestones, trainer.max_steps)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Save here: all checks and hooks of the last step, and its validation, are done."""
        if trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches:
            return
        self._save_milestone(trainer)
        minutes = (time.monotonic() - self.saved_at) / 60
        if any_rank(trainer, self.every_minutes is not None and minutes >= self.every_minutes):
            self.save_if_new(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, LitLanguageModel)
        value = pl_module.latest[metric_names.VAL_LOSS]  # float64; Lightning's copy is float32
        if trainer.sanity_checking:
            self.initial = value
            return
        if value < (self.best or (float("inf"), 0))[0]:  # never true for NaN
            self.best = (value, trainer.global_step)
        self._save_milestone(trainer)  # the run may end with the save below
        self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_milestone(trainer)
        self.save_if_new(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "initial": self.initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best, initial = state_dict["best"], state_dict.get("initial")
        self.best = best and (float(amount(best[0])), int(amount(best[1])))
        self.initial = None if initial is None else float(initial)
