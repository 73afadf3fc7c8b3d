"""What is asked for, on which machine, with which text -> a budget and a run that spends it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmtemplate.data.shards import read_index
from lmtemplate.errors import ConfigError
from lmtemplate.hardware import auto_precision, device_name
from lmtemplate.models.gpt import GPT
from lmtemplate.optimizers import MuonAdamW
from lmtemplate.run_length import measure_step
from lmtemplate.study.plan.proposal import (
    SMALLEST,
    Proposal,
    block_size_for,
    parameter_count,
    propose,
    propose_shape,
    vocabulary_for,
)
from lmtemplate.study.plan.scaling_laws import (
    TOKENS_PER_PARAMETER,
    Budget,
    Machine,
    gpu_peak,
    short,
    solve,
    training_flops,
)

MFU = 0.4  # large runs reach 0.38 to 0.43 (Llama 3 405B: Llama Team 2024, table 4)
# Largest net and most FLOPs a step that are tried when this machine's speed is measured.
CPU_TRIAL, GPU_TRIAL = (1e7, 1e11), (3e8, 2e13)
LIMITS = ("parameters", "tokens", "flops", "hours", "money")
GUESS = 1e11  # FLOP/s that the first net to be timed is chosen by


@dataclass(frozen=True)
class Corpus:
    """What a prepared corpus states."""

    path: Path
    vocab_size: int
    tokens: int  # to train on
    longest: int  # block that its splits have room for


def read_corpus(path: Path) -> Corpus:
    """Raises DataError where no corpus was prepared."""
    index = read_index(path)
    tokens = {
        split: sum(shard["tokens"] for shard in entry["shards"])
        for split, entry in index["splits"].items()
    }
    longest = min(tokens[split] for split in ("train", "val")) - 1
    return Corpus(path, int(index["vocab_size"]), tokens["train"], longest)


@dataclass(frozen=True)
class Asked:
    """What is wanted, and the text it is wanted for.

    Raises ConfigError for what contradicts itself.

    Args:
        limits: what is given of LIMITS.
        tokens_per_parameter: where one follows from the other.
        block_size: tokens of a sequence; None for one that suits the size.
        vocab_size: ids; None for the corpus' own, or some that suit the size.
        corpus: the text, if there is one.
    """

    limits: dict[str, float]
    tokens_per_parameter: float = TOKENS_PER_PARAMETER
    block_size: int | None = None
    vocab_size: int | None = None
    corpus: Corpus | None = None

    def __post_init__(self) -> None:
        costs = [f"--{name}" for name in ("flops", "hours", "money") if name in self.limits]
        if len(costs) > 1:
            raise ConfigError(f"{' and '.join(costs)} all limit the FLOPs; keep one")
        if self.corpus is None:
            return
        if self.vocab_size is not None:
            raise ConfigError(f"{self.corpus.path} states its vocabulary; leave --vocab_size out")
        if self.block_size is not None and self.block_size > self.corpus.longest:
            raise ConfigError(
                f"--block_size {self.block_size} is longer than the splits of {self.corpus.path}; "
                f"{self.corpus.longest} at most"
            )

    def flops(self, machine: Machine) -> float | None:
        """What may be spent on this machine; None for no limit."""
        if "hours" in self.limits:
            return machine.flops_for_hours(self.limits["hours"])
        if "money" in self.limits:
            return machine.flops_for_money(self.limits["money"])
        return self.limits.get("flops")


@dataclass(frozen=True)
class Settled:
    """A budget, a run that spends it, and the machine it was reckoned for."""

    budget: Budget
    proposal: Proposal
    machine: Machine


def chosen_machine(
    gpu: str | None, speed: float | None, mfu: float, devices: int, price: float | None
) -> Machine:
    """The machine of the flags; its speed is 0 where it is to be measured. Raises ConfigError."""
    if gpu is not None and speed is not None:
        raise ConfigError("--gpu and --speed both say how fast it is; keep one")
    if gpu is not None:
        peak = gpu_peak(gpu)
        how = f"{gpu}: {peak / 1e12:g} TFLOP/s x MFU {mfu:g} (small nets reach less)"
        return Machine(peak * mfu, how, devices, price)
    if mfu != MFU:
        raise ConfigError(f"--mfu {mfu:g} is a share of a GPU's peak; name the GPU with --gpu")
    return Machine(speed or 0.0, "as asked", devices, price)


def check_numbers(given: dict[str, Any], mfu: float) -> None:
    """Raises ConfigError for a number that is not above 0 or not finite."""
    for name, value in given.items():
        if isinstance(value, float | int) and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"--{name} {value:g} has to be above 0")
    if not 0 < mfu <= 1:
        raise ConfigError(f"--mfu {mfu:g} is a share of the peak, between 0 and 1")


def balance(asked: Asked, machine: Machine) -> Settled:
    """What is asked for, on this machine."""
    corpus = asked.corpus
    vocab_size = corpus.vocab_size if corpus else asked.vocab_size
    fresh = corpus.tokens if corpus else None
    budget = solve(
        asked.limits.get("parameters"),
        asked.limits.get("tokens"),
        asked.flops(machine),
        ratio=asked.tokens_per_parameter,
        fresh=fresh,
        smallest=parameter_count(vocab_size, *SMALLEST) if vocab_size else 0.0,
    )
    block_size = asked.block_size or block_size_for(budget.parameters)
    proposal = propose(
        budget,
        vocab_size or vocabulary_for(budget.parameters),
        block_size=min(block_size, corpus.longest) if corpus else block_size,
        devices=machine.devices,
        fresh=fresh,
    )
    return Settled(budget, proposal, machine)


def measure(proposal: Proposal, machine: Machine) -> Machine:
    """The machine with the FLOP/s (6 x parameters x tokens / seconds) that it reaches here.

    Timed on the proposed net, or on a smaller one where that would take long.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    largest, most = CPU_TRIAL if device.type == "cpu" else GPU_TRIAL
    shape, block_size = proposal.shape, proposal.block_size
    if shape.parameters > largest:
        shape = propose_shape(largest, vocabulary_for(largest))
    net = GPT(
        shape.vocab_size,
        block_size,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        tied=shape.tied,
    )
    per_sequence = training_flops(shape.parameters, block_size)
    batch_size = max(1, min(proposal.batch_size, int(most / per_sequence)))
    autocast = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(auto_precision(device))
    seconds = measure_step(
        net, MuonAdamW(), device, batch_size=batch_size, autocast=autocast, steps=5
    )
    how = f"measured on {device_name(device)}, in a net of {short(shape.parameters)} parameters"
    speed = batch_size * per_sequence / seconds
    return Machine(speed, how, machine.devices, machine.price_per_hour)


def settle(asked: Asked, machine: Machine) -> Settled:
    """What is asked for, on a machine that is measured if it has no speed yet.

    The speed depends on the net, and under a limit of hours or money the net on the speed.
    """
    if machine.speed:
        return balance(asked, machine)
    settled = balance(asked, Machine(GUESS, "", machine.devices, machine.price_per_hour))
    for _ in range(3):
        before = settled.proposal.shape
        settled = balance(asked, measure(settled.proposal, machine))
        if settled.proposal.shape == before:
            break
    return settled
