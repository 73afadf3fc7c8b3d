"""A net that trains -> what happens inside of it, by layer, as curves and histograms."""

from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lmtemplate.errors import ConfigError
from lmtemplate.module import LitLanguageModel, is_step_end, log_values
from lmtemplate.study.understand.inside import (
    Recorder,
    figures_of_layer,
    figures_of_parts,
    parameters_by_part,
    update_ratios,
)

SAMPLED_VALUES = 4096  # of a tensor, at least, for its histogram and the size of its update


def sampled(values: Tensor) -> Tensor:
    """Evenly spaced ones of all."""
    values = values.detach().flatten()
    return values[:: max(1, values.numel() // SAMPLED_VALUES)].float().cpu()


class Dynamics(Callback):
    """Log activations, attention, dead units, gradients and updates of each layer.

    Gradients and updates are those of the step; the others are of a forward pass without dropout
    over the first sequence of its batch. Weights, moments and random numbers stay as they are.

    Args:
        every_steps: optimizer steps from one look to the next; a look takes about a quarter of the
            time of a step at quickstart's size, and less for larger batches.
    """

    def __init__(self, every_steps: int) -> None:
        if every_steps < 1:
            raise ConfigError(f"dynamics.every_steps={every_steps} has to be 1 or more")
        self.every_steps = every_steps
        self._before: dict[str, Tensor] = {}  # some weights of each tensor, before the step
        self._values: dict[str, float] = {}
        self._histograms: dict[str, Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the gradients, before they are clipped, and keep some of the weights."""
        if not trainer.is_global_zero or (trainer.global_step + 1) % self.every_steps:
            return
        assert isinstance(pl_module, LitLanguageModel)
        net = pl_module.net
        named = dict(net.named_parameters())
        self._before = {name: sampled(value).clone() for name, value in named.items()}
        found = figures_of_parts(net)
        self._values = {f"gradient_norm/{one['name']}": one["gradient_norm"] for one in found}
        for part, names in parameters_by_part(net).items():
            gradients = [sampled(g) for name in names if (g := named[name].grad) is not None]
            if gradients:
                self._histograms[f"gradient/{part}"] = torch.cat(gradients)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the weights after the step, and into a forward pass; log all of it."""
        if not self._before or not is_step_end(trainer):
            return
        assert isinstance(pl_module, LitLanguageModel)
        net = pl_module.net
        after = {name: sampled(value) for name, value in net.named_parameters()}
        ratios = update_ratios(net, self._before, after)
        self._values |= {f"update_ratio/{part}": ratio for part, ratio in ratios.items()}
        devices = [batch[0].device] if batch[0].is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices), Recorder(net.eval()) as recorder:
            logits = net.forward(batch[0][:1])  # not `net`: a compiled one would be compiled anew
        net.train()
        self._values["largest_logit"] = float(logits.abs().max())
        for layer in recorder.layers:
            figures = figures_of_layer(layer)
            self._values |= {f"{name}/{layer.name}": value for name, value in figures.items()}
            if layer.left is not None:
                self._histograms[f"activation/{layer.name}"] = sampled(layer.left)
        log_values(pl_module, {f"dynamics/{name}": value for name, value in self._values.items()})
        for logger in trainer.loggers:
            board: Any = getattr(logger, "experiment", None)
            for name, values in self._histograms.items() if hasattr(board, "add_histogram") else ():
                if values.square().isfinite().all():  # a histogram needs their squares
                    with suppress(OSError):  # a full disk is told by the loggers
                        board.add_histogram(f"dynamics/{name}", values, trainer.global_step)
        self._before, self._values, self._histograms = {}, {}, {}
