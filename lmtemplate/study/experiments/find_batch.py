"""A config -> the largest micro-batch that fits, tokens/s at each size, and the noise scale's advice.

Sizes are doubled until one does not fit, then halved in between. On a GPU a size is tried until its
memory is out. On a CPU nothing is tried that would pass a limit: what a sequence takes is measured
at the sizes before. Nothing is written.
"""

import gc
import math
import resource
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from lmtemplate.errors import ConfigError, OutOfMemoryError
from lmtemplate.run_dir import to_json
from lmtemplate.study.experiments.flags import Flags, split_words
from lmtemplate.study.experiments.trial_steps import TrialSteps
from lmtemplate.study.plan.memory import USABLE, free_memory, number_in
from lmtemplate.study.show.page import table_lines
from lmtemplate.study.understand.noise_scale import QUARTERS, advice, measure_noise
from lmtemplate.study.understand.probing import affordable

TIMED_STEPS = 3
MEASURED_SEQUENCES = 64  # at most
NEARLY = 0.95  # of the highest speed: the smallest size that has it is suggested
CLOSE = 16  # the search ends where the sizes that fit and that do not differ by a 16th


@dataclass(frozen=True)
class SizeTried:
    """One size of the micro-batch, in sequences."""

    batch_size: int
    seconds: float  # of a step
    tokens_per_second: float
    peak: float  # bytes that the process has held at most


@dataclass
class Search:
    """What was tried, and what ended the search."""

    tried: list[SizeTried] = field(default_factory=list)
    too_large: int | None = None  # the smallest size that did not fit
    too_slow: bool = False  # a step took longer than was allowed

    @property
    def largest(self) -> int:
        return max((one.batch_size for one in self.tried), default=0)

    def foreseen(self, size: int) -> float:
        """The peak of a size, on the line through the two largest that were tried.

        Where they tell of no growth it is in proportion to the size, which is always too much.
        """
        *_, before, last = sorted(self.tried, key=lambda one: one.batch_size)
        growth = (last.peak - before.peak) / (last.batch_size - before.batch_size)
        if last.peak < 1.01 * before.peak:
            growth = last.peak / last.batch_size
        return last.peak + growth * (size - last.batch_size)


def search_sizes(
    try_size: Callable[[int], SizeTried | None], *, limit: float, most: int, most_seconds: float
) -> Search:
    """Try sizes of at most `most` sequences, and find the largest that fits.

    Args:
        try_size: returns None where a size does not fit.
        limit: bytes; a size whose foreseen peak is above it is not tried.
        most: sequences.
        most_seconds: a step that takes longer ends the search.
    """
    found, size = Search(), 1
    while size <= most:
        has_room = len(found.tried) < 2 or found.foreseen(size) <= limit
        one = try_size(size) if has_room else None
        if one is None:
            found.too_large = size
        else:
            found.tried.append(one)
            if one.seconds > most_seconds:
                found.too_slow = True
                break
        largest, bound = found.largest, found.too_large
        if bound is None:
            size = 2 * largest
        elif bound - largest > max(1, largest // CLOSE):
            size = (largest + bound) // 2
        else:
            break
    return found


def peak_memory(device: torch.device, reset: bool = False) -> float:
    """Bytes that this process has held at most since the last reset."""
    if device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated(device))
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return peak
    if not sys.platform.startswith("linux"):  # since its start; macOS counts bytes
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    peak = 1024 * number_in("/proc/self/status", "VmHWM:", 0.0)
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak


