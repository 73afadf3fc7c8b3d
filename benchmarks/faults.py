"""What can go wrong in training, as callbacks that a config can name (see verdicts.py)."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class ShuffleTargets(Callback):
    """Each target becomes that of another position of its batch."""

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        targets: Tensor = batch[1]
        order = torch.randperm(targets.numel(), generator=torch.Generator().manual_seed(index))
        targets.copy_(targets.flatten()[order].view_as(targets))


class Noise(Callback):
    """Adds noise to all weights once, as one bad update would.

    Args:
        first: step before which it happens.
        scale: of the noise, in standard deviations of each matrix.
        keep: factor on the learning rate from then on.
    """

    def __init__(self, first: int, scale: float, keep: float = 1.0) -> None:
        self.first, self.scale, self.keep = first, scale, keep

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        if index >= self.first and self.keep != 1.0:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] *= self.keep
        if index == self.first:
            generator = torch.Generator().manual_seed(index)
            with torch.no_grad():
                for weight in module.parameters():
                    noise = torch.randn(weight.shape, generator=generator)
                    weight.add_(self.scale * weight.std(correction=0) * noise)


class BadBatches(Callback):
    """Some batches are random tokens.

    Args:
        first: the first of them.
        count: how many.
    """

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        if self.first <= index < self.first + self.count:
            generator = torch.Generator().manual_seed(index)
            for part in batch:
                part.random_(0, module.net.vocab_size, generator=generator)  # type: ignore[union-attr]


class Poison(Callback):
    """The embedding becomes NaN.

    Args:
        step: when.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        if index == self.step:
            with torch.no_grad():
                next(module.parameters()).fill_(math.nan)


class LargeHead(Callback):
    """The output layer begins far too large.

    Args:
        scale: standard deviation of its weights.
    """

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        net: Any = module.net
        head = getattr(net, "head", None) or net.embedding
        torch.nn.init.normal_(head.weight, std=self.scale)
