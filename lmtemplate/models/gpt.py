"""Today's decoder: tokens (B, T) -> logits (B, T, V)."""

from typing import Any

import torch
from torch import Tensor, nn

from lmtemplate.models.base import LanguageModel
from lmtemplate.models.layers import (
    MLP,
    Activation,
    Attention,
    KVCache,
    Rotary,
    TokenCache,
    TokenShift,
    check_sizes,
    rms_norm,
    run_block,
)


class Block(nn.Module):
    """Attention, then MLP; each reads the normalised residual stream and adds to it."""

    def __init__(self, attention: Attention, mlp: MLP, dropout: float) -> None:
        super().__init__()
        self.attention, self.mlp, self.dropout = attention, mlp, nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(rms_norm(x), cache))
        return x + self.dropout(self.mlp(rms_norm(x)))


class GPT(LanguageModel):
    """Decoder with rotary positions, RMSNorm, QK-norm, ReLU^2 MLP and token shift; no biases.

    Args:
        vocab_size: V, the number of different token ids.
        block_size: the longest context, in tokens.
        n_layer: blocks.
        n_head: attention heads per block.
        n_embd: C, the width of the residual stream.
        n_kv_head: key and value heads per block; null for as many as n_head (no sharing).
        mlp: nonlinearity: relu2, swiglu or gelu.
        dropout: probability, on embeddings, attention weights and what each block adds.
        qk_norm: RMS-normalise queries and keys.
        rope_base: base of the rotary wavelengths.
        logit_cap: squash logits smoothly into (-cap, cap); null leaves them alone.
        tied: use the embedding as the output head too.
        token_shift: add to each embedding a learned share of the one before it.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping what it
            computed: less memory for about a third more time.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 128,
        n_kv_head: int | None = None,
        mlp: Activation = "relu2",
        dropout: float = 0.0,
        qk_norm: bool = True,
        rope_base: float = 10_000.0,
        logit_cap: float | None = 15.0,
        tied: bool = False,
        token_shift: bool = True,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(vocab_size, block_size)
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        check_sizes(n_embd, n_head, n_kv_head, n_layer, dropout)
        self.logit_cap = None if logit_cap is None else float(logit_cap)
        self.gradient_checkpointing = gradient_checkpointing
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.shift = TokenShift(n_embd) if token_shift else None
        self.dropout = nn.Dropout(dropout)
        rotary = Rotary(n_embd // n_head, block_size, rope_base)  # one table for all layers
        self.blocks = nn.ModuleList(
            Block(
                Attention(n_embd, n_head, n_kv_head, dropout, qk_norm=qk_norm, rotary=rotary),
                MLP(n_embd, mlp),
                dropout,
            )
            for _ in range(n_layer)
        )
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self._initialise()
        if tied:
            # a token's logit for itself begins at C x std, as long as the blocks add nothing
            nn.init.normal_(self.embedding.weight, std=1 / n_embd)
            self.head.weight = self.embedding.weight

    @torch.no_grad()
    def _initialise(self) -> None:
        """Fan-in scaled matrices; what a block adds, and the logits, begin at zero (Zhang et al.
        2019), so that the first loss is ln V and depth does not change the scale of the stream.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.blocks:
            nn.init.zeros_(block.attention.output.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(block.mlp.output.weight)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(self.head.weight)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def new_caches(self, batch_size: int) -> list[Any]:
        return [TokenCache(), *(KVCache(self.block_size) for _ in self.blocks)]

    def flops_per_token(self) -> float:
        """6N + 12 L C T, N without the embedding, which is only looked up (PaLM, appendix B)."""
        width = self.embedding.embedding_dim
        matrices = sum(p.numel() for p in self.blocks.parameters()) + self.head.weight.numel()
        return 6.0 * matrices + 12.0 * len(self.blocks) * width * self.block_size

    @property
    def output_weight(self) -> Tensor:
        return self.head.weight

    def features(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        first, *rest = caches or [None] * (len(self.blocks) + 1)
        x = rms_norm(self.embedding(tokens))  # (B, T, C)
        if self.shift is not None:
            x = self.shift(x, first)
        x = self.dropout(x)
        for block, cache in zip(self.blocks, rest, strict=True):
            x = run_block(block, x, cache, recompute=self.gradient_checkpointing)
        return rms_norm(x)
