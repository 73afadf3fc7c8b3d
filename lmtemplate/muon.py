"""Gradients -> an update by Muon for hidden matrices, by AdamW for all else, in one optimizer."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

Rates = Sequence[float | Tensor]

# a, b, c of x <- a x + (b G + c G^2) x with G = x x', for each iteration
# (three of them, or four of Polar Express, Amsel et al. 2025, lose 0.007 to 0.01 nats at 200 steps)
QUINTIC = [(3.4445, -4.7750, 2.0315)] * 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> nearly the U V' of each matrix's singular value decomposition.

    Newton-Schulz iteration of Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural
    networks"): singular values end between about 0.7 and 1.2. Runs in the dtype it is given.
    """
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in QUINTIC:  # baddbmm adds while it multiplies: a third less time, half in bfloat16
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_update(
    matrices: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    rates: Rates,
    momentum: float,
    dtype: torch.dtype,
) -> None:
    """Change matrices of one shape, and their momenta, in place, with Nesterov's look ahead.

    Args:
        matrices: parameters of one shape (rows, columns).
        gradients: of each.
        momenta: running means of the gradients.
        rates: the step size, and the share of a matrix that decays.
        momentum: the share of a running mean that is kept.
        dtype: of the iteration.
    """
    for mean, gradient in zip(momenta, gradients, strict=True):
        mean.lerp_(gradient, 1 - momentum)
    ahead = [g.lerp(m, momentum) for g, m in zip(gradients, momenta, strict=True)]
    updates = orthogonalise(torch.stack(ahead).to(dtype)).to(matrices[0].dtype)
    step_size, decay = rates
    rows, columns = matrices[0].shape
    updates = updates * (step_size * max(1.0, rows / columns) ** 0.5)
    for matrix, update in zip(matrices, updates.unbind(), strict=True):
        matrix.mul_(1 - decay).sub_(update)


class MuonAdamWOptimizer(torch.optim.Optimizer):
    """One optimizer whose groups are stepped by Muon or by AdamW, as their `algorithm` says.

    Muon is batched over matrices of equal shape: 1.5 times faster than one by one at width 128.
    With a tensor `found_inf` of 1 a step changes nothing (see `skip_step_if`).
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], matmul_dtype: torch.dtype) -> None:
        super().__init__(groups, defaults={})
        self.matmul_dtype = matmul_dtype
        self._muon_update = muon_update

    def compile(self) -> None:
        """Compile Muon's part, which on a GPU launches most kernels of a small model's step."""
        self._muon_update = torch.compile(muon_update, dynamic=False)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["algorithm"] == "muon":
                self._muon(group, parameters)
            elif parameters:
                self._adamw(group, parameters)
        return loss

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            alike[parameter.shape].append(parameter)
        rates: Rates = (group["lr"], group["lr"] * group["weight_decay"])
        if parameters and self._muon_update is not muon_update:
            # a plain number that changes is compiled anew; nothing waits for this copy
            rates = torch.tensor(rates).to(parameters[0].device, non_blocking=True).unbind()
        for members in alike.values():
            gradients = [p.grad for p in members if p.grad is not None]
            for parameter in members:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[p]["momentum"] for p in members]
            if self.found_inf is not None:  # a momentum that meets itself stays what it is
                pairs = zip(momenta, gradients, strict=True)
                gradients = [torch.where(self.found_inf > 0, m, g) for m, g in pairs]
                rates = [rate * (1 - self.found_inf) for rate in rates]
            settings = rates, group["momentum"], self.matmul_dtype
            self._muon_update(members, gradients, momenta, *settings)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
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
