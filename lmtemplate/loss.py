"""Logits (B, T, V), or what the output head reads, and targets (B, T) -> loss in nats."""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lmtemplate.data import IGNORED
from lmtemplate.errors import ConfigError
from lmtemplate.models.base import LanguageModel

CHUNK_LOGITS = 2**27  # logits that are widened to float32 at once
CHUNK_LOGITS_ON_CPU = 2**19  # 2 MiB: what a core's cache holds


class Loss(NamedTuple):
    """What one batch costs. `objective` is what is minimised, the others what is reported."""

    objective: Tensor  # mean per token; the cross-entropy and its regularisers
    nats: Tensor  # sum over tokens of the plain cross-entropy
    tokens: Tensor  # targets that count


class LossFunction(Protocol):
    """What `model.loss` can name in a config: logits (B, T, V) and targets (B, T) -> Loss.

    jsonargparse knows it by the types of `__call__`, which have to be written as here.
    """

    def __call__(self, logits: Tensor, targets: Tensor) -> Loss: ...


def _sums(logits: Tensor, targets: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    """(N, V) logits -> (2,) sums over tokens: objective, plain cross-entropy."""
    logits = logits.float()
    nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    objective = nats
    if label_smoothing or z_loss:
        counted = (targets != IGNORED).to(logits.dtype)
        normaliser = logits.logsumexp(-1)  # (N,)
        uniform = ((normaliser - logits.mean(-1)) * counted).sum()
        objective = (1 - label_smoothing) * nats + label_smoothing * uniform
        objective = objective + z_loss * (normaliser.square() * counted).sum()
    return F.pad(objective[None], (0, 1)) + F.pad(nats.detach()[None], (1, 0))


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Loss:
    """Token-weighted cross-entropy.

    Where float32 copies of all logits would be large (long batches, large vocabularies), the rows
    are taken in chunks, and each chunk is recomputed in the backward pass instead of being kept.

    Args:
        logits: (B, T, V), any floating type.
        targets: (B, T) token ids; IGNORED carries no loss.
        label_smoothing: share of probability spread evenly over the vocabulary (Szegedy et al.
            2016, section 7).
        z_loss: weight of (log Z)^2, which keeps logits from drifting (PaLM, section 5).
    """
    if logits.shape[:-1] != targets.shape:
        found, wanted = tuple(logits.shape), f"({', '.join(map(str, targets.shape))}, V)"
        raise ConfigError(f"logits (of model.net's forward) have shape {found}, not {wanted}")
    rows, ids = logits.flatten(0, -2), targets.flatten()
    if rows.numel() <= CHUNK_LOGITS:
        sums = _sums(rows, ids, label_smoothing, z_loss)
    else:
        size = max(1, CHUNK_LOGITS // rows.size(1))
        parts = zip(torch.split(rows, size), torch.split(ids, size), strict=True)
        sums = torch.stack(
            [checkpoint(_sums, *p, label_smoothing, z_loss, use_reentrant=False) for p in parts]
        ).sum(0)
    tokens = (targets != IGNORED).sum()
    return Loss(sums[0] / tokens.clamp(min=1), sums[1].detach(), tokens)


class _LinearCrossEntropy(torch.autograd.Function):
    """Features (N, C), weight (V, C), targets (N,) -> their cross-entropy, summed over tokens.

    Both gradients are computed in the forward pass, chunk by chunk (as Liger Kernel does, Hsu et
    al. 2024), and only they are kept: no chunk is computed twice, and its logits never leave a CPU's
    cache, where loss and head at V = 4,096 take half the time of autograd over all logits.
    """

    @staticmethod
    def forward(
        context: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        settings: tuple[torch.dtype, float | None, int],
    ) -> Tensor:
        dtype, cap, size = settings
        wide = torch.promote_types(dtype, torch.float32)
        matrix, nats = weight.to(dtype), torch.zeros((), dtype=wide, device=weight.device)
        for_features, for_weight = [], torch.zeros_like(weight, dtype=wide)
        for x, wanted in zip(features.split(size), targets.split(size), strict=True):
            counted = (wanted != IGNORED)[:, None]
            index = wanted.clamp(min=0)[:, None]
            x = x.to(dtype) * counted  # so that other rows add nothing to the weight's gradient
            logits = (x @ matrix.mT).to(wide)
            if cap:
                squashed = (logits / cap).tanh_()
                logits = squashed * cap
            gradient = logits.softmax(-1)
            # the likeliest token has a probability of 1/V or more: its logarithm is safe
            normaliser = logits.amax(-1, True) - gradient.amax(-1, True).log()
            nats += ((normaliser - logits.gather(-1, index)) * counted).sum()
            of_target = gradient.gather(-1, index) - 1
            gradient.scatter_(-1, index, of_target)  # scatter_add_ is random in rounding on a GPU
            if cap:
                gradient.addcmul_(gradient, squashed.square_(), value=-1)
            gradient = gradient.to(dtype)
            for_features.append((gradient @ matrix) * counted)
            for_weight += gradient.mT @ x
        of_features = torch.cat(for_features).to(features.dtype)
        context.save_for_backward(of_features, for_weight.to(weight.dtype))
        return nats

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Any:
        of_features, of_weight = context.saved_tensors
        return of_features * gradient, of_weight * gradient, None, None


def linear_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None
) -> Loss:
    """`cross_entropy` of the logits soft_cap(features weight', cap), which never exist at once.

    Args:
        features: (B, T, C).
        weight: (V, C); both are multiplied in the type of autocast, where that is on.
        targets: (B, T) token ids; IGNORED carries no loss.
        cap: of `soft_cap`; None for none.
    """
    kind = features.device.type
    mixed = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if mixed else features.dtype
    size = max(1, (CHUNK_LOGITS_ON_CPU if kind == "cpu" else CHUNK_LOGITS) // weight.size(0))
    with torch.autocast(kind, enabled=False):
        rows = features.flatten(0, -2), weight, targets.flatten()
        nats = _LinearCrossEntropy.apply(*rows, (dtype, cap, size))  # type: ignore[no-untyped-call]
    tokens = (targets != IGNORED).sum()
    return Loss(nats / tokens.clamp(min=1), nats.detach(), tokens)


def training_loss(
    net: LanguageModel,
    inputs: Tensor,
    targets: Tensor,
    loss: LossFunction | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    """What a batch (B, T) costs: by `loss`, or by cross-entropy with both regularisers."""
    if loss is not None:
        own = loss(net(inputs), targets)
        if not isinstance(own, Loss):
            raise ConfigError(
                f"model.loss returns {type(own).__name__}, not Loss(objective, nats, tokens)"
            )
        return own
    kind, own_forward = inputs.device.type, type(net).forward is not LanguageModel.forward
    # float16 gradients have to be scaled first
    narrow = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    if own_forward or label_smoothing or z_loss or narrow:
        return cross_entropy(net(inputs), targets, label_smoothing, z_loss)
    return linear_cross_entropy(net.features(inputs), net.output_weight, targets, net.logit_cap)
