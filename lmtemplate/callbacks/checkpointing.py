"""Training state -> checkpoints: at each validation, on a timer, at the end; and exactly back."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lmtemplate import checkpoint as files
from lmtemplate.callbacks.throughput import Throughput
from lmtemplate.errors import CheckpointError, ConfigError, DiskError, NumbersError
from lmtemplate.module import LitLanguageModel, is_logged


class SafeCheckpointIO(CheckpointIO):
    """Lightning's door to checkpoint.py. Its own writes pass through TMPDIR and are not synced.

    Args:
        description: joins every checkpoint (config, tokenizer ...), so that one file is enough to
            use it.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        files.write({**self.description, **checkpoint}, Path(path))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return files.read(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def random_states() -> dict[str, Any]:
    """State of every global random generator, in plain types."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def _set_progress(progress: dict[str, Any], count: int) -> None:
    for scope in ("total", "current"):
        progress[scope] = dict.fromkeys(progress[scope], count)


def loops_at(trainer: Trainer, step: int) -> dict[str, Any]:
    """State of Lightning's fit loop after `step` optimizer steps.

    What Lightning stores depends on the hook in which it was saved, and counts micro-batches, which
    mean something else when the accumulation has changed.
    """
    loops = trainer.fit_loop.state_dict()
    batches = loops["epoch_loop.batch_progress"]
    _set_progress(batches, step * trainer.accumulate_grad_batches)
    batches["is_last_batch"] = False
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    _set_progress(optimizer["step"], step)
    _set_progress(optimizer["zero_grad"], step)
    _set_progress(loops["epoch_loop.scheduler_progress"], step)
    # at a validation, Lightning passes once without training, and counts that pass
    validated = step * trainer.accumulate_grad_batches % int(trainer.val_check_interval or 1) == 0
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - validated
    for scope in ("total", "current"):  # in the middle of the one epoch
        loops["epoch_progress"][scope].update(ready=1, started=1, processed=0, completed=0)
    return loops


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
    spaced = np.geomspace(1, max_steps, count) if max_steps > 1 else np.array([1])
    return {0, *(int(step) for step in spaced.round())}


MOST_FAILURES = 3  # saves in a row


class Checkpoint(ModelCheckpoint):
    """One verified file per step; the best and the newest two stay, weights-only milestones always.

    A save that fails is told at once and costs the run nothing; the third in a row ends it, and so
    does that of the last step.

    Lightning's own triggers are replaced: with a monitor they save stale scores or an old `last`,
    and pruning in the same class deletes before the new file is known to be good (see
    checkpoint.prune).

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
        self.dirpath = str(files.folder_of(self.run))

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

    def _write_and_prune(self, trainer: Trainer) -> None:
        """Raises DiskError, CheckpointError, and OSError where a logger has met one."""
        step = trainer.global_step
        self._write(trainer, files.folder_of(self.run) / files.file_name(step))
        for logger in trainer.loggers:
            logger.save()  # the curves up to here should outlive a kill, too
        if trainer.is_global_zero:
            if self.best is not None and self.best[1] in files.steps_saved(self.run):
                files.write_best(self.run, self.best[1], self.best[0])
            files.prune(self.run, newest=step)

    def _save(self, trainer: Trainer) -> None:
        """Raises DiskError at the third failure in a row, and where no other save will follow."""
        self.saved_at, problem = time.monotonic(), ""
        try:
            self._write_and_prune(trainer)
        except (CheckpointError, DiskError, OSError) as error:  # or best.json is none
            problem = str(error)
        if not trainer.strategy.reduce_boolean_decision(bool(problem), all=False):
            self.saved_step, self.failures = trainer.global_step, 0
            return
        self.failures += 1
        last = f"last good: step {self.saved_step:,}" if self.saved_step else "none is saved yet"
        count = f"{self.failures}/{MOST_FAILURES}"
        trainer.lightning_module.print(f"save failed ({count}): {problem}; {last}", flush=True)
        if self.failures == MOST_FAILURES or trainer.should_stop:
            raise DiskError(
                f"step {trainer.global_step:,} is not saved: {problem or 'see the first process'}; "
                f"{last}. Mend that, then go on with make resume RUN={self.run}"
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
            path = files.folder_of(self.run) / "milestones" / files.file_name(step)
            self._write(trainer, path, weights_only=True)
        except DiskError as error:
            trainer.lightning_module.print(f"milestone not saved: {error}", flush=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish what a kill has cut short."""
        if not trainer.is_global_zero:
            return
        files.clear_leftovers(self.run)
        if self.best is not None and self.best[1] in files.steps_saved(self.run):
            files.write_best(self.run, self.best[1], self.best[0])

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
