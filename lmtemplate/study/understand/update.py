"""Weights, gradients, an optimizer's state -> the update that follows, by formulas written out.

Each formula gives its intermediate values by name, in the order in which they are computed: tensors
of the weights' shape. An optimizer that no formula stands here for has none.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmtemplate.muon import MuonAdamWOptimizer

Values = dict[str, Tensor]
Saved = dict[str, Any]

# Name of a value -> what it is, and its formula.
FORMULAS = {
    "weight": "weight w, before",
    "gradient": "gradient g = dL/dw",
    "gradient_with_decay": "g + wd · w",
    "first_before": "first moment m, before",
    "first": "m = b1 · m + (1 - b1) · g",
    "second_before": "second moment v, before",
    "second": "v = b2 · v + (1 - b2) · g²",
    "first_corrected": "m^ = m / (1 - b1^t)",
    "second_corrected": "v^ = v / (1 - b2^t)",
    "step": "step = lr · m^ / (sqrt(v^) + eps)",
    "step_uncorrected": "without bias correction: lr · m / (sqrt(v) + eps)",
    "momentum_before": "momentum M, before",
    "momentum": "M = mu · M + g",
    "muon_momentum": "M = mu · M + (1 - mu) · g",
    "muon_ahead": "ahead = mu · M + (1 - mu) · g",
    "muon_update": "O: ahead = U S V', then O = U f(S) V'",
    "sgd_step": "step = lr · M",
    "nesterov_step": "step = lr · (g + mu · M)",
    "plain_step": "step = lr · g",
    "muon_step": "step = lr · sqrt(max(1, rows / columns)) · O",
    "decay": "decay = lr · wd · w",
    "decay_without_rate": "wd · w, as texts write that leave lr out",
    "after": "w = w - step - decay",
}
# Newton-Schulz: each singular value s becomes a s + b s^3 + c s^5, five times (Jordan et al. 2024).
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


class Spectrum(NamedTuple):
    """A matrix, made nearly orthogonal; its singular values over its norm, before and after."""

    matrix: Tensor
    before: Tensor
    after: Tensor


def nearly_orthogonal(matrix: Tensor) -> Spectrum:
    """U S V' -> U f(S) V' through the eigenvectors of the matrix times its transpose, in float64.

    Newton-Schulz changes singular values alone, so this equals the iteration of `muon.py`.
    """
    x = matrix.double() / (matrix.double().norm() + 1e-7)
    wide = x if x.size(0) <= x.size(1) else x.mT
    squares, basis = torch.linalg.eigh(wide @ wide.mT)
    before = values = squares.clamp(min=0).sqrt()
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    factor = torch.where(before > 0, values / before, a**ITERATIONS)
    result = basis @ (factor[:, None] * (basis.mT @ wide))
    result = result if x.size(0) <= x.size(1) else result.mT
    return Spectrum(result.to(matrix.dtype), before.flip(0), values.flip(0))


def adam_update(w: Tensor, g: Tensor, state: Saved, group: dict[str, Any]) -> Values:
    """Adam and AdamW (Loshchilov and Hutter 2019, algorithm 2), with torch's signs and names."""
    (b1, b2), lr, eps = group["betas"], group["lr"], group["eps"]
    step, decay = int(state.get("step", 0)) + 1, group["weight_decay"]
    decoupled = group.get("decoupled_weight_decay", True)
    values = {"weight": w, "gradient": g}
    if not decoupled and decay:
        g = values["gradient_with_decay"] = g + decay * w
    values["first_before"] = m = state.get("exp_avg", torch.zeros_like(w))
    values["first"] = m = b1 * m + (1 - b1) * g
    values["second_before"] = v = state.get("exp_avg_sq", torch.zeros_like(w))
    values["second"] = v = b2 * v + (1 - b2) * g.square()
    values["first_corrected"] = first = m / (1 - b1**step)
    values["second_corrected"] = second = v / (1 - b2**step)
    values["step"] = moved = lr * first / (second.sqrt() + eps)
    values["step_uncorrected"] = lr * m / (v.sqrt() + eps)
    after = w - moved
    if decoupled and decay:
        values["decay"] = lr * decay * w
        values["decay_without_rate"] = decay * w
        after = after - lr * decay * w
    return {**values, "after": after}


def sgd_update(w: Tensor, g: Tensor, state: Saved, group: dict[str, Any]) -> Values:
    """Stochastic gradient descent: theta <- theta - lr · gradient, with momentum if it has any."""
    lr, mu, decay = group["lr"], group.get("momentum", 0.0), group.get("weight_decay", 0.0)
    values = {"weight": w, "gradient": g}
    if decay:
        g = values["gradient_with_decay"] = g + decay * w
    if not mu:
        moved = values["plain_step"] = lr * g
        return {**values, "after": w - moved}
    before = state.get("momentum_buffer")
    values["momentum_before"] = torch.zeros_like(w) if before is None else before
    values["momentum"] = momentum = g if before is None else mu * before + g
    if group.get("nesterov"):
        moved = values["nesterov_step"] = lr * (g + mu * momentum)
    else:
        moved = values["sgd_step"] = lr * momentum
    return {**values, "after": w - moved}


def muon_update(w: Tensor, g: Tensor, state: Saved, group: dict[str, Any]) -> Values:
    """Muon (Jordan et al. 2024) with Nesterov momentum."""
    lr, mu, decay = group["lr"], group["momentum"], group["weight_decay"]
    before = state.get("momentum", torch.zeros_like(w))
    momentum = mu * before + (1 - mu) * g
    ahead = mu * momentum + (1 - mu) * g
    update = nearly_orthogonal(ahead).matrix
    moved = lr * max(1.0, w.size(0) / w.size(1)) ** 0.5 * update
    return {
        "weight": w,
        "gradient": g,
        "momentum_before": before,
        "muon_momentum": momentum,
        "muon_ahead": ahead,
        "muon_update": update,
        "muon_step": moved,
        **({"decay": lr * decay * w} if decay else {}),
        "after": w - moved - lr * decay * w,
    }


def formula_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Any:
    """The formula that this optimizer moves a group by; None where none stands here."""
    kind = type(optimizer)
    if kind is MuonAdamWOptimizer:
        return muon_update if group["algorithm"] == "muon" else adam_update
    unusual = group.get("amsgrad") or group.get("maximize") or group.get("dampening")
    if unusual or isinstance(group.get("lr"), Tensor):
        return None
    known = {torch.optim.AdamW: adam_update, torch.optim.Adam: adam_update}
    return {**known, torch.optim.SGD: sgd_update}.get(kind)
