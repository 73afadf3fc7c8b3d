"""Logits (N, V) and targets (N,) -> how often the target is among the k likeliest tokens.

Logged as `val/top_accuracy`, after the class's name; here early stopping watches it:

    lmtemplate fit --config configs/quickstart.yaml --config examples/metric.yaml \\
        --run_dir runs/top_accuracy --allow examples
"""

import torch
from torch import Tensor
from torchmetrics import Metric


class TopAccuracy(Metric):
    """Share of the tokens that are among the k likeliest.

    Args:
        k: how many guesses count.
    """

    full_state_update = False
    hits: Tensor
    tokens: Tensor

    def __init__(self, k: int = 5) -> None:
        super().__init__()
        self.k = k
        # torchmetrics adds these up over batches and GPUs, and sets them back after a validation
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        likeliest = logits.topk(self.k).indices  # (N, k)
        self.hits += (likeliest == targets[:, None]).sum()
        self.tokens += len(targets)

    def compute(self) -> Tensor:
        return self.hits / self.tokens
