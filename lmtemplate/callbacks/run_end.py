"""Steps, the clock and a run directory that is gone -> the end of the run."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.errors import DiskError, amount
from lmtemplate.module import is_log_step, is_logged, is_step_end


def check_run_dir(trainer: Trainer) -> None:
    """Raises DiskError where the run directory was removed: nothing would be saved."""
    run = Path(trainer.default_root_dir)
    if trainer.is_global_zero and not run.is_dir():
        raise DiskError(
            f"{run} was removed or renamed at step {trainer.global_step:,}; put it back and go on "
            "with --resume auto, or begin anew"
        )


def told(trainer: Trainer, name: str) -> Any:
    """An attribute of the first callback that has it; None if none has: any file may be gone."""
    values = (getattr(callback, name, None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return next((value for value in values if value is not None), None)


def any_rank(trainer: Trainer, wants: bool) -> bool:
    """Whether a rank wants it; several ranks, which wait for each other here, ask at log steps."""
    if trainer.world_size > 1 and not is_logged(trainer, trainer.global_step):
        return False
    return trainer.strategy.reduce_boolean_decision(wants, all=False)


class RunEnd(Callback):
    """End the run after its last step, or when its time is over, with a last validation."""

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds  # since the Trainer was assembled, over all restarts
        self.seconds_before = 0.0
        self.out_of_time = False
        self.started = time.monotonic()

    @property
    def run_seconds(self) -> float:
        """All seconds of the run so far."""
        return self.seconds_before + time.monotonic() - self.started

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.max_seconds is not None and self.seconds_before >= self.max_seconds:
            self.out_of_time = trainer.should_stop = True  # a kill came before its end

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not is_step_end(trainer):
            return
        if is_log_step(trainer):
            check_run_dir(trainer)
        if self.max_seconds is not None:
            out_of_time = self.run_seconds >= self.max_seconds
            self.out_of_time = trainer.strategy.reduce_boolean_decision(out_of_time, all=False)
        if self.out_of_time or trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it obeys

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_run_dir(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.run_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds_before = float(amount(state_dict["seconds"]))
