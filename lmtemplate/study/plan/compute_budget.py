"""Any of parameters, tokens and FLOPs -> the others: 6 N D, and 20 tokens per parameter."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lmtemplate.data.shards import Shards, read_index
from lmtemplate.errors import ConfigError
from lmtemplate.hardware import PEAK_TFLOPS, auto_precision, device_name, peak_flops
from lmtemplate.models.gpt import GPT
from lmtemplate.optimizers import MuonAdamW
from lmtemplate.run_length import measure_step

OPTIMAL_RATIO = 20.0  # Hoffmann et al. 2022, table 3
EPOCHS = 4.0  # over one text, before new text is clearly better: Muennighoff et al. 2023


def short(number: float) -> str:
    """7e9 -> "7B", 1.5e12 -> "1.5T": three digits."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def training_flops(parameters: float, tokens: float) -> float:
    """6 N D: 2 forward, 4 backward, per parameter and token (Kaplan et al. 2020, section 2.1)."""
    return 6.0 * parameters * tokens


def gpu_peak(name: str) -> float:
    """Dense 16-bit FLOP/s of a GPU. Raises ConfigError for one that is not in the table."""
    peak = peak_flops(name, "16")
    if peak is None:
        known = ", ".join(names.replace("|", ", ") for names, _, _ in PEAK_TFLOPS)
        raise ConfigError(f"--gpu {name!r} is not known; give its --speed in FLOP/s, or: {known}")
    return peak


def measure(net: GPT, batch_size: int) -> tuple[float, str]:
    """FLOP/s (6 x parameters x tokens / seconds) that this machine reaches, and how it was timed.

    The batch is made smaller where a step would take long.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    flops = training_flops(net.parameter_count(), net.block_size)  # of one sequence
    batch_size = max(1, min(batch_size, int((1e11 if device.type == "cpu" else 2e13) / flops)))
    autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(auto_precision(device))
    recipe = MuonAdamW()
    seconds = measure_step(net, recipe, device, batch_size=batch_size, autocast=autocast, steps=5)
    where = f"{device_name(device)}, in a net of {short(net.parameter_count())} parameters"
    return batch_size * flops / seconds, f"measured on {where}"


class CorpusSize(NamedTuple):
    """Sizes of a prepared corpus."""

    vocab_size: int
    tokens: int  # of the training split
    longest: int  # block that fits into both splits


def read_corpus(path: Path) -> CorpusSize:
    """Raises DataError where no corpus was prepared, or one without validation text."""
    index = read_index(path)
    train, val = (Shards(path, split, index).tokens for split in ("train", "val"))
    return CorpusSize(index["vocab_size"], train, min(train, val) - 1)


@dataclass(frozen=True)
class Budget:
    """Parameters of a net, the tokens it is trained on, and the reason for each figure."""

    parameters: float
    tokens: float
    parameters_how: str = "as asked"
    tokens_how: str = "as asked"

    @property
    def flops(self) -> float:
        return training_flops(self.parameters, self.tokens)


def solve(
    parameters: float | None,
    tokens: float | None,  # repeated ones included
    flops: float | None,  # at most
    *,
    ratio: float = OPTIMAL_RATIO,  # tokens per parameter, where one follows from the other
    text_tokens: float = math.inf,  # tokens that are not given are at most EPOCHS times as many
    smallest: float = 0.0,  # parameters of a net whose size is not given, at least
) -> Budget:
    """Balance net and data. Raises ConfigError where nothing is given, or all three."""
    if parameters is not None and tokens is not None and flops is not None:
        raise ConfigError("--parameters and --tokens fix FLOPs and hours; drop one of the three")
    if parameters is not None and tokens is not None:
        return Budget(parameters, tokens)
    if parameters is not None and flops is not None:
        return Budget(parameters, flops / 6 / parameters, tokens_how="FLOPs / 6 / parameters")
    if tokens is not None and flops is not None:
        return Budget(flops / 6 / tokens, tokens, "FLOPs / 6 / tokens")
    how, rule = "as asked", f"{ratio:g} per parameter (Hoffmann et al. 2022)"
    if tokens is None:
        best = math.inf if flops is None else math.sqrt(flops / 6 * ratio)
        tokens, how = best if parameters is None else ratio * parameters, rule
        if tokens > EPOCHS * text_tokens:
            tokens, how = EPOCHS * text_tokens, f"{EPOCHS:g} epochs over the text"
    if math.isinf(tokens):
        raise ConfigError("a plan needs one of --parameters, --tokens, --flops, --hours and --data")
    if parameters is not None:
        return Budget(parameters, tokens, tokens_how=how)
    if tokens / ratio >= smallest:
        return Budget(tokens / ratio, tokens, f"tokens / {ratio:g} (Hoffmann et al. 2022)", how)
    if flops is not None and training_flops(smallest, tokens) > flops:
        tokens, how = flops / 6 / smallest, "FLOPs / 6 / parameters"
    return Budget(smallest, tokens, "the smallest net that suits the vocabulary", how)
