"""A checkpoint -> the random states and the place in Lightning's loop that it was saved at."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.checkpoint.files import hidden_methods
from lmtemplate.optimizers import check_moments


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
    """Raises an error for what no generator can use; NumPy's own would read past its keys."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), None if gauss is None else float(gauss)))
    kind, keys, position, *rest = states["numpy"]
    place = range(len(keys) + 1).index(position)
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), place, *rest))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    if states["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


def loops_at(trainer: Trainer, step: int) -> dict[str, Any]:
    """State of Lightning's fit loop after `step` optimizer steps.

    What Lightning stores depends on the hook in which it was saved, and counts micro-batches, which
    mean something else when the accumulation has changed.
    """
    batches = step * trainer.accumulate_grad_batches
    loops = trainer.fit_loop.state_dict()
    optimizer = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for progress, count in (
        (loops["epoch_loop.batch_progress"], batches),
        (optimizer["step"], step),
        (optimizer["zero_grad"], step),
        (loops["epoch_loop.scheduler_progress"], step),
    ):
        for scope in ("total", "current"):
            progress[scope] = dict.fromkeys(progress[scope], count)
    loops["epoch_loop.batch_progress"]["is_last_batch"] = False
    for scope in ("total", "current"):  # in the middle of the one epoch
        loops["epoch_progress"][scope].update(ready=1, started=1, processed=0, completed=0)
    # The step that Lightning gives its loggers (`self.log`). Where a validation was due, Lightning
    # first passes its loop once without training, which counts as a step.
    validated = batches % int(trainer.val_check_interval or 1) == 0
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - validated
    return loops


class ExactResume(Callback):
    """Saves and restores what Lightning does not; last, so that no callback draws numbers after it."""

    def __init__(self) -> None:
        self._random_states: list[dict[str, Any]] = []  # of each rank, from the loaded checkpoint

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            check_moments(optimizer)
        for config in trainer.lr_scheduler_configs:  # makes attributes of all that its state holds
            if self._random_states and (hidden := hidden_methods(config.scheduler)):
                raise ValueError(f"the schedule's state holds {hidden[0]}, one of its methods")
        if trainer.global_rank < len(self._random_states):
            set_random_states(self._random_states[trainer.global_rank])
        elif trainer.global_rank:
            # dropout differs on each rank
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
