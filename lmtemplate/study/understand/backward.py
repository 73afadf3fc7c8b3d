"""A net with its gradients, its optimizer -> slopes, norms, the update of all weights, the new loss.

Each gradient is held against a slope that is measured: the loss in float64, where weights are moved
a little to both sides. Each update is held against the optimizer's own.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_value_, clip_grads_with_norm_, get_total_norm

from lmtemplate.models.base import LanguageModel
from lmtemplate.study.understand.compared import Comparisons
from lmtemplate.study.understand.forward import Text, text_loss
from lmtemplate.study.understand.update import Values, adam_update, formula_of, nearly_orthogonal

NUDGE = 1e-5  # by which weights are moved, in float64, to measure a slope
Clip = tuple[float, str]  # trainer.gradient_clip_val, and "norm" or "value"
Row = dict[str, Any]


def layer_of(parameter: str) -> str:
    """ "blocks.0.mlp.up.weight" -> "blocks.0"."""
    parts = parameter.split(".")
    return ".".join(parts[: 2 if len(parts) > 1 and parts[1].isdecimal() else 1])


class Slopes:
    """The loss of a text in float64, where weights are moved a little.

    Args:
        net: is copied.
        text: what the loss is of.
        by_hand: whether forward.py has the formulas of this net.
    """

    def __init__(self, net: LanguageModel, text: Text, by_hand: bool) -> None:
        self.net, self.text, self.by_hand = copy.deepcopy(net).double(), text, by_hand
        self.weights = dict(self.net.named_parameters())

    @torch.no_grad()
    def along(self, direction: Values) -> float:
        """(L(w + h d) - L(w - h d)) / 2h: how fast the loss rises along d."""
        before = {name: self.weights[name].clone() for name in direction}
        losses = []
        for move in (NUDGE, -NUDGE):
            for name, part in direction.items():
                self.weights[name].copy_(before[name] + move * part.double())
            losses.append(text_loss(self.net, self.text, self.by_hand))
        for name, weights in before.items():
            self.weights[name].copy_(weights)
        return (losses[0] - losses[1]) / (2 * NUDGE)


def hold_slope(slopes: Slopes, direction: Values, by_torch: Tensor, compared: Comparisons) -> float:
    """The slope that is measured, held against autograd's.

    Not of a net without formulas: torch's own RMS norm is another function in float64, by 1e-5.
    """
    slope = slopes.along(direction)
    if slopes.by_hand:
        compared.hold("measured slopes", torch.tensor(slope), by_torch)
    return slope


def norms_of(gradients: Values, slopes: Slopes, compared: Comparisons) -> list[Row]:
    """Layer by layer the norm of its gradient, and the slope measured along that gradient."""
    layers: dict[str, Values] = {}
    for name, gradient in gradients.items():
        layers.setdefault(layer_of(name), {})[name] = gradient
    rows = []
    for layer, parts in layers.items():
        norm = math.sqrt(sum(part.double().square().sum().item() for part in parts.values()))
        along = {name: part.double() / (norm or 1.0) for name, part in parts.items()}
        by_torch = get_total_norm([part.double() for part in parts.values()])
        compared.hold("gradient norms", torch.tensor(norm), by_torch)
        row = {"layer": layer, "weights": sum(part.numel() for part in parts.values())}
        slope = hold_slope(slopes, along, by_torch, compared)
        rows.append({**row, "norm": norm, "slope": slope})
    return rows


def clipped(gradients: Values, clip: Clip | None) -> tuple[Values, float]:
    """The gradients that the optimizer gets, and the norm of all before clipping."""
    squares = (part.double().square().sum().item() for part in gradients.values())
    limit, kind = clip or (math.inf, "norm")
    norm = math.sqrt(sum(squares))
    if kind == "value":
        return {name: part.clamp(-limit, limit) for name, part in gradients.items()}, norm
    share = min(1.0, limit / (norm + 1e-6))
    return {name: share * part for name, part in gradients.items()}, norm


def clip_by_torch(parameters: list[torch.nn.Parameter], clip: Clip | None) -> None:
    """The same in place, as training does it, with the norm in float64.

    In float32 torch's own norm of half a million numbers is wrong by 7e-5.
    """
    if clip and clip[1] == "value":
        clip_grad_value_(parameters, clip[0])
    elif clip:
        total = get_total_norm([p.grad.double() for p in parameters if p.grad is not None])
        clip_grads_with_norm_(parameters, clip[0], total)


def show_update(values: Values, place: tuple[int, ...], group: Row, state: Row) -> Row:
    """The numbers of one weight on their way through the optimizer, and the settings used."""
    plain = {k: v for k, v in group.items() if isinstance(v, int | float | str | tuple | list)}
    plain.pop("params")
    row: Row = {"t": int(state.get("step", 0)) + 1} if "first_corrected" in values else {}
    row |= {"settings": plain, "values": {k: v[place].item() for k, v in values.items()}}
    if "muon_ahead" in values:
        spectrum = nearly_orthogonal(values["muon_ahead"])
        row["singular_values"] = [spectrum.before.tolist(), spectrum.after.tolist()]
    if "first_corrected" in values:  # the same gradient as the first of a run
        first = adam_update(values["weight"], values["gradient"], {}, group)
        row["first_step"] = [first[k][place].item() for k in ("step", "step_uncorrected")]
    return row


def step_by_hand(
    net: LanguageModel, optimizer: torch.optim.Optimizer, gradients: Values
) -> tuple[Values, list[Row]]:
    """Weights after the step, where update.py has a formula for them; one weight of each group.

    That is the one with the largest gradient, in the parameter with the largest gradient.
    """
    names, after, rows = {p: name for name, p in net.named_parameters()}, Values(), list[Row]()
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
                flat = gradients[name].abs().argmax()
                place = tuple(int(n) for n in torch.unravel_index(flat, parameter.shape))
                row = {"parameter": name, "place": place, "shape": tuple(parameter.shape)}
                rows.append(
                    {**row, "known": bool(formula), **show_update(values, place, group, state)}
                )
    return after, rows


def make_step(
    net: LanguageModel,
    optimizer: torch.optim.Optimizer,
    text: Text,
    clip: Clip | None,
    *,
    by_hand: bool,
    compared: Comparisons,
) -> Row:
    """The step that the net's gradients lead to; the net and the optimizer have made it then."""
    weights = {name: p for name, p in net.named_parameters() if p.grad is not None}
    before = {name: p.detach().clone() for name, p in weights.items()}
    raw = {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}
    slopes, loss = Slopes(net, text, by_hand), text_loss(net, text, by_hand)
    layers = norms_of(raw, slopes, compared)
    gradients, norm = clipped(raw, clip)
    clip_by_torch([*weights.values()], clip)
    for name, parameter in weights.items():
        assert parameter.grad is not None
        compared.hold("clipped gradients", gradients[name], parameter.grad)
    after, rows = step_by_hand(net, optimizer, gradients)
    optimizer.step()
    for name, value in after.items():
        compared.hold("weights after the step", value, weights[name])
    moved = {name: weights[name].detach() - before[name] for name in weights}
    foretold = sum((raw[k].double() * moved[k].double()).sum().item() for k in raw)
    for row in rows:
        name, place = row["parameter"], row["place"]
        one = torch.zeros_like(raw[name])
        one[place] = 1.0
        row["slope"] = hold_slope(slopes, {name: one}, raw[name][place], compared)
        row["gradient_before_clipping"] = raw[name][place].item()
        row["after_by_torch"] = weights[name][place].item()
    loss_after, by_torch = text_loss(net, text, by_hand), text_loss(net, text, by_hand=False)
    compared.hold("loss after the step", torch.tensor(loss_after), torch.tensor(by_torch))
    losses = {"loss_before": loss, "loss_after": loss_after, "foretold": foretold}
    return {"gradient_norms": layers, "gradient_norm": norm, "updates": rows, "after": losses}
