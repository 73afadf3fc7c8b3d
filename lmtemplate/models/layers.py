"""The bricks of a transformer: (B, T, C) -> (B, T, C)."""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmtemplate.errors import ConfigError

Activation = Literal["relu2", "swiglu", "gelu", "exact_gelu"]


def check_sizes(
    n_embd: int, n_head: int, n_kv_head: int, n_layer: int = 1, dropout: float = 0.0
) -> None:
    """Raises ConfigError, with the nearest sizes that work where heads do not divide evenly."""
    sizes = {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "n_kv_head": n_kv_head}
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"model.net.{name}={size} has to be 1 or more")
    if not 0 <= dropout < 1:
        raise ConfigError(f"model.net.dropout={dropout} has to be 0 or more, and below 1")
    if n_embd % n_head:
        below = n_embd // n_head * n_head
        nearest = ", ".join(str(size) for size in (below, below + n_head) if size)
        says = f"model.net.n_head={n_head}; nearest n_embd that is: {nearest}"
        raise ConfigError(f"model.net.n_embd={n_embd} is not divisible by {says}")
    if n_head % n_kv_head:
        says = f"model.net.n_kv_head={n_kv_head}"
        raise ConfigError(f"model.net.n_head={n_head} is not divisible by {says}")


class _ReluSquared(torch.autograd.Function):
    """relu(x)^2 with one product in the backward pass: half the time of autograd's own, on CPU."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.relu().square_()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        return gradient * x.relu() * 2


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021), without the cost of an autograd function where none is needed."""
    if not torch.is_grad_enabled():
        return x.relu().square_()
    return _ReluSquared.apply(x)  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) over the last axis: half the time of torch's own, on CPU."""

    @staticmethod
    def scale(x: Tensor) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.size(-1)
        return (squares + torch.finfo(x.dtype).eps).rsqrt()

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        scale = _RMSNorm.scale(x)
        context.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        x, scale = context.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted, for which scale depends on x
            scale = _RMSNorm.scale(x)
        normed = x * scale
        along = (gradient * normed).sum(-1, keepdim=True)
        return torch.addcmul(gradient, normed, along, value=-1 / x.size(-1)) * scale


def rms_norm(x: Tensor) -> Tensor:
    """Each vector of the last axis divided by its root mean square (Zhang and Sennrich 2019)."""
    if x.device.type != "cpu":
        return F.rms_norm(x, (x.size(-1),))
    if not torch.is_grad_enabled():  # an autograd function costs more than what a token needs here
        return x * _RMSNorm.scale(x)
    return _RMSNorm.apply(x)  # type: ignore[no-untyped-call]


