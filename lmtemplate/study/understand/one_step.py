"""A net, the ids of a text, its optimizer -> one training step: each number by hand and by torch.

The batch of the step is this one text. Numbers by hand are held against autograd and the optimizer,
gradients also against slopes that are measured: the loss in float64, where weights are moved a
little to both sides. `differences` in the result says how far apart they are.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.understand import forward, predictions
from lmtemplate.study.understand.forward import Stage, Text, copy_of, text_loss
from lmtemplate.study.understand.inside import parameters_by_part
from lmtemplate.study.understand.predictions import Spell
from lmtemplate.study.understand.update import (
    Clip,
    Tensors,
    clip_by_torch,
    clipped,
    norm_of,
    step_by_hand,
)

OTHER_NET = 1e-2  # difference of logits above which the formulas are those of another net
ATTENDED = 12  # tokens whose attention is shown; they see no others
LOOKS = (" scores", " weights")  # ends of the names of such stages
FIRST = 3  # numbers of a vector that are shown
NUDGE = 1e-5  # by which weights are moved, in float64, to measure a slope


class Comparisons(dict[str, float]):
    """Part -> the largest difference between its numbers by hand and by torch.

    As a share of the part's largest number where that is above 1: float32 keeps about 7 digits.
    """

    def hold(self, part: str, by_hand: Tensor | float, by_torch: Tensor | float) -> float:
        """Keep and return the difference; NaN where one of the numbers is NaN."""
        mine, other = (torch.as_tensor(x).detach().double() for x in (by_hand, by_torch))
        found = ((mine - other).abs().max() / other.abs().max().clamp(min=1)).item()
        self[part] = float(np.maximum(self.get(part, 0.0), found))
        return found

    def result(self) -> dict[str, Any]:
        return {"differences": dict(self), "largest_difference": float(np.max([*self.values()]))}


def statistics(stage: Stage) -> dict[str, Any]:
    """What is shown of a stage: its shape, its spread, the first numbers of its last row."""
    value = stage.value.float()
    last = value.reshape(-1, value.shape[-1] if value.dim() else 1)[-1, :FIRST]
    return {
        "name": stage.name,
        "formula": stage.formula,
        "shape": " × ".join(map(str, value.shape)),
        "mean": value.mean().item(),
        "deviation": value.std(unbiased=False).item(),
        "last_row_begins": last.tolist(),
    }


def forward_part(
    net: LanguageModel, tokens: Tensor, compared: Comparisons
) -> tuple[dict[str, Any], Tensor, Tensor, bool]:
    """What to show of it, the logits by hand and by torch, whether formulas stand here for the net.

    Where they do not, the stages are what its modules put out, and so are the logits by hand.
    """
    modules, by_torch = forward.stages_of_modules(net, tokens)
    stages = forward.stages_by_hand(net, tokens)
    outputs = {stage.name: stage.value for stage in modules}
    # formulas that give other logits are those of another net by now
    by_hand = bool(stages) and Comparisons().hold("", stages[-1].value, by_torch) < OTHER_NET
    stages = stages if by_hand else modules
    rows = [statistics(stage) for stage in stages]
    for row, stage in zip(rows, stages, strict=True):
        if by_hand and stage.name in outputs:
            row["difference"] = compared.hold(stage.name, stage.value, outputs[stage.name])
    looks = {stage.name: stage.value for stage in stages if stage.name.endswith(LOOKS)}
    shown = {name: value[:, :ATTENDED, :ATTENDED].tolist() for name, value in looks.items()}
    return {"stages": rows, "attention": shown}, stages[-1].value, by_torch, by_hand


@torch.no_grad()
def slope_along(exact: LanguageModel, text: Text, direction: Tensors) -> float:
    """(L(w + h d) - L(w - h d)) / 2h along d, measured on a net in float64 that has formulas.

    Torch's own RMS norm would be another function in float64, by 1e-5.
    """
    weights = dict(exact.named_parameters())
    before = {name: weights[name].clone() for name in direction}

    def loss_at(move: float) -> float:
        for name, part in direction.items():
            weights[name].copy_(before[name] + move * part.double())
        return text_loss(exact, text, by_hand=True)

    slope = (loss_at(NUDGE) - loss_at(-NUDGE)) / (2 * NUDGE)
    loss_at(0.0)  # which puts the weights back
    return slope


def part_norms(
    net: LanguageModel, gradients: Tensors, compared: Comparisons
) -> tuple[list[dict[str, Any]], list[Tensors]]:
    """Layer by layer the norm of its gradient, and the direction of the gradient, of length 1."""
    rows, directions = list[dict[str, Any]](), list[Tensors]()
    for part, names in parameters_by_part(net).items():
        inside = {name: gradients[name].double() for name in names if name in gradients}
        norm, size = norm_of(inside), sum(gradient.numel() for gradient in inside.values())
        compared.hold("gradient norms", norm, get_total_norm([*inside.values()]))
        rows.append({"layer": part, "weights": size, "norm": norm})
        directions.append({name: gradient / (norm or 1.0) for name, gradient in inside.items()})
    return rows, directions


def make_step(
    optimizer: torch.optim.Optimizer,
    clip: Clip | None,
    net: LanguageModel,
    text: Text,
    compared: Comparisons,
    by_hand: bool,
) -> dict[str, Any]:
    """The step that the net's gradients lead to; the net and the optimizer have made it then."""
    weights = {name: p for name, p in net.named_parameters() if p.grad is not None}
    before = {name: p.detach().clone() for name, p in weights.items()}
    raw = {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}
    exact, loss = copy_of(net).double(), text_loss(net, text, by_hand)
    norms, directions = part_norms(net, raw, compared)
    gradients = clipped(raw, clip)
    clip_by_torch([*weights.values()], clip)
    for name, parameter in weights.items():
        assert parameter.grad is not None
        compared.hold("clipped gradients", gradients[name], parameter.grad)
    after, updates = step_by_hand(net, optimizer, gradients)
    optimizer.step()
    for name, value in after.items():
        compared.hold("weights after the step", value, weights[name])
    slopes: list[tuple[dict[str, Any], Tensors, float]] = [
        (row, direction, row["norm"]) for row, direction in zip(norms, directions, strict=True)
    ]
    for update in updates:
        name, place = update["parameter"], update["place"]
        numbers, one = update["values"], torch.zeros_like(raw[name])
        one[place] = 1.0
        numbers["gradient_before_clipping"] = raw[name][place].item()
        numbers["after_by_torch"] = weights[name][place].item()
        slopes.append((numbers, {name: one}, numbers["gradient_before_clipping"]))
    for row, direction, by_torch in slopes if by_hand else ():
        row["slope"] = slope_along(exact, text, direction)
        compared.hold("measured slopes", row["slope"], by_torch)
    loss_after = text_loss(net, text, by_hand)
    compared.hold("loss after the step", loss_after, text_loss(net, text, by_hand=False))
    foretold = sum((raw[k].double() * (weights[k] - before[k])).sum().item() for k in raw)
    losses = {"loss_before": loss, "loss_after": loss_after, "change": loss_after - loss}
    return {
        "gradient_norms": norms,
        "gradient_norm": norm_of(raw),
        "updates": updates,
        "after": {**losses, "foretold": foretold},
    }


