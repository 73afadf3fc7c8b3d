"""Logits (T, V) and the ids that follow -> probabilities, losses, the gradient at the logits."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

TOP = 5  # tokens in a table of predictions
Spell = Callable[[int], str]


def softmax_of(scores: Tensor) -> Tensor:
    """exp(s) / sum of exp(s) over the last axis; the largest is taken off first, for float32."""
    powers = (scores - scores.max(-1, keepdim=True).values).exp()
    return powers / powers.sum(-1, keepdim=True)


def target_nats(probabilities: Tensor, targets: Tensor) -> Tensor:
    """-ln of the probability of each target: (N, V) and (N,) -> (N,)."""
    return -probabilities.gather(-1, targets[:, None])[:, 0].log()


def logit_gradient(probabilities: Tensor, targets: Tensor) -> Tensor:
    """p - onehot: the gradient of -ln p(target) at the logits, (N, V) and (N,) -> (N, V)."""
    onehot = torch.zeros_like(probabilities)
    onehot[torch.arange(len(targets)), targets] = 1.0
    return probabilities - onehot


def likeliest(probabilities: Tensor) -> list[int]:
    return probabilities.topk(min(TOP, len(probabilities))).indices.tolist()


def prediction(likely: Tensor, two: Sequence[int], spell: Spell) -> dict[str, Any]:
    """What the net thinks comes next at one place, and what does: of this id and the next one."""
    read, target = two
    return {
        "read": spell(read),
        "next": spell(target),
        "p": likely[target].item(),
        "loss": -likely[target].log().item(),
        "likeliest": [[spell(token), likely[token].item()] for token in likeliest(likely)],
    }


def gradient_at(probabilities: Tensor, target: int, count: int, spell: Spell) -> dict[str, Any]:
    """p - onehot at one place: the target, and the likeliest tokens beside it.

    The gradient of the mean loss is that over the count of places.
    """
    gradient = logit_gradient(probabilities[None], torch.tensor([target]))[0]
    rows = []
    for token in dict.fromkeys([target, *likeliest(probabilities)]):
        row = {"token": spell(token), "p": probabilities[token].item(), "onehot": token == target}
        slope = gradient[token].item()
        rows.append({**row, "gradient": slope, "of_the_mean": slope / count})
    return {"rows": rows, "sum": {"token": "sum over all", "gradient": gradient.sum().item()}}


def worked_example() -> dict[str, Any]:
    """Five made-up words after "The cat sat", of which "on" follows: the same code on them."""
    words = {"the": 0.15, "cat": 0.10, "sat": 0.05, "on": 0.20, "mat": 0.50}
    shares, target = torch.tensor([*words.values()]), [*words].index("on")
    loss = target_nats(shares[None], torch.tensor([target])).item()
    return {"loss": loss, **gradient_at(shares, target, 1, [*words].__getitem__)}