class KVCache:
    """In generation, keys and values of the tokens so far, for one attention layer."""

    def __init__(self, block_size: int) -> None:
        self.block_size, self.length = block_size, 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, H, T, D) of new tokens; returns those of all tokens so far."""
        if self.length == 0:
            batch, heads, _, head_size = keys.shape
            self.keys = keys.new_zeros(batch, heads, self.block_size, head_size)
            self.values = torch.zeros_like(self.keys)
        end = self.length + keys.size(2)
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class TokenCache:
    """What `TokenShift` has to remember in generation: the newest token."""

    token: Tensor | None = None  # (B, 1, C)


class TokenShift(nn.Module):
    """Add to each token a learned share, zero at first, per channel, of the token before it.

    The token shift of RWKV (Peng et al. 2023, section 3.1), once, at the bottom: pairs of tokens
    are then known before the first attention.
    """

    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(n_embd))

    def forward(self, x: Tensor, cache: TokenCache | None = None) -> Tensor:
        before = torch.zeros_like(x[:, :1])
        if cache is not None:
            before = before if cache.token is None else cache.token
            cache.token = x[:, -1:]
        return x + self.share * torch.cat((before, x[:, :-1]), dim=1)


class Rotary(nn.Module):
    """Rotate pairs of query and key channels by an angle that grows with the position.

    RoFormer (Su et al. 2021), equation 34, with channel d paired with d + D/2 as in GPT-NeoX; D is
    even, and `base` is that of the geometric series of wavelengths.
    """

    def __init__(self, head_size: int, block_size: int, base: float) -> None:
        super().__init__()
        if head_size % 2:
            says = "rotary positions turn channel pairs; choose another model.net.n_embd"
            raise ConfigError(f"n_embd / n_head = {head_size} is odd, but {says}")
        frequencies = base ** (-torch.arange(0, head_size, 2) / head_size)
        angles = torch.outer(torch.arange(block_size), frequencies)  # (T, D/2)
        self.cosines = nn.Buffer(angles.cos().repeat(1, 2), persistent=False)  # (T, D)
        sines = torch.cat((-angles.sin(), angles.sin()), dim=1)
        self.sines = nn.Buffer(sines, persistent=False)

    def forward(self, x: Tensor, first_position: int = 0) -> Tensor:
        """x (B, H, T, D), whose first token stands at `first_position`."""
        here = slice(first_position, first_position + x.size(2))
        cosines, sines = self.cosines[here].to(x.dtype), self.sines[here].to(x.dtype)
        return torch.addcmul(x * cosines, x.roll(x.size(-1) // 2, -1), sines)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor, dropout: float) -> Tensor:
    """softmax(QK' / sqrt(D)) V where no token sees a later one; all (B, H, T, D).

    There may be more keys than queries: the queries then belong to the last positions.
    """
    new, known = queries.size(2), keys.size(2)
    mask = None
    if 1 < new < known:
        mask = torch.ones(new, known, dtype=torch.bool, device=queries.device).tril(known - new)
    attend = partial(
        F.scaled_dot_product_attention,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=1 < new == known,
    )
    narrow = torch.is_autocast_enabled("cpu") or queries.dtype.itemsize < 4
    if queries.device.type != "cpu" or not narrow:
        return attend(queries, keys, values)
    with torch.autocast("cpu", enabled=False):  # bf16 attention on CPU is up to 4 times slower
        wide = (part.float() for part in (queries, keys, values))
        return attend(*wide).to(queries.dtype)


class Attention(nn.Module):
    """Causal self-attention of H query heads, with D = C / H channels each.

    Optional are: fewer heads of keys and values, each shared by H / n_kv_head query heads (Ainslie
    et al. 2023), queries and keys that are RMS-normalised per head (Henry et al. 2020; Dehghani et
    al. 2023), and rotary positions.
    """

    def __init__(
        self,
        n_embd: int,
        n_head: int,
        n_kv_head: int,
        dropout: float,
        *,
        bias: bool = False,
        qk_norm: bool = False,
        rotary: Rotary | None = None,
    ) -> None:
        super().__init__()
        check_sizes(n_embd, n_head, n_kv_head)
        self.head_size, self.shared_by = n_embd // n_head, n_head // n_kv_head
        self.dropout, self.qk_norm, self.rotary = dropout, qk_norm, rotary
        self.query = nn.Linear(n_embd, n_embd, bias=bias)
        self.key = nn.Linear(n_embd, n_kv_head * self.head_size, bias=bias)
        self.value = nn.Linear(n_embd, n_kv_head * self.head_size, bias=bias)
        self.output = nn.Linear(n_embd, n_embd, bias=bias)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_size)).transpose(1, 2)  # (B, H, T, D)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        queries, keys, values = (
            self._heads(part(x)) for part in (self.query, self.key, self.value)
        )
        if self.qk_norm or self.rotary:  # of both as one tensor: half as many small operations
            both = torch.cat((queries, keys), dim=1)
            if self.qk_norm:
                both = rms_norm(both)
            if self.rotary is not None:
                both = self.rotary(both, 0 if cache is None else cache.length)
            queries, keys = both.split((queries.size(1), keys.size(1)), dim=1)
        if cache is not None:
            keys, values = cache.extend(keys, values)
        if self.shared_by > 1:
            keys = keys.repeat_interleave(self.shared_by, dim=1)
            values = values.repeat_interleave(self.shared_by, dim=1)
        dropout = self.dropout if self.training else 0.0
        attended = causal_attention(queries, keys, values, dropout)
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    """Two matrices with a nonlinearity between them (three for SwiGLU), of about 8 C^2 weights.

    It is "relu2" (So et al. 2021), "gelu" in GPT-2's tanh form, "exact_gelu" by erf (half the time
    of the tanh form, on CPU), or "swiglu" (Shazeer 2020), whose hidden layer is a third narrower.
    """

    def __init__(
        self, n_embd: int, activation: Activation = "relu2", *, bias: bool = False
    ) -> None:
        super().__init__()
        self.activation = activation
        hidden = 4 * n_embd if activation != "swiglu" else 8 * n_embd // 3 // 8 * 8
        self.up = nn.Linear(n_embd, hidden, bias=bias)
        self.gate = nn.Linear(n_embd, hidden, bias=bias) if activation == "swiglu" else None
        self.output = nn.Linear(hidden, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.gate is not None:
            hidden = F.silu(self.gate(x)) * hidden
        elif self.activation != "relu2":
            exact = self.activation == "exact_gelu"
            hidden = F.gelu(hidden, approximate="none" if exact else "tanh")
        else:
            hidden = relu_squared(hidden)
        return self.output(hidden)


def run_block(block: nn.Module, x: Tensor, cache: Any, *, recompute: bool) -> Tensor:
    """One block of the stack, (B, T, C) -> (B, T, C); cache is this layer's, in generation.

    With `recompute` only x is kept for the backward pass (Chen et al. 2016, section 3).
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, x, cache, use_reentrant=False)
    return block(x, cache)
