"""A batch, and weights before and after a step -> figures that tell faults of data and updates."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from lmtemplate.record import Floats

SAMPLED = 64  # weights that are looked at in each parameter tensor

NEXT = "data/targets_next"  # share of targets that are the token after their input
UNCOUNTED = "data/targets_ignored"  # share of targets that carry no loss
LONGEST_RUN = "data/longest_run"  # longest stretch of one token, as a share of its sequence
TWICE = "data/sequences_repeated"  # share of sequences that the batch holds already
UNIGRAM = "data/unigram_loss"  # nats per target that carries loss, by frequencies of the corpus
LEFT = "optim/grad_left"  # logged, as 1, only where gradients were not set to zero
UPDATE = "optim/update"  # size of a step beside that of the weights (root mean squares)


def batch_figures(batch: Iterable[Tensor], nats: Floats | None) -> dict[str, float]:
    """Inputs and targets (B, T), and nats of each id (V,) -> the figures above, of this batch.

    Nothing for batches of another form, which another step may want.
    """
    parts = [*batch]
    if len(parts) != 2 or not all(isinstance(x, Tensor) and x.dim() == 2 for x in parts):
        return {}
    inputs, targets = (part.cpu().numpy() for part in parts)
    counted = targets >= 0
    both = counted[:, :-1] & counted[:, 1:]
    different = len({row.tobytes() for row in inputs})
    longest = [np.diff(np.flatnonzero(np.diff(row, prepend=-1, append=-1))).max() for row in inputs]
    figures = {
        UNCOUNTED: 1 - float(counted.mean()),
        TWICE: 1 - different / len(inputs),
        LONGEST_RUN: float(np.mean(longest)) / inputs.shape[1],
    }
    if both.any():
        figures[NEXT] = float((targets[:, :-1] == inputs[:, 1:])[both].mean())
    if nats is not None and counted.any():
        figures[UNIGRAM] = float(nats[targets[counted]].mean())
    return figures


def sample_weights(parameters: Iterable[Tensor]) -> Floats:
    """Some weights of each tensor, evenly spaced, one after the other."""
    strides = ((p.detach(), max(1, p.numel() // SAMPLED)) for p in parameters if p.numel())
    parts = [p.flatten()[::stride][:SAMPLED] for p, stride in strides]
    sampled: Floats = torch.cat(parts).double().cpu().numpy() if parts else np.zeros(0)
    return sampled


def update_size(before: Floats, after: Floats) -> float:
    """Root mean square of the change, as a share of that of the weights."""
    weights = float(np.sqrt(np.mean(before**2)))
    return float(np.sqrt(np.mean((after - before) ** 2))) / weights if weights else 0.0