def explain_step(
    net: LanguageModel,
    ids: Sequence[int],
    optimizer: torch.optim.Optimizer,
    spell: Spell,
    clip: Clip | None = None,
) -> dict[str, Any]:
    """One training step on T + 1 ids, in plain numbers. The net and the optimizer make it.

    Args:
        net: in evaluation mode, on the CPU, in float32.
        ids: a text; each id but the first is predicted from those before it.
        optimizer: over the net's parameters, in the state from which it steps.
        spell: the text of one id.
        clip: gradient_clip_val and its algorithm, "norm" or "value"; None for neither.
    """
    tokens, targets, compared = torch.tensor(ids[:-1]), torch.tensor(ids[1:]), Comparisons()
    count = len(tokens)
    optimizer.zero_grad()
    shown, logits, by_torch, by_hand = forward_part(net, tokens, compared)
    by_torch.retain_grad()
    loss = cross_entropy(by_torch, targets).objective
    loss.backward()
    probabilities = predictions.softmax_of(logits.double())  # float32 has no p below 1e-45
    nats = predictions.target_nats(probabilities, targets)
    compared.hold("probabilities", probabilities, by_torch.softmax(-1))
    compared.hold("loss", nats.mean(), loss)
    assert by_torch.grad is not None
    gradient = predictions.logit_gradient(probabilities, targets) / count
    compared.hold("gradient at the logits", gradient, by_torch.grad)
    hardest = int(nats.argmax())
    return {
        "worked_example": predictions.worked_example(),
        "tokens": [spell(token) for token in ids],
        "by_hand": by_hand,
        "vocab_size": probabilities.size(-1),
        **shown,
        "predictions": [
            predictions.prediction(p, ids[n : n + 2], spell) for n, p in enumerate(probabilities)
        ],
        "loss": nats.mean().item(),
        "perplexity": math.exp(nats.mean().item()),
        "logit_gradient": {
            "place": hardest,
            **predictions.gradient_at(probabilities[hardest], ids[hardest + 1], count, spell),
        },
        **make_step(optimizer, clip, net, (tokens, targets), compared, by_hand),
        **compared.result(),
    }
