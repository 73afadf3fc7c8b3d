"""Sizes of our GPT and a batch -> bytes that a training step takes; a device -> bytes that it has."""

import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from lmtemplate.hardware import PEAK_TFLOPS
from lmtemplate.loss import CHUNK_LOGITS, CHUNK_LOGITS_ON_CPU
from lmtemplate.study.plan.scaling_laws import Sizes, net_sizes, parameter_count

USABLE = 0.9  # of a device's memory: the rest is for its driver, its libraries and fragments


class StepMemory(NamedTuple):
    """Bytes on one device, by what they are for."""

    state: float  # weights, gradients, the optimizer's moments
    update: float  # what Muon works on while activations are gone
    activations: float  # kept for the backward pass, with 16-bit copies of the weights
    logits: float  # with their gradients, and that of the output head

    @property
    def total(self) -> float:
        """The most at any time."""
        return self.state + max(self.update, self.activations + self.logits)


@dataclass(frozen=True)
class MicroBatch:
    """What one device computes at a time: our GPT with MuonAdamW, not compiled."""

    net: Sizes
    vocab_size: int
    block_size: int
    batch_size: int = 1  # sequences
    gradient_checkpointing: bool = False
    width: int = 2  # bytes of a number in a matrix product: 2 under autocast, 4 without
    on_cpu: bool = False

    @property
    def memory(self) -> StepMemory:
        """Memory of a training step without dropout.

        With N parameters, of which M = 12 L C^2 are Muon's, and w bytes of `width`:

        - state: 4 N weights, 4 N gradients, 4 M momenta, 8 (N - M) moments of AdamW, in float32.
        - update: Muon stacks the matrices of one shape, at most 4 L C^2 numbers: 4 bytes of each
          ahead, and five copies of w bytes amid an iteration (`muon.orthogonalise`).
        - activations: as Korthikanti et al. 2022, equation 1, counted for our block: of each token
          and channel, the input of both norms (8 bytes), what they give to four matrices (8), and
          15 w in attention (Q and K before and after their rotation, V, the result twice) and MLP
          (4 + 4). The matrix of attention is never kept. Below and above the blocks are 16 bytes
          more. With gradient checkpointing the input of each block is kept, and all of one block
          (Chen et al. 2016, section 3). Autocast keeps w M bytes of weights.
        - logits: of one chunk (`loss.linear_cross_entropy`), three float32 and two w-byte copies;
          the head's gradient in float32 and its weight in w bytes, V C each.
        """
        n_layer, n_embd, width = self.net["n_layer"], self.net["n_embd"], self.width
        parameters = parameter_count(self.vocab_size, n_layer, n_embd)
        matrices, tokens = 12 * n_layer * n_embd**2, self.batch_size * self.block_size
        block = 16 + 15 * width
        blocks = 4 * n_layer + block if self.gradient_checkpointing else block * n_layer
        largest = CHUNK_LOGITS_ON_CPU if self.on_cpu else CHUNK_LOGITS
        chunk = min(tokens * self.vocab_size, largest)
        return StepMemory(
            state=8 * parameters + 4 * matrices + 8 * (parameters - matrices),
            update=4 * n_layer * n_embd**2 * (4 + 5 * width),
            activations=tokens * n_embd * (blocks + 16) + (width * matrices if width < 4 else 0),
            logits=(12 + 2 * width) * chunk + (4 + width) * self.vocab_size * n_embd,
        )

    def split(self, sequences: int, memory: float) -> "MicroBatch | None":
        """So many sequences in equal parts that fit into a device, recomputing only if need be."""
        for recomputing in (False, True):
            for count in range(1, sequences + 1):
                size = -(-sequences // count)
                part = replace(self, batch_size=size, gradient_checkpointing=recomputing)
                if part.memory.total <= USABLE * memory:
                    return part
        return None

    def largest_net(self, memory: float) -> float:
        """Parameters, within a tenth, of a smaller net of which one sequence fits."""
        net = self.net
        parameters = float(parameter_count(self.vocab_size, net["n_layer"], net["n_embd"]))
        while not replace(self, net=net).split(1, memory):
            parameters *= 0.9
            net = net_sizes(parameters, self.vocab_size)
        return parameters


def larger_gpus(needed: float) -> list[str]:
    """The known GPUs with so many usable bytes, the smallest first."""
    enough = sorted((gb, name) for name, _, _, gb in PEAK_TFLOPS if gb * 1e9 * USABLE >= needed)
    return [f"{name.replace('|', ', ')} ({gb} GB)" for gb, name in enough]


def free_memory(device: torch.device) -> float:
    """Bytes that may still be taken: of a GPU, else of this machine and its container, no swap."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2  # where nothing says more
    free = 1024 * number_in("/proc/meminfo", "MemAvailable:", free / 1024)
    limit = number_in("/sys/fs/cgroup/memory.max", "", math.inf)
    return min(free, limit - number_in("/sys/fs/cgroup/memory.stat", "anon", 0.0))


def number_in(path: str, name: str, default: float) -> float:
    """The number behind a name, at the start of a line of one of Linux's files."""
    text = Path(path).read_text(encoding="utf-8") if os.path.isfile(path) else ""
    found = re.search(rf"^{name}\s*(\d+)", text, re.MULTILINE)
    return float(found[1]) if found else default
