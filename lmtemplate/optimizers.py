"""Parameters of a net -> optimizer: AdamW, Adam, SGD, Muon with AdamW.

What a config names are recipes: settings now, an optimizer once there is a net.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.hardware import fast_bfloat16
from lmtemplate.muon import MuonAdamWOptimizer

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer", "sum")
Group = dict[str, Any]
OptimizerCallable = Callable[[Iterable[Any]], torch.optim.Optimizer]


def trainable(net: nn.Module) -> list[nn.Parameter]:
    """Parameters that learn; a tied one once."""
    return [p for p in net.parameters() if p.requires_grad]


def check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raises CheckpointError where a restored moment is no plain tensor of its parameter's shape.

    Torch's fused steps do not look, and would write beyond the end of its memory.
    """
    for parameter, state in optimizer.state.items():
        for name, value in ((k, v) for k, v in state.items() if torch.is_tensor(v)):
            is_odd = value.is_nested or value.requires_grad or value.is_meta
            is_plain = value.layout is torch.strided and not is_odd
            if is_plain and name in MOMENTS:
                whole = value.is_contiguous() or value.stride() == parameter.stride()
                is_plain = whole and value.shape == parameter.shape
            counts = (torch.float32, torch.float64, torch.int64)
            is_count = value.numel() == 1 and value.dtype in counts
            if not is_plain or (name == "step" and not is_count):
                raise CheckpointError(f"the checkpoint's optimizer has a wrong {name!s:.100}")


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """Matrices (and embeddings) decay; biases and gains do not. Empty groups are left out."""
    known = list(parameters)
    matrices, vectors = [p for p in known if p.dim() >= 2], [p for p in known if p.dim() < 2]
    groups = (("decay", matrices, weight_decay), ("no_decay", vectors, 0.0))
    return [{"params": p, "name": name, "weight_decay": rate} for name, p, rate in groups if p]


def hidden_matrices(net: nn.Module) -> list[nn.Parameter]:
    """Matrices between the embedding and the output head: those that Muon is meant for.

    Tables of vectors stay out: every `nn.Embedding`, and a matrix with a vocabulary axis that is
    not in the stack of blocks.
    """
    tables = {p for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    vocab_size = getattr(net, "vocab_size", None)
    return [
        p
        for name, p in net.named_parameters()
        if p.requires_grad
        and p.dim() == 2
        and p not in tables
        and (vocab_size not in p.shape or re.search(r"\.\d+\.", name))
    ]


def check_rates(**rates: float) -> None:
    """Raises ConfigError for a negative learning rate, momentum or weight decay."""
    for name, rate in rates.items():
        if not rate >= 0:
            raise ConfigError(f"model.optimizer.{name}={rate} has to be 0 or more")


def unscaled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Keep a fused optimizer from unscaling float16 gradients itself: they are clipped before."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


class OptimizerRecipe(ABC):
    """Settings of an optimizer, which is built when there is a net."""

    @abstractmethod
    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer. Every parameter group carries a `name` for the logs."""


class _AnyOptimizer(OptimizerRecipe):
    """Any optimizer with torch's interface, over all trainable parameters in one group."""

    def __init__(self, build_from: OptimizerCallable) -> None:
        self.build_from = build_from

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        return self.build_from(trainable(net))


def recipe_of(optimizer: OptimizerRecipe | OptimizerCallable) -> OptimizerRecipe:
    """A recipe as it is; a class of torch's kind as a recipe."""
    return optimizer if isinstance(optimizer, OptimizerRecipe) else _AnyOptimizer(optimizer)


class AdamW(OptimizerRecipe):
    """Adam with decoupled weight decay, on matrices only (Loshchilov and Hutter 2019).

    Args:
        lr: peak learning rate; the decay of one step is lr * weight_decay.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: on matrices.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        check_rates(lr=lr, weight_decay=weight_decay)
        self.settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "fused": True}
        self.weight_decay = weight_decay

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        groups = decay_groups(trainable(net), self.weight_decay)
        return unscaled(torch.optim.AdamW(groups, **self.settings))


class Adam(OptimizerRecipe):
    """Adam without decay (Kingma and Ba 2015).

    Args:
        lr: peak learning rate.
        betas: decay rates of the first and second moment.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        check_rates(lr=lr)
        self.settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "fused": True}

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        group = {"params": trainable(net), "name": "all"}
        return unscaled(torch.optim.Adam([group], **self.settings))


