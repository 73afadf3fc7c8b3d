"""The contract that every architecture keeps: token ids in, logits out.

Axes, everywhere: B batch, T time, H heads, D head size, C width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """Squash logits smoothly into (-cap, cap), as Gemma 2 does; None leaves them alone."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class LanguageModel(nn.Module):
    """Base class of what `model.net` can name in a config.

    A subclass takes `vocab_size` and `block_size` as keywords (the data states them once), adds its
    own typed keywords with defaults, and defines `forward`; or `features` and `output_weight`, which
    a faster loss of less memory then reads in training instead of logits (`loss.training_loss`).

    Args:
        vocab_size: V, the number of different token ids.
        block_size: the longest context, in tokens.
    """

    logit_cap: float | None = None  # of `soft_cap`

    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, block_size

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        """Tokens (B, T) -> logits (B, T, V); the logits at t predict the token at t + 1.

        With `caches`, `tokens` are those that follow what the caches hold already.
        """
        return soft_cap(F.linear(self.features(tokens, caches), self.output_weight), self.logit_cap)

    def features(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        """Tokens (B, T) -> (B, T, C), of which the logits are a linear function."""
        raise NotImplementedError

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, C) of that function."""
        raise NotImplementedError

    def new_caches(self, batch_size: int) -> list[Any] | None:
        """Empty caches for generation, one per layer; None if this architecture keeps none."""
        return None

    def extra_objectives(self, targets: Tensor) -> dict[str, Tensor]:
        """Terms that training adds to the loss of the batch just forwarded, weighted already.

        Balance of experts, or the prediction of several tokens ahead; each is logged as
        `train/<name>`. Targets (B, T) are ids to predict; negative where there is none.
        """
        return {}

    def parameter_count(self) -> int:
        """Trainable parameters, tied ones counted once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def flops_per_token(self) -> float:
        """Training FLOPs per token, forward and backward: 6N (Kaplan et al. 2020, section 2.1).

        An architecture with attention overrides this, to add what N does not show.
        """
        return 6.0 * self.parameter_count()
