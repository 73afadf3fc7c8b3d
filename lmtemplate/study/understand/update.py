"""Weights, gradients, an optimizer -> the update that follows, by formulas written out.

Each formula gives its intermediate values by name, in the order in which they are computed: tensors
of the weights' shape. An optimizer that no formula stands here for has none.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from lmtemplate.muon import MuonAdamWOptimizer

Tensors = dict[str, Tensor]
Settings = dict[str, Any]
Clip = tuple[float, str]  # trainer.gradient_clip_val, and "norm" or "value"

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
    "muon_update": "O: five times X = a X + (b XX' + c (XX')²) X, from ahead / its norm",
    "sgd_step": "step = lr · M",
    "nesterov_step": "step = lr · (g + mu · M)",
    "plain_step": "step = lr · g",
    "muon_step": "step = lr · sqrt(max(1, rows / columns)) · O",
    "decay": "decay = lr · wd · w",
    "decay_without_rate": "wd · w, as texts write that leave lr out",
    "after": "w = w - step - decay",
    "after_by_torch": "w, after the optimizer of torch",
    "slope": "gradient, measured: (L(w + h) - L(w - h)) / 2h",
    "gradient_before_clipping": "gradient, before clipping",
    "first_step": "were it the first step of a run (t = 1): step",
    "first_step_uncorrected": "and without bias correction",
    "ahead_smallest": "smallest singular value of ahead / its norm",
    "ahead_largest": "largest singular value of ahead / its norm",
    "smallest": "smallest singular value of O",
    "largest": "largest singular value of O",
}
SHOWN_SETTINGS = ("lr", "betas", "momentum", "weight_decay", "eps")
NEWTON_SCHULZ, ITERATIONS = (3.4445, -4.7750, 2.0315), 5  # a, b, c (Jordan et al. 2024)


def nearly_orthogonal(matrix: Tensor) -> Tensor:
    """U S V' -> U f(S) V' through the eigenvectors of the matrix times its transpose, in float64.

    Five times each singular value s becomes a s + b s^3 + c s^5 (Jordan et al. 2024), as by the
    iteration of `muon.py`, but computed in another way: the two can be held against each other.
    """
    x = matrix.double() / (matrix.double().norm() + 1e-7)
    wide = x if x.size(0) <= x.size(1) else x.mT
    squares, basis = torch.linalg.eigh(wide @ wide.mT)
    before = values = squares.clamp(min=0).sqrt()
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    factor = torch.where(before > 0, values / before, a**ITERATIONS)
    result = basis @ (factor[:, None] * (basis.mT @ wide))
    return (result if x.size(0) <= x.size(1) else result.mT).to(matrix.dtype)


def adam_formula(w: Tensor, g: Tensor, state: Settings, group: Settings) -> Tensors:
    """Adam and AdamW (Loshchilov and Hutter 2019, algorithm 2), with torch's signs and names."""
    (b1, b2), lr, eps = group["betas"], group["lr"], group["eps"]
    step, decay = int(state.get("step", 0)) + 1, group["weight_decay"]
    decoupled = group.get("decoupled_weight_decay", True)
    values = {"weight": w, "gradient": g}
    if decay and not decoupled:
        g = values["gradient_with_decay"] = g + decay * w
    values["first_before"] = m = state.get("exp_avg", torch.zeros_like(w))
    values["first"] = m = b1 * m + (1 - b1) * g
    values["second_before"] = v = state.get("exp_avg_sq", torch.zeros_like(w))
    values["second"] = v = b2 * v + (1 - b2) * g.square()
    values["first_corrected"] = first = m / (1 - b1**step)
    values["second_corrected"] = second = v / (1 - b2**step)
    values["step"] = moved = lr * first / (second.sqrt() + eps)
    values["step_uncorrected"] = lr * m / (v.sqrt() + eps)
    if decay and decoupled:
        values["decay"] = lr * decay * w
        values["decay_without_rate"] = decay * w
        moved = moved + values["decay"]
    return {**values, "after": w - moved}


def sgd_formula(w: Tensor, g: Tensor, state: Settings, group: Settings) -> Tensors:
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