class SGD(OptimizerRecipe):
    """Stochastic gradient descent with momentum.

    Args:
        lr: peak learning rate.
        momentum: share of the last update that is kept; 0 for plain descent.
        nesterov: look ahead along the momentum.
        weight_decay: on matrices, added to the gradient (L2).
    """

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        check_rates(lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.settings: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        self.weight_decay = weight_decay

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        groups = decay_groups(trainable(net), self.weight_decay)
        return unscaled(torch.optim.SGD(groups, **self.settings, fused=True))


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that it updates."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradient_norm(optimizer: torch.optim.Optimizer, order: float = 2.0) -> Tensor:
    """Norm of all gradients that there are, as one vector."""
    gradients = [p.grad for p in parameters_of(optimizer) if p.grad is not None]
    return nn.utils.get_total_norm(gradients, order)


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float, norm: Tensor | None) -> Tensor:
    """Clip by this norm of all gradients, or by value if None; returns whether that changed them.

    A gradient that is not finite does not count: its step is skipped.
    """
    largest = gradient_norm(optimizer, math.inf) if norm is None else norm
    if norm is None:
        nn.utils.clip_grad_value_(parameters_of(optimizer), limit)
    else:
        nn.utils.clip_grads_with_norm_(parameters_of(optimizer), limit, norm)
    return (largest > limit) & largest.isfinite()


def skip_step_if(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let the next step of the optimizer change nothing, neither weights nor moments, if `bad`.

    On a GPU nothing waits for the answer where the optimizer takes a tensor for it, as fused ones
    do for torch's gradient scaler, and MuonAdamW does; any other has its gradients taken away.
    """
    takes_tensor = optimizer.defaults.get("fused") or isinstance(optimizer, MuonAdamWOptimizer)
    # fused SGD whose first step is held would leave its momenta unset, yet count them as there
    begun = bool(optimizer.state) or not optimizer.defaults.get("momentum")
    if bad.device.type != "cpu" and takes_tensor and begun:
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    elif bad:
        optimizer.zero_grad(set_to_none=True)


class MuonAdamW(OptimizerRecipe):
    """Muon for the matrices between embedding and head, AdamW for everything else.

    Args:
        lr: peak learning rate of Muon, in units of a matrix with singular values 1.
        momentum: of Muon.
        weight_decay: of Muon's matrices; the decay of one step is lr * weight_decay.
        adamw_lr: peak learning rate of embeddings, head, biases and gains.
        adamw_betas: decay rates of AdamW's moments.
        adamw_eps: added to the root of AdamW's second moment.
        adamw_weight_decay: of embeddings and head.
    """

    def __init__(
        self,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adamw_lr: float = 0.003,
        adamw_betas: tuple[float, float] = (0.8, 0.95),
        adamw_eps: float = 1e-10,
        adamw_weight_decay: float = 0.0,
    ) -> None:
        check_rates(lr=lr, adamw_lr=adamw_lr)
        check_rates(weight_decay=weight_decay, adamw_weight_decay=adamw_weight_decay)
        self.muon = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.adamw = {"lr": adamw_lr, "betas": adamw_betas, "eps": adamw_eps}
        self.adamw_weight_decay = adamw_weight_decay

    def build(self, net: nn.Module) -> MuonAdamWOptimizer:
        hidden = hidden_matrices(net)
        muon = {"params": hidden, "name": "muon", "algorithm": "muon", **self.muon}
        inside = set(hidden)
        rest = decay_groups([p for p in trainable(net) if p not in inside], self.adamw_weight_decay)
        for group in rest:  # fused, so that `load_state_dict` puts the step count on the device
            group.update(self.adamw, algorithm="adamw", fused=True)
        groups = [group for group in (muon, *rest) if group["params"]]
        fast = bool(hidden) and fast_bfloat16(hidden[0].device)  # the iteration tolerates bfloat16
        return MuonAdamWOptimizer(groups, torch.bfloat16 if fast else torch.float32)
