"""Tokens (B, T) -> logits (B, T, V): a GPT that in training also predicts the token after the next.

    lmtemplate fit --config configs/quickstart.yaml --config examples/several_tokens_ahead.yaml \\
        --run_dir runs/ahead --allow examples
"""

from typing import Any

from torch import Tensor, nn

from lmtemplate.loss import linear_cross_entropy
from lmtemplate.models import GPT


class GPTAhead(GPT):
    """GPT with a second head for the token at t + 2 (Gloeckle et al. 2024).

    `train/ahead` is that head's loss, weighted. Validation and generation use the first head alone.

    Args:
        vocab_size: V, the number of different token ids.
        block_size: the longest context, in tokens.
        n_layer: blocks.
        n_head: attention heads per block.
        n_embd: C, the width of the residual stream.
        ahead_weight: of the second head's loss.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 128,
        ahead_weight: float = 0.3,
    ) -> None:
        super().__init__(vocab_size, block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        self.ahead_weight = ahead_weight
        self.second_head = nn.Linear(n_embd, vocab_size, bias=False)
        nn.init.zeros_(self.second_head.weight)  # its first loss is ln V
        self.seen: Tensor | None = None

    def features(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        features = super().features(tokens, caches)
        self.seen = features if self.training else None
        return features

    def extra_objectives(self, targets: Tensor) -> dict[str, Tensor]:
        # the target at t is the token at t + 1, so the one at t + 1 is the token at t + 2
        loss = linear_cross_entropy(self.seen[:, :-1], self.second_head.weight, targets[:, 1:])
        return {"ahead": self.ahead_weight * loss.objective}

    def flops_per_token(self) -> float:
        return super().flops_per_token() + 6.0 * self.second_head.weight.numel()
