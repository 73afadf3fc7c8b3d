"""What a run may cost (steps, epochs, tokens, FLOPs, seconds) -> optimizer steps."""

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from lmtemplate.errors import ConfigError
from lmtemplate.loss import training_loss
from lmtemplate.models.base import LanguageModel
from lmtemplate.optimizers import OptimizerRecipe

# Key -> the unit that it gives a run its length in.
RUN_LENGTHS = {
    "max_epochs": "epochs: passes over the training data",
    "max_tokens": "tokens",
    "max_flops": "model FLOPs, forward and backward",
    "max_seconds": "seconds, at the speed measured before step 1; also a hard limit",
    "tokens_per_parameter": "tokens / parameters (20 is Chinchilla's: Hoffmann et al. 2022)",
}
LIMITS = ("trainer.max_steps", *RUN_LENGTHS)  # exactly one gives a run its length

VALIDATION_SHARE = 0.1  # of max_seconds, left for validation, samples and saving


@dataclass(frozen=True)
class RunLength:
    """The one limit that was given, and what it means in optimizer steps of how many micro-batches."""

    limit: str  # one of LIMITS
    value: float
    steps: int
    accumulate: int = 1

    def __str__(self) -> str:
        return f"{self.limit} {self.value:,.10g}"


def only_limit(settings: Any) -> tuple[str, float]:
    """Name and value of the limit that was given. Raises ConfigError unless it is exactly one."""
    given = {name: value for name in LIMITS if (value := settings[name]) is not None}
    if given.get("trainer.max_steps") == -1:  # Lightning's word for none
        del given["trainer.max_steps"]
    if not given:
        flags = ", ".join(f"--{name}" for name in LIMITS)
        raise ConfigError(f"the run has no length; give --config FILE, or one of {flags}")
    if len(given) > 1:
        listed = " and ".join(f"{name}={value:g}" for name, value in given.items())
        raise ConfigError(
            f"{listed} both give the run a length; keep one "
            "(turn the other off with null, --trainer.max_steps with -1)"
        )
    name, value = next(iter(given.items()))
    if not 0 < value < math.inf:
        raise ConfigError(f"{name}={value:g} has to be above 0, and finite")
    return name, value


def accumulation(tokens_per_step: int | None, accumulate: int, tokens_per_batch: int) -> int:
    """Micro-batches per optimizer step; a micro-batch is over all devices. Raises ConfigError."""
    if tokens_per_step is None:
        return int(accumulate)  # a plain one, for it stands in each checkpoint
    if accumulate != 1:
        raise ConfigError(
            f"tokens_per_step={tokens_per_step} and trainer.accumulate_grad_batches={accumulate} "
            "both set the size of a step; keep one"
        )
    if tokens_per_step < tokens_per_batch or tokens_per_step % tokens_per_batch:
        nearest = max(1, round(tokens_per_step / tokens_per_batch)) * tokens_per_batch
        raise ConfigError(
            f"tokens_per_step={tokens_per_step:,} is not a multiple of data.batch_size x "
            f"data.block_size x devices = {tokens_per_batch:,}; nearest that is: {nearest:,}"
        )
    return tokens_per_step // tokens_per_batch


def steps_in(
    limit: str,
    value: float,
    *,
    net: LanguageModel,
    tokens_per_step: int,
    tokens_per_epoch: int | None = None,
    seconds_per_step: float | None = None,
) -> int:
    """Optimizer steps of a limit, rounded down (up for epochs, so that they are whole), at least 1.

    Data without an end has no epochs; only max_seconds needs the measured seconds_per_step.
    """
    if limit == "trainer.max_steps":
        steps = value
    elif limit == "max_seconds":
        assert seconds_per_step is not None
        steps = (1 - VALIDATION_SHARE) * value / seconds_per_step
    elif limit == "max_epochs":
        if tokens_per_epoch is None:
            raise ConfigError("max_epochs: this data has no epochs; give trainer.max_steps")
        steps = -(-value * tokens_per_epoch // tokens_per_step)
    elif limit == "max_flops":
        steps = value / (net.flops_per_token() * tokens_per_step)
    else:
        tokens = value * (net.parameter_count() if limit == "tokens_per_parameter" else 1)
        steps = tokens / tokens_per_step
    return max(1, int(steps))


def measure_step(
    net: LanguageModel,
    recipe: OptimizerRecipe,
    device: torch.device,
    *,
    batch_size: int,
    autocast: torch.dtype | None,
    steps: int = 8,
) -> float:
    """Seconds that one forward, backward and update take (the median), on a copy of the net."""
    with torch.random.fork_rng():
        trial = copy.deepcopy(net).to(device).train()
        optimizer = recipe.build(trial)
        tokens = torch.randint(net.vocab_size, (batch_size, net.block_size), device=device)
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss = training_loss(trial, tokens, tokens).objective
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            float(loss.detach())  # waits for the device
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[steps // 2]
