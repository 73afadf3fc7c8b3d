"""Summed nats, tokens, bytes and hits -> loss, perplexity, bits per byte, accuracy."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lmtemplate.errors import ConfigError

NAMES = ("loss", "perplexity", "accuracy", "bits_per_byte")  # what TokenMetrics computes


class TokenMetrics(Metric):
    """Token-weighted averages over all that it has been shown, equal for any batching and ranks.

    Sums are float64: a float32 sum drifts by 7e-5 nats over 1e10 tokens, under bf16 by far more.
    `token_bytes` (V,) are the bytes of text that each id stands for; empty where not known.
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
        self.token_bytes = torch.zeros(0, dtype=torch.long) if token_bytes is None else token_bytes

    def update(self, nats: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: summed nats, logits (B, T, V), targets (B, T), negative where ignored."""
        counted = targets >= 0
        self.nats += nats
        self.tokens += counted.sum()
        self.hits += ((logits.argmax(-1) == targets) & counted).sum()
        if self.token_bytes.numel():
            self.token_bytes = self.token_bytes.to(targets.device)
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


class Measures:
    """All that a validation measures: TokenMetrics, and the metrics that a config names.

    Metrics of `torchmetrics.text` see logits (B, T, V) and targets (B, T); all others the N tokens
    that count, as logits (N, V) and targets (N,); each is logged under its class's name in snake
    case. This is no part of the module tree: `.to(bf16)` would round the sums, and callbacks that
    average weights would average them.
    """

    def __init__(self, more: Sequence[Metric]) -> None:
        self.tokens = TokenMetrics()
        self.more = {snake_case(type(metric).__name__): metric for metric in more}
        if len(self.more) < len(more):
            raise ConfigError("model.metrics: two of one class have one name; subclass one of them")

    def update(self, nats: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: summed nats, logits (B, T, V), targets (B, T), negative where ignored."""
        # Apple's MPS has no float64
        device = torch.device("cpu") if logits.device.type == "mps" else logits.device
        nats, logits, targets = nats.to(device), logits.to(device), targets.to(device)
        self.tokens.to(device).update(nats, logits, targets)
        counted = targets >= 0
        for metric in self.more.values():
            if type(metric).__module__.startswith("torchmetrics.text"):
                metric.to(device).update(logits, targets)
            else:
                metric.to(device).update(logits[counted], targets[counted])

    def compute(self) -> dict[str, Tensor]:
        """Name -> value over all batches since the last time, on all ranks."""
        more = {name: metric.compute() for name, metric in self.more.items()}
        for name, value in more.items():
            if not torch.is_tensor(value) or value.numel() != 1:
                found = f"shape {tuple(value.shape)}" if torch.is_tensor(value) else type(value)
                raise ConfigError(f"model.metrics: {name} computes {found}, not one number")
        values = {**self.tokens.compute(), **more}
        for metric in (self.tokens, *self.more.values()):
            metric.reset()
        return values


def snake_case(name: str) -> str:
    """ "TopFiveAccuracy" -> "top_five_accuracy"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
