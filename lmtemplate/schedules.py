"""Optimizer step -> factor on the learning rate; one small class per shape.

`step` counts the updates already made, so it runs from 0 to total - 1 and the last update still
has a rate above the floor. Total is the length of the run.
"""

import math
from abc import ABC, abstractmethod

from lmtemplate.errors import ConfigError


class Schedule(ABC):
    """Linear warm-up from 1 / warmup_steps to 1, then the shape of the subclass.

    Args:
        warmup_steps: updates until the full rate; 0 starts there.
        floor_ratio: factor at the end of the run.
    """

    def __init__(self, warmup_steps: int = 0, floor_ratio: float = 0.0) -> None:
        if warmup_steps < 0 or not 0 <= floor_ratio <= 1:
            says = f"0 or more and floor_ratio={floor_ratio} between 0 and 1"
            raise ConfigError(f"model.schedule: warmup_steps={warmup_steps} has to be {says}")
        self.warmup_steps, self.floor_ratio = warmup_steps, floor_ratio

    def factor(self, step: int, total: int) -> float:
        """Factor for the update after `step` updates, in a run of `total`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return self.floor_ratio + (1 - self.floor_ratio) * self.shape(min(1.0, progress))

    @abstractmethod
    def shape(self, progress: float) -> float:
        """Height above the floor, 1 to 0, at this share (0 to 1) of the steps after warm-up."""


class Constant(Schedule):
    """Warm-up, then the full rate to the end."""

    def __init__(self, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps)

    def shape(self, progress: float) -> float:
        return 1.0


class WarmupCosine(Schedule):
    """Half a cosine down to the floor (Loshchilov and Hutter 2017, equation 5, no restarts)."""

    def __init__(self, warmup_steps: int = 100, floor_ratio: float = 0.1) -> None:
        super().__init__(warmup_steps, floor_ratio)

    def shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * progress))


class WarmupStableDecay(Schedule):
    """The full rate, then a straight line down over the last part (Hu et al. 2024, section 4).

    Args:
        warmup_steps: updates until the full rate; 0 starts there.
        decay_ratio: share of the steps after warm-up over which the rate falls.
        floor_ratio: factor at the end of the run.
    """

    def __init__(
        self, warmup_steps: int = 100, decay_ratio: float = 0.2, floor_ratio: float = 0.0
    ) -> None:
        super().__init__(warmup_steps, floor_ratio)
        if not 0 < decay_ratio <= 1:
            raise ConfigError(f"model.schedule: decay_ratio={decay_ratio} has to be in (0, 1]")
        self.decay_ratio = decay_ratio

    def shape(self, progress: float) -> float:
        return min(1.0, (1 - progress) / self.decay_ratio)


class WarmupLinear(WarmupStableDecay):
    """A straight line down to the floor: it falls over all of the steps."""

    def __init__(self, warmup_steps: int = 100, floor_ratio: float = 0.0) -> None:
        super().__init__(warmup_steps, 1.0, floor_ratio)
