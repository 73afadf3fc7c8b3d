"""Logits (B, T, V) and targets (B, T) -> a loss that says less of tokens that are easy already.

    lmtemplate fit --config configs/quickstart.yaml --config examples/focal_loss.yaml \\
        --run_dir runs/focal --allow examples
"""

import torch.nn.functional as F
from torch import Tensor

from lmtemplate.loss import IGNORED, Loss


class FocalLoss:
    """-(1 - p)^gamma ln p, with p the probability of the target (Lin et al. 2017, equation 4).

    Args:
        gamma: 0 for cross-entropy; the larger, the less an easy token counts.
    """

    def __init__(self, gamma: float = 1.0) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, targets: Tensor) -> Loss:
        nats = F.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )  # (B T,), 0 where ignored
        tokens = (targets != IGNORED).sum()
        focal = ((1 - (-nats).exp()) ** self.gamma * nats).sum()
        # what is minimised, and then what train/loss reports: plain nats, which all runs share
        return Loss(focal / tokens.clamp(min=1), nats.sum().detach(), tokens)
