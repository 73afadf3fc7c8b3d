"""A net, the ids of a text, its optimizer -> one training step: each number by hand and by torch.

The batch of the step is this one text. Numbers by hand are held against autograd and the optimizer,
gradients also against slopes that are measured: the loss in float64, where weights are moved a
little to both sides. `differences` in the result says how far apart they are.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.understand.forward import (
    Stage,
    Text,
    logit_gradient,
    outputs_of,
    softmax_of,
    stages_by_hand,
    target_nats,
    text_loss,
)
from lmtemplate.study.understand.update import (
    Clip,
    Tensors,
    clip_by_torch,
    clipped,
    norm_of,
    step_by_hand,
)

OTHER_NET = 1e-2  # difference of logits above which the formulas are those of another net
TOP = 5  # tokens in a table of predictions
ATTENDED = 12  # tokens whose attention is shown; they see no others
FIRST = 4  # numbers of a vector that are shown
NUDGE = 1e-5  # by which weights are moved, in float64, to measure a slope
Spell = Callable[[int], str]


class Comparisons:
    """Part -> the largest difference between its numbers by hand and by torch.

    As a share of the part's largest number where that is above 1: float32 keeps about 7 digits.
    """

    def __init__(self) -> None:
        self.differences: dict[str, float] = {}

    def hold(self, part: str, by_hand: Tensor, by_torch: Tensor) -> float:
        """Keep and return the difference; NaN where one of the numbers is NaN."""
        by_hand, by_torch = by_hand.detach().double(), by_torch.detach().double()
        found = (by_hand - by_torch).abs().max().item() / max(1.0, by_torch.abs().max().item())
        before = self.differences.get(part, 0.0)
        self.differences[part] = before if found <= before else found
        return found

    def result(self) -> dict[str, Any]:
        """The largest of all is NaN where one is NaN."""
        largest = max(self.differences.values(), key=lambda one: (one != one, one))
        return {"differences": self.differences, "largest_difference": largest}


def statistics(stage: Stage) -> dict[str, Any]:
    """What is shown of a stage: its shape, its spread, the first numbers of its last row."""
    value = stage.value.float()
    row: dict[str, Any] = {"name": stage.name, "formula": stage.formula, "shape": list(value.shape)}
    row |= {"mean": value.mean().item(), "deviation": value.std(unbiased=False).item()}
    row |= {"smallest": value.min().item(), "largest": value.max().item()}
    row["last"] = value.reshape(-1, value.shape[-1] if value.dim() else 1)[-1, :FIRST].tolist()
    if stage.name.endswith((" scores", " attention")):
        row["values"] = value[:, :ATTENDED, :ATTENDED].tolist()
    return row


def forward_part(
    net: LanguageModel, tokens: Tensor, compared: Comparisons
) -> tuple[list[dict[str, Any]], Tensor, Tensor, bool]:
    """The stages to show, the logits by hand and by torch, whether formulas stand here for the net.

    Where they do not, or are another net's by now, the stages are what its modules put out, and the
    logits by hand are its own.
    """
    outputs, by_torch = outputs_of(net, tokens)
    stages = stages_by_hand(net, tokens)
    if stages and Comparisons().hold("", stages[-1].value, by_torch) < OTHER_NET:
        outputs["logits"] = by_torch
        rows = [statistics(stage) for stage in stages]
        for row, stage in zip(rows, stages, strict=True):
            if stage.module in outputs:
                row["difference"] = compared.hold(stage.name, stage.value, outputs[stage.module])
        return rows, stages[-1].value, by_torch, True
    logits, modules = by_torch.detach(), dict(net.named_modules())
    shown = [Stage(k, type(modules[k]).__name__, v) for k, v in outputs.items() if v.numel()]
    shown.append(Stage("logits", type(net).__name__, logits))
    return [statistics(stage) for stage in shown], logits, by_torch, False


def likeliest(probabilities: Tensor) -> list[int]:
    return probabilities.topk(min(TOP, len(probabilities))).indices.tolist()


def prediction(probabilities: Tensor, nats: Tensor, target: int, spell: Spell) -> dict[str, Any]:
    """What the net thinks comes next at one place, and what does."""
    return {
        "next": spell(target),
        "probability": probabilities[target].item(),
        "loss": nats.item(),
        "top": [[spell(token), probabilities[token].item()] for token in likeliest(probabilities)],
    }


def gradient_at(probabilities: Tensor, target: int, count: int, spell: Spell) -> dict[str, Any]:
    """p - onehot at one place: the target, and the likeliest tokens beside it."""
    gradient = logit_gradient(probabilities[None], torch.tensor([target]))[0]
    shown = dict.fromkeys([target, *likeliest(probabilities)])
    rows = []
    for token in shown:
        p, slope = probabilities[token].item(), gradient[token].item()
        rows.append([spell(token), p, float(token == target), slope, slope / count])
    return {"next": spell(target), "rows": rows, "sum": gradient.sum().item()}


def worked_example() -> dict[str, Any]:
    """Five made-up words after "The cat sat", of which "on" follows: the same code on them."""
    words = {"the": 0.15, "cat": 0.10, "sat": 0.05, "on": 0.20, "mat": 0.50}
    shares, target = torch.tensor([*words.values()]), [*words].index("on")
    loss = target_nats(shares[None], torch.tensor([target])).item()
    return {"loss": loss, **gradient_at(shares, target, 1, [*words].__getitem__)}


class Slopes:
    """How fast the loss of a text rises, measured on a copy of the net in float64."""

    def __init__(
        self, net: LanguageModel, text: Text, by_hand: bool, compared: Comparisons
    ) -> None:
        self.net, self.text, self.by_hand = copy.deepcopy(net).double(), text, by_hand
        self.compared, self.weights = compared, dict(self.net.named_parameters())

    @torch.no_grad()
    def along(self, direction: Tensors, by_torch: Tensor) -> float:
        """(L(w + h d) - L(w - h d)) / 2h along d, held against autograd's.

        Not of a net without formulas: torch's own RMS norm is another function in float64, by 1e-5.
        """
        before = {name: self.weights[name].clone() for name in direction}
        losses = []
        for move in (NUDGE, -NUDGE):
            for name, part in direction.items():
                self.weights[name].copy_(before[name] + move * part.double())
            losses.append(text_loss(self.net, self.text, self.by_hand))
        for name, weights in before.items():
            self.weights[name].copy_(weights)
        slope = (losses[0] - losses[1]) / (2 * NUDGE)
        if self.by_hand:
            self.compared.hold("measured slopes", torch.tensor(slope), by_torch)
        return slope


def layer_norms(gradients: Tensors, slopes: Slopes) -> list[dict[str, Any]]:
    """Layer by layer the norm of its gradient, and the slope measured along that gradient."""
    layers: dict[str, Tensors] = {}
    for name, gradient in gradients.items():
        first, second, *_ = [*name.split("."), ""]
        layer = f"{first}.{second}" if second.isdecimal() else first  # "blocks.0"
        layers.setdefault(layer, {})[name] = gradient
    rows = []
    for layer, parts in layers.items():
        norm = norm_of(parts)
        by_torch = get_total_norm([part.double() for part in parts.values()])
        slopes.compared.hold("gradient norms", torch.tensor(norm), by_torch)
        along = {name: part.double() / (norm or 1.0) for name, part in parts.items()}
        row = {"layer": layer, "weights": sum(part.numel() for part in parts.values())}
        rows.append({**row, "norm": norm, "slope": slopes.along(along, by_torch)})
    return rows


def make_step(
    optimizer: torch.optim.Optimizer, clip: Clip | None, net: LanguageModel, slopes: Slopes
) -> dict[str, Any]:
    """The step that the net's gradients lead to; the net and the optimizer have made it then."""
    text, by_hand, compared = slopes.text, slopes.by_hand, slopes.compared
    weights = {name: p for name, p in net.named_parameters() if p.grad is not None}
    before = {name: p.detach().clone() for name, p in weights.items()}
    raw = {name: p.grad.clone() for name, p in weights.items() if p.grad is not None}
    loss, layers = text_loss(net, text, by_hand), layer_norms(raw, slopes)
    gradients = clipped(raw, clip)
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
        row["slope"] = slopes.along({name: one}, raw[name][place])
        row["gradient_before_clipping"] = raw[name][place].item()
        row["after_by_torch"] = weights[name][place].item()
    loss_after, by_torch = text_loss(net, text, by_hand), text_loss(net, text, by_hand=False)
    compared.hold("loss after the step", torch.tensor(loss_after), torch.tensor(by_torch))
    return {
        "gradient_norms": layers,
        "gradient_norm": norm_of(raw),
        "updates": rows,
        "after": {"loss_before": loss, "loss_after": loss_after, "foretold": foretold},
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
    tokens, targets = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
    compared, count = Comparisons(), len(tokens)
    optimizer.zero_grad()
    stages, logits, by_torch, known = forward_part(net, tokens, compared)
    by_torch.retain_grad()
    loss = cross_entropy(by_torch, targets).objective
    loss.backward()
    probabilities = softmax_of(logits.double())  # in float32, a p below 1e-45 would be 0
    nats = target_nats(probabilities, targets)
    compared.hold("probabilities", probabilities, by_torch.softmax(-1))
    compared.hold("loss", nats.mean(), loss)
    assert by_torch.grad is not None
    gradient = logit_gradient(probabilities, targets) / count
    compared.hold("gradient at the logits", gradient, by_torch.grad)
    hardest = int(nats.argmax())
    shown = gradient_at(probabilities[hardest], ids[hardest + 1], count, spell)
    places = zip(probabilities, nats, ids[1:], strict=True)
    return {
        "worked_example": worked_example(),
        "tokens": [spell(token) for token in ids],
        "by_hand": known,
        "vocab_size": logits.size(-1),
        "stages": stages,
        "predictions": [prediction(p, nat, target, spell) for p, nat, target in places],
        "loss": nats.mean().item(),
        "perplexity": math.exp(nats.mean().item()),
        "logit_gradient": {"place": hardest, **shown},
        **make_step(optimizer, clip, net, Slopes(net, (tokens, targets), known, compared)),
        **compared.result(),
    }
