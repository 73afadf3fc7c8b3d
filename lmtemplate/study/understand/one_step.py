"""A net, the ids of a text, its optimizer -> one training step: each number by hand and by torch.

The batch of the step is this one text. Torch's autograd and optimizer are what the numbers computed
by hand are held against; `differences` in the result says how far they are apart.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.understand.backward import Clip, make_step
from lmtemplate.study.understand.compared import Comparisons
from lmtemplate.study.understand.forward import (
    Stage,
    logit_gradient,
    nats_of,
    outputs_of,
    softmax_of,
    stages_by_hand,
)

OTHER_NET = 1e-2  # difference of logits above which the formulas are those of another net
TOP = 5  # tokens in a table of predictions
ATTENDED = 12  # tokens whose attention is shown; they see no others
FIRST = 4  # numbers of a vector that are shown
Spell = Callable[[int], str]


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
    logits = stages[-1].value if stages else by_torch.detach()
    known = bool(stages) and Comparisons().hold("", logits, by_torch) < OTHER_NET
    if known:
        outputs["logits"] = by_torch
        rows = []
        for stage in stages:
            row = statistics(stage)
            if stage.module in outputs:
                row["difference"] = compared.hold(stage.name, stage.value, outputs[stage.module])
            rows.append(row)
        return rows, logits, by_torch, True
    modules = dict(net.named_modules())
    shown = [Stage(k, type(modules[k]).__name__, v) for k, v in outputs.items() if v.numel()]
    shown.append(Stage("logits", type(net).__name__, by_torch.detach()))
    return [statistics(stage) for stage in shown], by_torch.detach(), by_torch, False


def prediction(probabilities: Tensor, nats: Tensor, target: int, spell: Spell) -> dict[str, Any]:
    """What the net thinks comes next at one place, and what does."""
    likeliest = probabilities.topk(min(TOP, len(probabilities)))
    top = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    return {
        "next": spell(target),
        "probability": probabilities[target].item(),
        "loss": nats.item(),
        "top": [[spell(token), share] for token, share in top],
    }


def gradient_at(probabilities: Tensor, target: int, count: int, spell: Spell) -> dict[str, Any]:
    """p - onehot at one place: the target, and the likeliest tokens beside it."""
    gradient = logit_gradient(probabilities[None], torch.tensor([target]))[0]
    likeliest = probabilities.topk(min(TOP, len(probabilities))).indices.tolist()
    shown = [target, *(token for token in likeliest if token != target)]
    rows = [
        [spell(token), p.item(), float(token == target), slope.item(), slope.item() / count]
        for token, p, slope in zip(shown, probabilities[shown], gradient[shown], strict=True)
    ]
    return {"rows": rows, "sum": gradient.sum().item()}


def worked_example() -> dict[str, Any]:
    """Five made-up words after "The cat sat", of which "on" follows: the same code on them."""
    words = {"the": 0.15, "cat": 0.10, "sat": 0.05, "on": 0.20, "mat": 0.50}
    shares, target = torch.tensor([*words.values()]), [*words].index("on")
    spell = [*words].__getitem__
    loss = nats_of(shares[None], torch.tensor([target])).item()
    return {"next": "on", "loss": loss, **gradient_at(shares, target, 1, spell)}


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
    nats = nats_of(probabilities, targets)
    compared.hold("probabilities", probabilities, by_torch.softmax(-1))
    compared.hold("loss", nats.mean(), loss)
    assert by_torch.grad is not None
    gradient = logit_gradient(probabilities, targets) / count
    compared.hold("gradient at the logits", gradient, by_torch.grad)
    hardest = int(nats.argmax())
    places = zip(probabilities, nats, targets.tolist(), strict=True)
    result: dict[str, Any] = {
        "worked_example": worked_example(),
        "tokens": [spell(token) for token in ids],
        "by_hand": known,
        "vocab_size": logits.size(-1),
        "stages": stages,
        "predictions": [prediction(p, nat, target, spell) for p, nat, target in places],
        "loss": nats.mean().item(),
        "perplexity": math.exp(nats.mean().item()),
        "logit_gradient": {
            "place": hardest,
            "next": spell(ids[hardest + 1]),
            **gradient_at(probabilities[hardest], ids[hardest + 1], count, spell),
        },
    }
    step = (net, optimizer, (tokens, targets), clip)
    result |= make_step(*step, by_hand=known, compared=compared)
    return {**result, "differences": compared.differences, "largest_difference": compared.largest}
