"""Weights of all steps -> their running average, which is validated, saved and used."""

from typing import Any

import torch
from lightning.pytorch import callbacks
from torch import Tensor

from lmtemplate.errors import ConfigError


class WeightAveraging(callbacks.WeightAveraging):
    """Average the weights over steps; validation, samples and best checkpoint use the average.

    Args:
        decay: share of the average that each step keeps (an exponential moving average, Polyak and
            Juditsky 1992); null for the plain average of all steps (SWA, Izmailov et al. 2018).
        start_step: the average begins after this many steps.
    """

    def __init__(self, decay: float | None = 0.999, start_step: int = 0) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ConfigError(f"weight_averaging.decay={decay} has to be in [0, 1), or null")
        if start_step < 0:
            raise ConfigError(f"weight_averaging.start_step={start_step} has to be 0 or more")
        super().__init__(avg_fn=self.average)
        self.decay = decay
        self.start_step = start_step

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({name: int(step) for name, step in state_dict.items()})

    def average(self, averaged: Tensor, current: Tensor, updates: Tensor) -> Tensor:
        """The new average, after so many updates; the device need not wait for any of it."""
        counted = (updates - self.start_step).clamp(min=0)  # steps in the average so far
        if self.decay is None:
            return averaged + (current - averaged) / (counted + 1)
        return averaged + (current - averaged) * torch.where(counted == 0, 1.0, 1 - self.decay)
