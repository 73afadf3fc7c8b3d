"""Any of parameters, tokens and FLOPs -> the others; a net and a machine -> its FLOP/s."""

import math
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lmtemplate.data.shards import Shards, read_index
from lmtemplate.errors import ConfigError
from lmtemplate.hardware import PEAK_TFLOPS, auto_precision, device_name
from lmtemplate.models.gpt import GPT
from lmtemplate.optimizers import MuonAdamW
from lmtemplate.run_length import measure_step
from lmtemplate.study.plan.memory import free_memory
from lmtemplate.study.plan.scaling_laws import Sizes, net_sizes, parameter_count, vocabulary_for

RATIO = 20.0  # tokens per parameter that use FLOPs best: Hoffmann et al. 2022, table 3
ASSUMED_MFU = 0.4  # large runs reach 0.38 to 0.43 (Llama 3 405B: Llama Team 2024, table 4)
MEASURED_STEPS = 5  # of which the median counts
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


def known_gpu(name: str) -> tuple[float, float]:
    """Dense 16-bit FLOP/s and bytes of memory of a GPU. Raises ConfigError for an unknown one."""
    words = set(name.lower().replace("-", " ").split())
    said = [int(word[:-2]) for word in words if re.fullmatch(r"\d+gb", word)]
    for names, half, _, gb in PEAK_TFLOPS:
        if any(words.issuperset(one.split()) for one in names.split("|")):
            return half * 1e12, (said or [gb])[0] * 1e9
    known = ", ".join(names.replace("|", ", ") for names, *_ in PEAK_TFLOPS)
    raise ConfigError(f"--gpu {name!r} is not known; there are {known}")


@dataclass(frozen=True)
class TrainingDevice:
    """Where to train: a GPU that is named, or this machine."""

    name: str
    memory: float  # bytes
    speed: float  # FLOP/s that training reaches
    speed_how: str
    width: int = 2  # bytes of a number in a matrix product
    on_cpu: bool = False


def find_device(gpu: str | None, speed: float | None) -> TrainingDevice:
    """What --gpu and --speed say; without both, the speed has yet to be measured."""
    if gpu:
        peak, memory = known_gpu(gpu)
        found = TrainingDevice(
            gpu, memory, ASSUMED_MFU * peak, f"{ASSUMED_MFU:.0%} of {gpu}, assumed"
        )
    else:
        here = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        width = 4 if auto_precision(here) == "32-true" else 2
        found = TrainingDevice(
            "this machine", free_memory(here), 1e11, "", width, here.type == "cpu"
        )
    return replace(found, speed=speed, speed_how="as asked") if speed else found


def measure(sizes: Sizes, vocab_size: int, block_size: int, batch_size: int) -> tuple[float, str]:
    """FLOP/s (6 x parameters x tokens / seconds) that this machine reaches, and how it was timed.

    Net and batch are smaller where a step would take long.
    """
    from lmtemplate.trainer import Machine

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    largest, most = (1e7, 2e10) if device.type == "cpu" else (3e8, 2e13)  # parameters, FLOPs
    if parameter_count(vocab_size, sizes["n_layer"], sizes["n_embd"]) > largest:
        vocab_size = vocabulary_for(largest)
        sizes = net_sizes(largest, vocab_size)
    n_layer, n_head, n_embd = sizes["n_layer"], sizes["n_head"], sizes["n_embd"]
    net = GPT(vocab_size, block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    flops = training_flops(net.parameter_count(), block_size)  # of one sequence
    batch_size = max(1, min(batch_size, int(most / flops)))
    autocast = Machine(device, 1, auto_precision(device)).autocast
    recipe = MuonAdamW()
    size = short(net.parameter_count())
    says = f"measuring this machine: {MEASURED_STEPS} steps of a net of {size} parameters"
    print(f"{says} (skip with --speed or --gpu)", file=sys.stderr, flush=True)
    seconds = measure_step(
        net, recipe, device, batch_size=batch_size, autocast=autocast, steps=MEASURED_STEPS
    )
    how = f"measured on {device_name(device)}, in a net of {size} parameters"
    if (load := os.getloadavg()[0]) > (os.cpu_count() or 1):
        how += f", while {load:.1f} jobs wanted its cores: alone it is faster"
    return batch_size * flops / seconds, how


@dataclass(frozen=True)
class CorpusSize:
    """Sizes of a prepared text, or of one that never ends."""

    vocab_size: int | None
    tokens: float = math.inf  # of the training split
    longest: int = sys.maxsize  # block that fits into both splits


def read_corpus(path: Path) -> CorpusSize:
    """Raises DataError where no corpus was prepared, or one without validation text."""
    index = read_index(path)
    train, val = (Shards(path, split, index).tokens for split in ("train", "val"))
    return CorpusSize(index["vocab_size"], train, min(train, val) - 1)


def solve(
    parameters: float | None,
    tokens: float | None,  # repeated ones included
    flops: float | None,  # at most
    *,
    text_tokens: float = math.inf,  # tokens that are not given are at most EPOCHS times as many
    smallest: float = 0.0,  # parameters of a net whose size is not given, at least
) -> tuple[float, float]:
    """Parameters and tokens, balanced. Raises ConfigError where nothing is given, or all three."""
    if parameters is not None and tokens is not None and flops is not None:
        raise ConfigError("--parameters and --tokens fix FLOPs and hours; drop one of the three")
    if parameters is not None and flops is not None:
        return parameters, flops / 6 / parameters
    if tokens is not None and flops is not None:
        return flops / 6 / tokens, tokens
    if tokens is None:
        best = RATIO * parameters if parameters else math.sqrt((flops or math.inf) / 6 * RATIO)
        tokens = min(best, EPOCHS * text_tokens)
    if math.isinf(tokens):
        raise ConfigError("a plan needs one of --parameters, --tokens, --flops, --hours and --data")
    parameters = parameters or max(tokens / RATIO, smallest)
    return parameters, min(tokens, (flops or math.inf) / 6 / parameters)
