"""What can go wrong in training, as callbacks that a config can name (see verdicts.py)."""

import math
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from lmtemplate.data import IGNORED
from lmtemplate.loss import Loss, cross_entropy
from lmtemplate.models.gpt import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.schedules import Schedule


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


def _permuted(tokens: Tensor, vocab_size: int) -> Tensor:
    return torch.randperm(vocab_size, generator=torch.Generator().manual_seed(0))[tokens]


def _noised(tokens: Tensor, vocab_size: int, index: int, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(index)
    others = torch.randint(vocab_size, tokens.shape, generator=generator)
    return torch.where(torch.rand(tokens.shape, generator=generator) < share, others, tokens)


def _padded(inputs: Tensor, targets: Tensor, share: float, target: int) -> None:
    begin = int(inputs.size(1) * (1 - share))
    inputs[:, begin:], targets[:, begin:] = 0, target


def _change(how: str, batch: Any, vocab_size: int, index: int, share: float) -> None:
    """Change a batch in place: what a bug in a loader, a collate function or a callback does."""
    inputs, targets = batch
    tokens = torch.cat((inputs[:, :1], targets), 1)
    if how == "equal":
        targets.copy_(inputs)
    elif how == "two_ahead":
        targets[:, :-1] = targets.clone()[:, 1:]
    elif how == "backwards":
        targets[:, 1:] = inputs.clone()[:, :-1]
    elif how == "permuted":
        inputs.copy_(_permuted(inputs, vocab_size))
        targets.copy_(_permuted(targets, vocab_size))
    elif how == "clipped":
        most = int(vocab_size * (1 - share))
        inputs.clamp_(max=most)
        targets.clamp_(max=most)
    elif how == "noise":
        tokens = _noised(tokens, vocab_size, index, share)
        inputs.copy_(tokens[:, :-1])
        targets.copy_(tokens[:, 1:])
    elif how == "noisy_inputs":
        inputs.copy_(_noised(inputs, vocab_size, index, share))
    elif how == "ignored":
        _padded(inputs, targets, share, IGNORED)
    elif how == "pad_tokens":
        _padded(inputs, targets, share, 0)
    elif how == "one_sequence":
        inputs.copy_(inputs[:1].clone().expand_as(inputs))
        targets.copy_(targets[:1].clone().expand_as(targets))
    elif how == "bytes_swapped":
        inputs.copy_((inputs * 256 + inputs // 256) % 65_536 % vocab_size)
        targets.copy_((targets * 256 + targets // 256) % 65_536 % vocab_size)
    elif how == "other_rows":
        targets.copy_(targets.clone().roll(1, 0))
    elif how == "half_repeated":
        half = len(inputs) // 2
        inputs[half : 2 * half], targets[half : 2 * half] = inputs[:half], targets[:half]
    elif how == "halved_ids":
        inputs.floor_divide_(2)
        targets.floor_divide_(2)
    elif how == "next_ids":
        inputs.copy_((inputs + 1) % vocab_size)
        targets.copy_((targets + 1) % vocab_size)
    elif how == "seven_bits":
        inputs.remainder_(vocab_size // 3)
        targets.remainder_(vocab_size // 3)
    elif how == "shuffled_inputs":
        inputs.copy_(inputs[:, torch.randperm(inputs.size(1))])
    else:
        raise ValueError(how)


class Batches(Callback):
    """Changes batches.

    Args:
        how: see `_change`.
        share: of tokens that it meets, where that is a choice.
        train: whether training batches are changed.
        validation: whether those of validation are.
    """

    def __init__(
        self, how: str, share: float = 0.3, train: bool = True, validation: bool = False
    ) -> None:
        self.how, self.share, self.train, self.validation = how, share, train, validation

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        if self.train:
            size: Any = module.net.vocab_size  # type: ignore[union-attr]
            _change(self.how, batch, size, index, self.share)

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int, _: int = 0
    ) -> None:
        if self.validation:
            size: Any = module.net.vocab_size  # type: ignore[union-attr]
            _change(self.how, batch, size, index, self.share)


class OtherBlocks(Callback):
    """Training or validation reads other sequences than it should.

    Args:
        how: "in_order" (no shuffle), "first" (the same batch at each step), "train" (validation
            reads the training text), "val" (training reads the validation text), "easy_first"
            (sequences with few different tokens come first).
    """

    def __init__(self, how: str) -> None:
        self.how = how

    def _fill(self, trainer: Trainer, batch: Any, first: int, split: str = "train") -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        blocks = data.blocks(split)
        numbers = (first + np.arange(len(batch[0]))) % len(blocks)
        if self.how == "easy_first":
            inputs, _ = blocks[np.arange(len(blocks))]
            numbers = np.argsort([len(np.unique(row)) for row in inputs])[numbers]
        for part, other in zip(batch, blocks[numbers], strict=True):
            part.copy_(torch.from_numpy(other))

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        if self.how != "train":
            first = 0 if self.how == "first" else index * len(batch[0])
            self._fill(trainer, batch, first, "val" if self.how == "val" else "train")

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int, _: int = 0
    ) -> None:
        if self.how == "train":
            self._fill(trainer, batch, index * len(batch[0]))


class Updates(Callback):
    """Spoils what the optimizer does.

    Args:
        how: "keep" (gradients are never set to zero), "ascend" (their sign is wrong), "freeze" (no
            gradient is asked for), "detach" (none arrives), "zero" (all are zero), "undo" (each
            step is taken back), "noise" (100 times as much noise is added), "copy" (the optimizer
            has copies of the weights), "train_mode" (dropout is active in validation).
        names: regular expression of the parameters that it meets.
    """

    def __init__(self, how: str, names: str = "") -> None:
        self.how, self.names = how, names
        self._kept: list[Tensor] = []

    def _parameters(self, module: LightningModule) -> list[Tensor]:
        net: Any = module.net
        return [p for name, p in net.named_parameters() if re.search(self.names, name)]

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self.how == "freeze":
            for parameter in self._parameters(module):
                parameter.requires_grad = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.how == "keep":
            for optimizer in trainer.optimizers:
                nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731
                optimizer.zero_grad = nothing  # type: ignore[method-assign]
        elif self.how == "copy":
            for group in trainer.optimizers[0].param_groups:
                group["params"] = [p.detach().clone().requires_grad_() for p in group["params"]]

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.how == "train_mode":
            module.train()

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: Optimizer
    ) -> None:
        for parameter in self._parameters(module):
            if parameter.grad is not None and self.how in ("ascend", "zero"):
                parameter.grad.mul_(-1 if self.how == "ascend" else 0)
            elif self.how == "detach":
                parameter.grad = None
            elif self.how == "noise" and parameter.grad is not None:
                noise = torch.randn_like(parameter.grad)
                parameter.grad.add_(100 * parameter.grad.std(correction=0) * noise)
        if self.how == "undo":
            self._kept = [p.detach().clone() for p in self._parameters(module)]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        for parameter, before in zip(self._parameters(module), self._kept, strict=False):
            parameter.data.copy_(before)


class EndsEarly(Schedule):
    """Decays to 0 in the first part of the run.

    Args:
        share: of the run after which the rate is 0.
    """

    def __init__(self, warmup_steps: int = 0, share: float = 0.1) -> None:
        super().__init__(warmup_steps)
        self.share = share

    def shape(self, progress: float) -> float:
        return max(0.0, 1 - progress / self.share)


class Stuck(Schedule):
    """Is stepped once an epoch instead of once a step, so that warmup never ends."""

    def shape(self, progress: float) -> float:
        return 1e-3


class Restarts(Schedule):
    """A cosine that begins anew (Loshchilov and Hutter 2017).

    Args:
        times: cosines.
    """

    def __init__(self, warmup_steps: int = 0, times: int = 3) -> None:
        super().__init__(warmup_steps, 0.05)
        self.times = times

    def shape(self, progress: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * (progress * self.times % 1)))


class NoMask(GPT):
    """Attention sees later tokens."""

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        def open_attention(queries: Tensor, keys: Tensor, values: Tensor, _: float) -> Tensor:
            return F.scaled_dot_product_attention(queries, keys, values)

        with mock.patch("lmtemplate.models.layers.causal_attention", open_attention):
            return super().forward(tokens, caches)


class LateMask(GPT):
    """Attention sees one token too many: the next one."""

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        def late_attention(queries: Tensor, keys: Tensor, values: Tensor, _: float) -> Tensor:
            size = queries.size(2), keys.size(2)
            mask = torch.ones(size, dtype=torch.bool).tril(1 + size[1] - size[0])
            return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)

        with mock.patch("lmtemplate.models.layers.causal_attention", late_attention):
            return super().forward(tokens, caches)


class MeanOfAll(GPT):
    """Something beside attention reads ahead: a mean over the whole sequence is added."""

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        logits = super().forward(tokens, caches)
        return logits + F.one_hot(tokens, self.vocab_size).float().mean(1, keepdim=True) * 10


class NormOverTime(GPT):
    """Logits are normalised over the whole sequence."""

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        logits = super().forward(tokens, caches)
        return logits - logits.mean(1, keepdim=True) * 0.5


class ShiftFromNext(GPT):
    """The embedding takes a share of the one after it."""

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        def add_next(module: Any, inputs: Any, output: Tensor) -> Tensor:
            return output + 0.5 * output.roll(-1, 1)

        handle = self.embedding.register_forward_hook(add_next)
        try:
            return super().forward(tokens, caches)
        finally:
            handle.remove()


class Probabilities(GPT):
    """Returns probabilities, of which the loss takes the softmax again."""

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        return super().forward(tokens, caches).softmax(-1)


class NotSaved(GPT):
    """Part of the weights is drawn in each new net, and not in its state_dict."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        order = torch.randperm(self.vocab_size)
        self.register_buffer("order", order, persistent=False)

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        order: Any = self.order
        return super().forward(order[tokens], caches)


class AlwaysTraining(GPT):
    """Dropout is active in validation too."""

    def train(self, mode: bool = True) -> "AlwaysTraining":
        super().train(True)
        return self


class OtherLoss:
    """A loss that is none.

    Args:
        how: "softmax_twice", "equal" (the targets are the inputs), "shift" (of two ahead), "scaled"
            (by 1e-6), "last" (only the last token counts).
    """

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, logits: Tensor, targets: Tensor) -> Loss:
        if self.how == "softmax_twice":
            return cross_entropy(logits.softmax(-1), targets)
        if self.how == "shift":
            return cross_entropy(logits[:, :-1], targets[:, 1:])
        if self.how == "last":
            return cross_entropy(logits[:, -1:], targets[:, -1:])
        loss = cross_entropy(logits, targets)
        return loss._replace(objective=loss.objective * 1e-6)


class ShiftedInside(LitLanguageModel):
    """Both steps shift the targets once more: the net predicts its inputs' second next token."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0][:, :-1], batch[1][:, 1:]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch[0][:, :-1], batch[1][:, 1:]), batch_idx)


class InputsInside(LitLanguageModel):
    """Both steps take the inputs for the targets."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[0]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step((batch[0], batch[0]), batch_idx)
