"""What the documents say of cost and scale -> our own figure beside it, and a verdict."""

import json
import math
import textwrap
from dataclasses import asdict, dataclass
from typing import Literal

from lmtemplate.study.plan.scaling_laws import (
    HOUR,
    TOKENS_PER_PARAMETER,
    Machine,
    estimated_loss,
    gpu_peak,
    power,
    rate,
    short,
    span,
    training_flops,
)

Verdict = Literal["right", "rounded", "wrong", "unknown"]

DAY = 24 * HOUR
YEAR = 365.25 * DAY
SAME, NEAR = 1.03, 1.2  # factors up to which a figure is right, or rounded
SEVERAL = 2  # "days" are two at least
# FLOP/s that one core of a server CPU with bfloat16 reached in training nets of 34M and 96M
# parameters, while other programs ran on it; quickstart, on two cores, comes to as much.
CPU = Machine(1.2e11, "one CPU core")
PRICE = 2.0  # dollars an hour that an A100 is to be had for


@dataclass(frozen=True)
class Claim:
    """A claim of the documents.

    Args:
        says: the claim.
        ours: our figure.
        verdict: right, rounded (within a fifth), wrong, or unknown.
        why: how our figure came about.
    """

    says: str
    ours: str
    verdict: Verdict
    why: str


def judge(claimed: float, ours: float) -> Verdict:
    """right within 3 %, rounded within a factor of 1.2, else wrong."""
    factor = max(claimed / ours, ours / claimed)
    if factor <= SAME:
        return "right"
    return "rounded" if factor <= NEAR else "wrong"


def rules() -> list[Claim]:
    """6ND, 20 tokens per parameter, and what 7B parameters cost."""
    flops = training_flops(7e9, 1e12)
    hours = Machine(0.4 * gpu_peak("a100"), "").hours(flops)
    enough = TOKENS_PER_PARAMETER * 7e9
    return [
        Claim(
            "7B parameters on 1T tokens take about 42 x 10^21 FLOPs",
            f"{power(flops)} FLOPs",
            judge(42e21, flops),
            "6 x 7B x 1T (Kaplan et al. 2020)",
        ),
        Claim(
            "a 7B model should see about 140B tokens",
            f"{short(enough)} tokens",
            judge(140e9, enough),
            "20 tokens per parameter (Hoffmann et al. 2022)",
        ),
        Claim(
            "7B on 1T tokens typically costs millions of dollars in A100 or H100 time",
            f"${hours * PRICE:,.0f}",
            judge(SEVERAL * 1e6, hours * PRICE),
            f"{hours:,.0f} A100 hours at MFU 0.4 and ${PRICE:g} an hour; LLaMA 7B did take 82,432 "
            "(Touvron et al. 2023, table 15)",
        ),
    ]


def giants() -> list[Claim]:
    """Llama 3 405B, GPT-3 and GPT-4."""
    llama, peak, gpus = training_flops(405e9, 15.6e12), gpu_peak("h100"), 16384
    needed = llama / (54 * DAY * gpus)
    days = Machine(400e12, "", gpus).hours(llama) / 24
    gpt3 = training_flops(175e9, 300e9)
    reached = gpt3 / (3.6e6 * HOUR)
    hours = Machine(28e12, "").hours(gpt3)
    return [
        Claim(
            "Llama 3: 405B parameters, 15.6T tokens, 16,384 H100s, about 54 days",
            f"{days:.0f} days",
            judge(54, days),
            f"54 days need {rate(needed)} per GPU, MFU {needed / peak:.2f}; its paper "
            "measured 400 (0.40 of the peak; Llama Team 2024, table 4) on as many GPUs, and its 54 "
            "days are a stretch whose interruptions were counted, not the run",
        ),
        Claim(
            "GPT-3: 175B parameters, 300B tokens, about 3.6M GPU hours",
            f"{hours / 1e6:.1f}M hours",
            judge(3.6e6, hours),
            f"{power(gpt3)} FLOPs at 28 TFLOP/s per V100 (Li 2020); 3.6M hours mean "
            f"{rate(reached)}, MFU {reached / gpu_peak('v100'):.2f}, which is possible. The hours "
            "follow from parameters and tokens; the three are no product",
        ),
        Claim(
            "GPT-3 cost about $4.6M",
            f"${hours * 1.5 / 1e6:.1f}M",
            judge(4.6e6, hours * 1.5),
            f"{hours / 1e6:.1f}M V100 hours at $1.50 (Li 2020); it does not go with 3.6M hours, "
            f"which would be ${3.6 * 1.5:.1f}M, or ${4.6 / 3.6:.2f} an hour",
        ),
        Claim(
            "GPT-4 cost over $100M",
            "no figure",
            "unknown",
            "neither its size nor its tokens were published",
        ),
    ]


