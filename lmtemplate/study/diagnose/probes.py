"""A net and text -> what it does: whether it reads ahead, which token it predicts, its losses."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel

SHIFTS = (1, 0, 2, -1)  # tokens ahead of its input that a net may have learned to predict
AT_ONCE = 4  # sequences in one forward pass


@dataclass(frozen=True)
class Measured:
    """Losses of one text, in nats per token."""

    loss: float  # of the next token
    error: float  # standard deviation of that, as an estimate for the whole text; 0 for all of it
    shift: int  # number of tokens ahead that the net predicts best: 1 is the next token
    shift_loss: float  # and the loss of those


@torch.no_grad()
def change_from_later_tokens(net: LanguageModel, tokens: Tensor) -> tuple[float, float]:
    """(B, T) ids -> the largest change of logits when only later tokens change.

    And the largest logit. The change is 0 but for rounding, unless the net reads ahead. What it
    draws (dropout that is not switched off) is the same each time.
    """

    def logits(of: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return net(of)

    before, changes = logits(tokens), [0.0]
    for cut in sorted({1, tokens.size(1) // 2, tokens.size(1) - 1} - {0}):
        others = tokens.clone()
        others[:, cut:] = (tokens[:, cut:] + 1) % net.vocab_size
        change = (logits(others)[:, :cut] - before[:, :cut]).abs()
        changes.append(change.max().item())  # NaN stays NaN
    return float(np.max(changes)), before.abs().max().item()


@torch.no_grad()
def look_at_outputs(net: LanguageModel, tokens: Tensor) -> tuple[bool, bool]:
    """(B, T) ids -> whether outputs differ from call to call, and whether they are probabilities."""
    outputs, again = net(tokens).float(), net(tokens).float()
    is_probability = outputs.min() >= 0 and (outputs.sum(-1) - 1).abs().max() < 1e-3
    return not torch.equal(outputs, again), bool(is_probability)


@torch.no_grad()
def measure_losses(net: LanguageModel, inputs: Tensor, targets: Tensor, among: int) -> Measured:
    """(N, T) inputs and targets, of `among` such sequences -> the losses that validation has."""
    sums, counts = dict.fromkeys(SHIFTS, 0.0), dict.fromkeys(SHIFTS, 0)
    means = list[float]()
    for some, wanted in zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True):
        logits = net(some)
        ahead = {1: (logits, wanted), 0: (logits, some), 2: (logits[:, :-1], wanted[:, 1:])}
        ahead[-1] = (logits[:, 1:], some[:, :-1])
        for shift, (predicted, of) in ahead.items():
            if of.numel():
                loss = cross_entropy(predicted, of)
                sums[shift] += loss.nats.item()
                counts[shift] += int(loss.tokens)
        means += [cross_entropy(x, y).objective.item() for x, y in zip(logits, wanted, strict=True)]
    losses = {shift: sums[shift] / max(1, counts[shift]) for shift in SHIFTS if counts[shift]}
    best = min(losses, key=lambda shift: losses[shift])
    share = 1 - len(means) / among  # of the text that was not read
    error = float(np.std(means)) / math.sqrt(len(means)) * math.sqrt(max(0.0, share))
    return Measured(losses[1], error, best, losses[best])


def still_tensors(net: LanguageModel, before: dict[str, Tensor]) -> tuple[str, ...]:
    """Trainable tensors that have not moved from `before`, or were only scaled: by weight decay."""
    still = list[str]()
    for name, parameter in net.named_parameters():
        now, old = parameter.detach().cpu().double(), before.get(name)
        if old is None or old.shape != now.shape or not parameter.requires_grad:
            continue
        old = old.double()
        factor = float((now * old).sum() / old.square().sum()) if old.any() else 1.0
        scaled = factor * old if now.numel() > 1 and 0 < factor < 1 else old
        if torch.allclose(now, scaled, rtol=1e-6, atol=0):
            still.append(name)
    return tuple(still)