def muon_formula(w: Tensor, g: Tensor, state: Settings, group: Settings) -> Tensors:
    """Muon (Jordan et al. 2024) with Nesterov momentum."""
    lr, mu, decay = group["lr"], group["momentum"], group["weight_decay"]
    values = {"weight": w, "gradient": g}
    values["momentum_before"] = before = state.get("momentum", torch.zeros_like(w))
    values["muon_momentum"] = momentum = mu * before + (1 - mu) * g
    values["muon_ahead"] = ahead = mu * momentum + (1 - mu) * g
    values["muon_update"] = nearly_orthogonal(ahead)
    scale = lr * max(1.0, w.size(0) / w.size(1)) ** 0.5
    values["muon_step"] = scale * values["muon_update"]
    if decay:
        values["decay"] = lr * decay * w
    return {**values, "after": w - values["muon_step"] - lr * decay * w}


def formula_of(optimizer: torch.optim.Optimizer, group: Settings) -> Any:
    """The formula that this optimizer moves a group by; None where none stands here."""
    unusual = any(group.get(key) for key in ("amsgrad", "maximize", "dampening"))
    if unusual or isinstance(group.get("lr"), Tensor):
        return None
    return {
        MuonAdamWOptimizer: muon_formula if group.get("algorithm") == "muon" else adam_formula,
        torch.optim.AdamW: adam_formula,
        torch.optim.Adam: adam_formula,
        torch.optim.SGD: sgd_formula,
    }.get(type(optimizer))


def norm_of(parts: Tensors) -> float:
    return math.sqrt(sum(part.double().square().sum().item() for part in parts.values()))


def clipped(gradients: Tensors, clip: Clip | None) -> Tensors:
    """The gradients that the optimizer gets."""
    limit, kind = clip or (math.inf, "norm")
    if kind == "value":
        return {name: part.clamp(-limit, limit) for name, part in gradients.items()}
    share = min(1.0, limit / (norm_of(gradients) + 1e-6))
    return {name: share * part for name, part in gradients.items()}


def clip_by_torch(parameters: list[nn.Parameter], clip: Clip | None) -> None:
    """The same in place, as training does it, with the norm in float64.

    In float32 torch's own norm of half a million numbers is wrong by 7e-5.
    """
    if clip and clip[1] == "value":
        clip_grad_value_(parameters, clip[0])
    elif clip:
        total = get_total_norm([p.grad.double() for p in parameters if p.grad is not None])
        clip_grads_with_norm_(parameters, clip[0], total)


def show_update(name: str, values: Tensors, group: Settings, state: Settings) -> Settings:
    """The weight with the largest gradient of a parameter: its way through the optimizer."""
    shape = values["weight"].shape
    place = tuple(int(n) for n in torch.unravel_index(values["gradient"].abs().argmax(), shape))
    settings = {key: group[key] for key in SHOWN_SETTINGS if key in group}
    numbers = {key: value[place].item() for key, value in values.items()}
    if "muon_ahead" in values:
        ahead, made = values["muon_ahead"].double(), values["muon_update"].double()
        ahead = ahead / (ahead.norm() or 1.0)
        spectra = [*map(torch.linalg.svdvals, (ahead, made))]
        ends = [spectrum[end].item() for spectrum in spectra for end in (-1, 0)]
        numbers |= zip(
            ("ahead_smallest", "ahead_largest", "smallest", "largest"), ends, strict=True
        )
    if "first_corrected" in values:  # the same gradient as the first of a run
        first = adam_formula(values["weight"], values["gradient"], {}, group)
        numbers["first_step"] = first["step"][place].item()
        numbers["first_step_uncorrected"] = first["step_uncorrected"][place].item()
        settings["t"] = int(state.get("step", 0)) + 1
    return {
        "parameter": name,
        "place": place,
        "shape": tuple(shape),
        "known": "after" in values,
        "settings": settings,
        "values": numbers,
    }


def step_by_hand(
    net: nn.Module, optimizer: torch.optim.Optimizer, gradients: Tensors
) -> tuple[Tensors, list[Settings]]:
    """Weights after the step, where there is a formula for them; one weight of each group."""
    names = {parameter: name for name, parameter in net.named_parameters()}
    after, rows = Tensors(), list[Settings]()
    for group in optimizer.param_groups:
        known = {names[p]: p for p in group["params"] if names[p] in gradients}
        chosen = max(known, key=lambda name: float(gradients[name].norm()), default=None)
        formula = formula_of(optimizer, group)
        for name, parameter in known.items():
            state = optimizer.state[parameter]
            values = {"weight": parameter.detach().clone(), "gradient": gradients[name]}
            if formula:
                values = formula(*values.values(), state, group)
                after[name] = values["after"]
            if name == chosen:
                rows.append(show_update(name, values, group, state))
    return after, rows