def time_steps(trial: TrialSteps, size: int) -> SizeTried | None:
    """Steps of so many sequences of random tokens; None where memory runs out."""
    device, shape, seconds = trial.device, (size, trial.data.block_size), list[float]()
    peak_memory(device, reset=True)
    try:
        tokens = torch.randint(trial.net.vocab_size, shape)
        for _ in range(1 + TIMED_STEPS):  # the first is slower
            start = time.perf_counter()
            trial.step(tokens, tokens)
            seconds.append(time.perf_counter() - start)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
            raise
    trial.optimizer.zero_grad()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if len(seconds) <= TIMED_STEPS:
        return None
    step = sorted(seconds[1:])[TIMED_STEPS // 2]
    return SizeTried(size, step, size * shape[1] / step, peak_memory(device))


def memory_limit(trial: TrialSteps, asked: float | None) -> float:
    """Bytes that the process may hold. Raises OutOfMemoryError where the net alone takes more."""
    free = free_memory(trial.device)
    held = peak_memory(trial.device)
    if trial.device.type == "cuda":
        return free + held if asked is None else asked
    limit = USABLE * free + held if asked is None else asked
    weights = sum(p.nbytes for p in trial.net.parameters())
    if held + 3 * weights > limit:  # gradients, two moments
        raise OutOfMemoryError(
            f"weights, gradients and moments take {4 * weights / 1e9:.3g} GB or more, and only "
            f"{limit / 1e9:.3g} GB may be held; lower model.net's sizes"
        )
    return limit


def noise_advice(trial: TrialSteps, per_step: int) -> str:
    """What the gradient noise of the config's data says about a step of so many sequences."""
    count = affordable(trial.net, MEASURED_SEQUENCES * trial.data.block_size, 2 * QUARTERS)
    batches = [trial.next_batch() for _ in range(-(-count // trial.data.batch_size))]
    inputs, targets = (torch.cat(part)[:count] for part in zip(*batches, strict=True))
    trial.net.eval()
    found = measure_noise(trial.net, inputs, targets)
    trial.net.train()
    weights = "the first weights, where noise is least; --init_from RUN measures trained ones"
    if begun := trial.cli.config.init_from:
        weights = f"the weights of {begun}"
    return f"{advice(found, per_step, trial.data.block_size)} Measured with {weights}."


def suggestion(found: Search, per_step: int) -> str:
    """The smallest size that is nearly as fast as any and divides a step of so many sequences.

    If no such size fits, it is the largest one that divides the step.
    """
    highest = NEARLY * max(one.tokens_per_second for one in found.tried)
    fast = min(one.batch_size for one in found.tried if one.tokens_per_second >= highest)
    divisors = [size for size in range(1, found.largest + 1) if per_step % size == 0]
    size = next((size for size in divisors if size >= fast), divisors[-1])
    times = per_step // size
    parts = f"{times} times accumulated, " if times > 1 else ""
    return (
        f"suggestion: data.batch_size {size}, {parts}for the config's {per_step} sequences a step"
    )


def ended_by(found: Search, limit: float, seconds: float) -> str:
    """Why no larger size was tried."""
    if found.too_large is not None:
        return f"{found.largest:,} sequences fit, {found.too_large:,} do not ({limit / 1e9:.3g} GB)"
    if found.too_slow:
        room = f"; by its growth, {limit / 1e9:.3g} GB last for about {room_for(found, limit):,}"
        return f"{found.largest:,} sequences fit; a step takes more than {seconds:g} s{room}"
    return f"{found.largest:,} sequences fit, the most that were to be tried (--most)"


def room_for(found: Search, limit: float) -> int:
    """Sequences that the limit leaves room for, by the growth that was measured."""
    size = found.largest
    if len(found.tried) < 2:
        return size
    growth = found.foreseen(size + 1) - found.foreseen(size)
    return size + max(0, int((limit - found.foreseen(size)) / growth))


def find_batch(words: list[str], allowed: list[str]) -> None:
    """Try growing micro-batches on a config's net, not compiled.

    Args:
        words: of the command line, after the verb, and those of fit.
        allowed: packages outside lmtemplate whose classes a config may name.
    """
    flags: Flags = {
        "most": {"type": int, "default": 4096, "help": "sequences that are tried at most"},
        "seconds": {"type": float, "default": 5.0, "help": "a slower step ends the search"},
        "memory_gb": {"type": float, "help": "limit; else 90 %% of what is free, on a GPU all"},
    }
    given, rest = split_words("find-batch", words, flags)
    if not (given.most >= 1 and given.seconds > 0 and (given.memory_gb or 1) > 0):
        raise ConfigError("find-batch needs --most, --seconds and --memory_gb above 0")
    trial = TrialSteps("find-batch", rest, allowed)
    limit = memory_limit(trial, given.memory_gb and given.memory_gb * 1e9)
    per_step = trial.length.accumulate * trial.data.batch_size
    noise = noise_advice(trial, per_step)
    until_it_is_out = trial.device.type == "cuda" and given.memory_gb is None
    found = search_sizes(
        lambda size: time_steps(trial, size),
        limit=math.inf if until_it_is_out else limit,
        most=given.most,
        most_seconds=given.seconds,
    )
    if not found.tried:
        raise OutOfMemoryError(
            f"one sequence of {trial.data.block_size} tokens does not fit into memory; lower "
            "data.block_size, or set gradient_checkpointing"
        )
    found.tried.sort(key=lambda one: one.batch_size)
    why = ended_by(found, limit, given.seconds)
    advised = suggestion(found, per_step)
    if given.json:
        told: dict[str, object] = {"largest": found.largest, "too_large": found.too_large}
        tried = [asdict(one) for one in found.tried]
        told |= {"limit_bytes": limit, "ended": why, "tried": tried, "suggestion": advised}
        print(to_json({**told, "noise": noise}, indent=None))
        return
    rows = [["sequences", "tokens/s", "seconds", "peak memory"]]
    for one in found.tried:
        counts = [f"{one.batch_size:,}", f"{one.tokens_per_second:,.0f}", f"{one.seconds:.3f}"]
        rows.append([*counts, f"{one.peak / 1e9:.2f} GB"])
    print(*table_lines(rows, ">"), why, advised, textwrap.fill(noise, 100), sep="\n")
