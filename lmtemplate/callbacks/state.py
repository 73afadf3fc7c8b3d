"""Training state <-> a checkpoint's content: what Lightning leaves out, or gets wrong."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer

from lmtemplate.checkpoint import files


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
