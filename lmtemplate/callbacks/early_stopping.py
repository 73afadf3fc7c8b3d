"""Validation losses that no longer improve -> the end of the run."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks

from lmtemplate import metric_names
from lmtemplate.errors import ConfigError


class EarlyStopping(callbacks.EarlyStopping):
    """Stop when validation no longer improves.

    Args:
        monitor: a value that each validation logs.
        patience: validations without improvement after which the run stops.
        min_delta: smallest change that counts as improvement.
        mode: "min" if lower is better, else "max".
    """

    def __init__(
        self,
        monitor: str = metric_names.VAL_LOSS,
        patience: int = 5,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if patience < 0:
            raise ConfigError(f"early_stopping.patience={patience} has to be 0 or more")
        super().__init__(monitor, min_delta=min_delta, patience=patience, mode=mode)
        self._ended_at: int | None = None  # max_steps of the run that this has ended

    @property
    def state_key(self) -> str:
        """Differs from that of Lightning's own EarlyStopping on the same monitor."""
        return "early_stopping"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a run that was killed between its last save and its end."""
        if self._ended_at == trainer.max_steps:
            trainer.should_stop = True
        else:
            self.stopping_reason_message = None  # of the last start
        latest = getattr(pl_module, "latest", {})  # of the untrained model, at the first start
        if torch.isinf(self.best_score) and self.monitor in latest:
            self.best_score = torch.tensor(latest[self.monitor])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._ended_at = trainer.max_steps if self.stopping_reason_message else None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"ended_at": self._ended_at, "min_delta": self.min_delta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning restores the old patience, so that a new setting would do nothing
        super().load_state_dict(state_dict | {"patience": self.patience})
        self.best_score = torch.as_tensor(self.best_score)
        bool(self.best_score < 0)  # raises an error for what has no order
        strict = self.wait_count >= self.patience and state_dict["min_delta"] == self.min_delta
        self._ended_at = state_dict["ended_at"] if strict else None
