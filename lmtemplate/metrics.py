"""Summed nats, tokens, bytes and hits -> loss, perplexity, bits per byte, accuracy."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenMetrics(Metric):
    """Token-weighted averages over whatever it has been shown, equal for any batching and any
    ranks.

    Sums are float64: a float32 sum drifts by 7e-5 nats over 1e10 tokens, and under bf16 by far
    more.

    Args:
        token_bytes: (V,) bytes of text that each id stands for; empty where that is not known.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor
    hits: Tensor
    bytes: Tensor

    def __init__(self, token_bytes: Tensor | None = None) -> None:
        super().__init__()
        for name in ("nats", "tokens", "hits", "bytes"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        known = token_bytes if token_bytes is not None else torch.zeros(0, dtype=torch.long)
        self.register_buffer("token_bytes", known, persistent=False)
        self.token_bytes: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "TokenMetrics":
        def move_only(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor).to(tensor.dtype)  # `.to(bfloat16)` of the module is not for sums
            except TypeError:  # Apple's MPS has no float64
                return fn(tensor.float())

        super()._apply(move_only, *args, **kwargs)
        return self

    def update(self, nats: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: summed nats, logits (B, T, V), targets (B, T), negative where ignored."""
        counted = targets >= 0
        self.nats += nats
        self.tokens += counted.sum()
        self.hits += ((logits.argmax(-1) == targets) & counted).sum()
        if self.token_bytes.numel():
            self.bytes += (self.token_bytes[targets.clamp(min=0)] * counted).sum()

    def compute(self) -> dict[str, Tensor]:
        """loss (nats per token), perplexity, accuracy, and bits_per_byte where bytes are known.

        Bits per byte = nats / (ln 2 x bytes of the tokens predicted): comparable across tokenizers.
        """
        loss = self.nats / self.tokens
        values = {"loss": loss, "perplexity": loss.exp(), "accuracy": self.hits / self.tokens}
        if self.token_bytes.numel():
            values["bits_per_byte"] = self.nats / (math.log(2) * self.bytes)
        return values
