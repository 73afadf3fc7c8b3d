"""GPT-2 to the letter (Radford et al. 2019): tokens (B, T) -> logits (B, T, V)."""

from typing import Any

import torch
from torch import Tensor, nn

from lmtemplate.models.base import LanguageModel
from lmtemplate.models.layers import MLP, Activation, Attention, KVCache, check_sizes, run_block


class GPT2Block(nn.Module):
    """Pre-norm attention and MLP, with LayerNorm."""

    def __init__(
        self, n_embd: int, n_head: int, dropout: float, mlp: Activation, *, bias: bool
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(n_embd, bias=bias)
        self.attention = Attention(n_embd, n_head, n_head, dropout, bias=bias)
        self.norm_2 = nn.LayerNorm(n_embd, bias=bias)
        self.mlp = MLP(n_embd, mlp, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), cache))
        return x + self.dropout(self.mlp(self.norm_2(x)))


class GPT2(LanguageModel):
    """Decoder with learned positions, LayerNorm, GELU, biases, and the embedding as output head.

    Args:
        vocab_size: V, the number of different token ids.
        block_size: the longest context, in tokens.
        n_layer: blocks.
        n_head: attention heads per block.
        n_embd: C, the width of the residual stream.
        mlp: nonlinearity; GPT-2's is gelu, nanoGPT's exact_gelu.
        bias: of norms and projections; nanoGPT trains without.
        dropout: probability, on embeddings, attention weights and what each block adds.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping what it
            computed: less memory for about a third more time.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int = 12,
        n_head: int = 12,
        n_embd: int = 768,
        mlp: Activation = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(vocab_size, block_size)
        check_sizes(n_embd, n_head, n_head, n_layer, dropout)
        self.gradient_checkpointing = gradient_checkpointing
        self.embedding = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            GPT2Block(n_embd, n_head, dropout, mlp, bias=bias) for _ in range(n_layer)
        )
        self.norm = nn.LayerNorm(n_embd, bias=bias)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Normal with standard deviation 0.02; what a block adds is scaled by 1 / sqrt(2 L)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                depth = (2 * len(self.blocks)) ** 0.5 if name.endswith("output.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 / depth)

    def new_caches(self, batch_size: int) -> list[KVCache]:
        return [KVCache(self.block_size) for _ in self.blocks]

    def flops_per_token(self) -> float:
        """6N + 12 L C T, N without the positions, which are only looked up (PaLM, appendix B)."""
        multiplied = self.parameter_count() - self.positions.weight.numel()
        width = self.embedding.embedding_dim
        return 6.0 * multiplied + 12.0 * len(self.blocks) * width * self.block_size

    @property
    def output_weight(self) -> Tensor:
        return self.embedding.weight

    def features(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        first = caches[0].length if caches else 0
        positions = torch.arange(first, first + tokens.size(1), device=tokens.device)
        x = self.dropout(self.embedding(tokens) + self.positions(positions))  # (B, T, C)
        for block, cache in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = run_block(block, x, cache, recompute=self.gradient_checkpointing)
        return self.norm(x)
