"""Parameters of a net -> optimizer: AdamW, Adam, SGD, Muon with AdamW.

What a config names are recipes: settings now, an optimizer once there is a net.
"""

import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lmtemplate.errors import ConfigError
from lmtemplate.hardware import fast_bfloat16

Group = dict[str, Any]


def named_parameters(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters; a tied one once."""
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad]


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[Group]:
    """Matrices (and embeddings) decay; biases and gains do not. Empty groups are left out."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in parameters:
        (matrices if parameter.dim() >= 2 else vectors).append(parameter)
    groups = [
        {"params": matrices, "name": "decay", "weight_decay": weight_decay},
        {"params": vectors, "name": "no_decay", "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(net: nn.Module) -> list[nn.Parameter]:
    """Matrices between the embedding and the output head: those that Muon is meant for.

    Tables of vectors stay out: every `nn.Embedding`, and a matrix with a vocabulary axis that is
    not in the stack of blocks.
    """
    tables = {p for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    vocab_size = getattr(net, "vocab_size", None)
    return [
        p
        for name, p in named_parameters(net)
        if p.dim() == 2
        and p not in tables
        and (vocab_size not in p.shape or re.search(r"\.\d+\.", name))
    ]


def check_rates(**rates: float) -> None:
    """Raises ConfigError for a negative learning rate."""
    for name, rate in rates.items():
        if not rate >= 0:
            raise ConfigError(f"model.optimizer.{name}={rate} has to be 0 or more")


def unscaled(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Keep a fused optimizer from unscaling float16 gradients itself: they are clipped before."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


class OptimizerRecipe(ABC):
    """Base class of what `model.optimizer` can name in a config."""

    @abstractmethod
    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        """Make the optimizer. Every parameter group carries a `name` for the logs."""


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
        check_rates(lr=lr)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        groups = decay_groups((p for _, p in named_parameters(net)), self.weight_decay)
        return unscaled(
            torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
        )


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
        self.lr = lr
        self.betas = betas
        self.eps = eps

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        group = {"params": [p for _, p in named_parameters(net)], "name": "all"}
        return unscaled(
            torch.optim.Adam([group], lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
        )


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
        check_rates(lr=lr)
        self.lr = lr
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        groups = decay_groups((p for _, p in named_parameters(net)), self.weight_decay)
        return unscaled(
            torch.optim.SGD(groups, self.lr, self.momentum, nesterov=self.nesterov, fused=True)
        )


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, rows, columns) -> nearly the U V' of each matrix's singular value decomposition.

    Quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024 ("Muon: an optimizer
    for hidden layers in neural networks"): singular values end between about 0.7 and 1.2. Runs in
    the dtype it is given.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamWOptimizer(torch.optim.Optimizer):
    """One optimizer whose groups are stepped by Muon or by AdamW, as their `algorithm` says.

    Muon is batched over matrices of equal shape: 1.5 times faster than one by one at width 128.
    With a tensor `found_inf` of 1 a step changes nothing (see `hold_if`).
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[Group], matmul_dtype: torch.dtype) -> None:
        super().__init__(groups, defaults={})
        self.matmul_dtype = matmul_dtype

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["algorithm"] == "muon":
                self._muon(group, parameters)
            elif parameters:
                self._adamw(group, parameters)
        return loss

    def _muon(self, group: Group, parameters: list[Tensor]) -> None:
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            alike[parameter.shape].append(parameter)
        for shape, members in alike.items():
            for parameter in members:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            gradients = [p.grad for p in members if p.grad is not None]
            momenta = [self.state[p]["momentum"] for p in members]
            decay: float | Tensor = group["lr"] * group["weight_decay"]
            if self.found_inf is not None:  # a momentum that meets itself stays what it is
                pairs = zip(momenta, gradients, strict=True)
                gradients = [torch.where(self.found_inf > 0, m, g) for m, g in pairs]
                decay = decay * (1 - self.found_inf)
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
            updates = orthogonalise(torch.stack(ahead).to(self.matmul_dtype))
            scale = max(1.0, shape[0] / shape[1]) ** 0.5
            updates = updates.to(members[0].dtype)
            if self.found_inf is not None:
                updates = updates * (1 - self.found_inf)
            torch._foreach_mul_(members, 1 - decay)
            torch._foreach_add_(members, list(updates), alpha=-group["lr"] * scale)

    def _adamw(self, group: Group, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            found_inf=self.found_inf,
        )


def hold_if(bad: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Let the next step of the optimizer change nothing, neither weights nor moments, if `bad`.

    On a GPU nothing waits for the answer where the optimizer takes a tensor for it, as fused ones
    do for torch's gradient scaler, and MuonAdamW does; any other has its gradients taken away.
    """
    fused = optimizer.defaults.get("fused", False)
    if bad.device.type != "cpu" and (fused or isinstance(optimizer, MuonAdamWOptimizer)):
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
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.adamw_lr = adamw_lr
        self.adamw_betas = adamw_betas
        self.adamw_eps = adamw_eps
        self.adamw_weight_decay = adamw_weight_decay

    def build(self, net: nn.Module) -> MuonAdamWOptimizer:
        hidden = hidden_matrices(net)
        inside = set(hidden)
        muon = {
            "params": hidden,
            "name": "muon",
            "algorithm": "muon",
            "lr": self.lr,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
        }
        others = decay_groups(
            (p for _, p in named_parameters(net) if p not in inside), self.adamw_weight_decay
        )
        for group in others:
            group.update(
                algorithm="adamw",
                lr=self.adamw_lr,
                betas=self.adamw_betas,
                eps=self.adamw_eps,
                fused=True,  # so that `load_state_dict` puts the step count on the device
            )
        groups = [group for group in (muon, *others) if group["params"]]
        fast = bool(hidden) and fast_bfloat16(hidden[0].device)  # the iteration tolerates bfloat16
        return MuonAdamWOptimizer(groups, torch.bfloat16 if fast else torch.float32)
