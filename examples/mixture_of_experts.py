"""Tokens (B, T) -> logits (B, T, V): a GPT whose MLPs are experts, one of which sees each token.

    lmtemplate fit --config configs/quickstart.yaml --config examples/mixture_of_experts.yaml \\
        --run_dir runs/experts --allow examples
"""

import torch
from torch import Tensor, nn

from lmtemplate.models import GPT
from lmtemplate.models.layers import MLP


class Experts(nn.Module):
    """Each token goes to the expert that the router finds most likely (Fedus et al. 2022).

    Args:
        n_embd: C.
        n_expert: E, number of MLPs.
    """

    def __init__(self, n_embd: int, n_expert: int) -> None:
        super().__init__()
        self.router = nn.Linear(n_embd, n_expert, bias=False)
        self.experts = nn.ModuleList(MLP(n_embd) for _ in range(n_expert))
        self.balance: Tensor | None = None  # of the batch just seen in training

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # (N, C)
        shares = self.router(rows).float().softmax(-1)  # (N, E)
        share, chosen = shares.max(-1)
        if self.training:
            # section 2.2, equation 4: 1 where experts get equal shares, E where one gets all
            counts = torch.bincount(chosen, minlength=len(self.experts))
            self.balance = len(self.experts) * (counts / len(rows)) @ shares.mean(0)
        output = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero().squeeze(1)
            seen = share[mine, None] * expert(rows[mine])
            output = output.index_add(0, mine, seen.to(output.dtype))
        return output.view_as(x)


class ExpertGPT(GPT):
    """GPT with experts; `train/balance` tells how evenly they are used.

    Args:
        vocab_size: V, the number of different token ids.
        block_size: the longest context, in tokens.
        n_layer: blocks.
        n_head: attention heads per block.
        n_embd: C, the width of the residual stream.
        n_expert: E, MLPs in each block.
        balance_weight: of the term that keeps the experts equally busy.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        *,
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 128,
        n_expert: int = 4,
        balance_weight: float = 0.01,
    ) -> None:
        super().__init__(vocab_size, block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        self.balance_weight = balance_weight
        for block in self.blocks:
            block.mlp = Experts(n_embd, n_expert)
            for expert in block.mlp.experts:
                nn.init.zeros_(expert.output.weight)

    def extra_objectives(self, targets: Tensor) -> dict[str, Tensor]:
        terms = torch.stack([block.mlp.balance for block in self.blocks])
        return {"balance": self.balance_weight * terms.mean()}

    def flops_per_token(self) -> float:
        """A token meets one expert of each block; the others cost nothing."""
        idle = [p for block in self.blocks for e in block.mlp.experts[1:] for p in e.parameters()]
        return super().flops_per_token() - 6.0 * sum(p.numel() for p in idle)
