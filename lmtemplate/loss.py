"""Logits (B, T, V) and targets (B, T) -> loss in nats."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lmtemplate.data import IGNORED

CHUNK_LOGITS = 2**27  # logits that are widened to float32 at once


class Loss(NamedTuple):
    """What one batch costs. `objective` is what is minimised, the others what is reported."""

    objective: Tensor  # mean per token; the cross-entropy and its regularisers
    nats: Tensor  # sum over tokens of the plain cross-entropy
    tokens: Tensor  # targets that count


class LossFunction(Protocol):
    """What `model.loss` can name in a config: logits (B, T, V) and targets (B, T) -> Loss."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Loss: ...


def _sums(logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    """(N, V) logits -> (2,) sums over tokens: objective, plain cross-entropy."""
    logits = logits.float()
    nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    objective = nats
    if label_smoothing or z_loss:
        counted = (targets != IGNORED).to(logits.dtype)
        normaliser = logits.logsumexp(-1)  # (N,)
        uniform = ((normaliser - logits.mean(-1)) * counted).sum()
        objective = (1 - label_smoothing) * nats + label_smoothing * uniform
        objective = objective + z_loss * (normaliser.square() * counted).sum()
    return F.pad(objective[None], (0, 1)) + F.pad(nats.detach()[None], (1, 0))


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Loss:
    """Token-weighted cross-entropy.

    Where float32 copies of all logits would be large (long batches, large vocabularies), the rows
    are taken in chunks, and each chunk is recomputed in the backward pass instead of being kept.

    Args:
        logits: (B, T, V), any floating type.
        targets: (B, T) token ids; IGNORED carries no loss.
        label_smoothing: share of probability spread evenly over the vocabulary (Szegedy et al.
            2016, section 7).
        z_loss: weight of (log Z)^2, which keeps logits from drifting (PaLM, section 5).
    """
    rows, wanted = logits.flatten(0, -2), targets.flatten()
    if rows.numel() <= CHUNK_LOGITS:
        sums = _sums(rows, wanted, label_smoothing, z_loss)
    else:
        size = max(1, CHUNK_LOGITS // rows.size(1))
        parts = zip(torch.split(rows, size), torch.split(wanted, size), strict=True)
        sums = torch.stack(
            [checkpoint(_sums, *p, label_smoothing, z_loss, use_reentrant=False) for p in parts]
        ).sum(0)
    tokens = (targets != IGNORED).sum()
    return Loss(sums[0] / tokens.clamp(min=1), sums[1].detach(), tokens)