def balances() -> list[Claim]:
    """Which of two nets is better, and by how much their costs differ."""
    big, small = (175e9, 300e9), (70e9, 1.4e12)
    losses = estimated_loss(*small), estimated_loss(*big)
    costs = training_flops(*small), training_flops(*big)
    equal = costs[1] / 6 / small[0]
    per_parameter = big[1] / big[0]
    return [
        Claim(
            "GPT-3 was undertrained",
            f"{per_parameter:.1f} tokens per parameter",
            "right" if per_parameter < TOKENS_PER_PARAMETER / 2 else "wrong",
            f"against {TOKENS_PER_PARAMETER:g} (Hoffmann et al. 2022)",
        ),
        Claim(
            "70B parameters on 1.4T tokens beat 175B on 300B",
            f"loss {losses[0]:.2f} against {losses[1]:.2f}",
            "right" if losses[0] < losses[1] else "wrong",
            "fit of Hoffmann et al. 2022, equation 10; and with no more FLOPs than 175B took, 70B "
            f"on {short(equal)} tokens come to {estimated_loss(small[0], equal):.2f}",
        ),
        Claim(
            "... for the same compute",
            f"{costs[0] / costs[1]:.2f} times as much",
            judge(1.0, costs[0] / costs[1]),
            f"{power(costs[0])} against {power(costs[1])} FLOPs: the same order, not the same",
        ),
    ]


def returns() -> list[Claim]:
    """More data helps less and less."""

    def missing(tokens: float) -> float:
        return estimated_loss(math.inf, tokens) - estimated_loss(math.inf, math.inf)

    last, beyond = missing(1e7) - missing(1e8), missing(1e8) - missing(3e11)
    return [
        Claim(
            "1M, 9M more, 90M more examples: each step helps less",
            f"ten times the tokens leave {missing(1e8) / missing(1e7):.0%} of what is missing",
            "right" if missing(1e7) - missing(1e8) < missing(1e6) - missing(1e7) else "wrong",
            "data term of Hoffmann et al. 2022, equation 10, far below where it was fitted",
        ),
        Claim(
            "... and beyond 100M only very small improvements",
            f"{beyond:.1f} nats",
            "right" if beyond < last / 10 else "wrong",
            f"from 100M tokens to GPT-3's 300B by the same fit; the 90M before gave {last:.1f}",
        ),
    ]


def _duration(says: str, flops: float, unit: float, machine: Machine) -> Claim:
    ours = machine.hours(flops) * HOUR
    why = f"{power(flops)} FLOPs at {rate(machine.speed)}, {machine.how}"
    return Claim(says, span(ours), judge(SEVERAL * unit, ours), why)


def durations() -> list[Claim]:
    """How long small models take, and a person."""
    small, large = training_flops(1e6, 1e6), training_flops(1e8, 1e8)
    peak, seconds = gpu_peak("t4"), 70e9
    idle = Machine(0.01 * peak, "MFU 0.01 (such a net cannot fill it) of a T4, the slowest in use")
    busy = Machine(0.2 * peak, "MFU 0.2 of a T4, the slowest GPU in use")
    return [
        _duration("1M parameters, 1M tokens: days on a CPU", small, DAY, CPU),
        _duration("1M parameters, 1M tokens: hours on a GPU", small, HOUR, idle),
        _duration("100M parameters, 100M tokens: weeks on a CPU", large, 7 * DAY, CPU),
        _duration("100M parameters, 100M tokens: days on a GPU", large, DAY, busy),
        Claim(
            "one second for each of 70 billion parameters is over 2,200 years",
            f"{seconds / YEAR:,.0f} years",
            judge(2200, seconds / YEAR),
            "70B / 31,557,600 seconds a year",
        ),
    ]


def all_claims() -> list[Claim]:
    """Every claim of the documents about cost and scale, checked."""
    return [*rules(), *giants(), *balances(), *returns(), *durations()]


def claims_as_text() -> str:
    """Verdict and claim; below it our figure, and how it came about."""
    indent = " " * 9
    return "\n".join(
        f"{claim.verdict:<8} {claim.says}\n"
        + textwrap.fill(
            f"{claim.ours}: {claim.why}", 100, initial_indent=indent, subsequent_indent=indent
        )
        for claim in all_claims()
    )


def claims_as_json() -> str:
    """The same as strict JSON."""
    return json.dumps([asdict(claim) for claim in all_claims()], indent=2)
