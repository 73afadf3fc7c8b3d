"""What a run may cost, in steps: each conversion by hand."""

import copy
import math

import pytest
import torch

from lmtemplate.errors import ConfigError
from lmtemplate.models import GPT
from lmtemplate.optimizers import AdamW, MuonAdamW
from lmtemplate.run_length import (
    LIMITS,
    RunLength,
    accumulation,
    measure_step,
    only_limit,
    steps_in,
)

# 1,048,704 parameters, 7,077,888 FLOPs per token; 16 sequences of 256 tokens a step
NET = GPT(1024, 256, n_layer=4, n_head=4, n_embd=128)
TOKENS_PER_STEP = 4096


def steps(limit: str, value: float, seconds_per_step: float | None = None) -> int:
    return steps_in(
        limit,
        value,
        net=NET,
        tokens_per_step=TOKENS_PER_STEP,
        tokens_per_epoch=1000 * 256,
        seconds_per_step=seconds_per_step,
    )


@pytest.mark.parametrize(
    ("limit", "value", "expected"),
    [
        ("trainer.max_steps", 500, 500),
        ("max_epochs", 1, 63),  # 1,000 sequences / 16 = 62.5, rounded up: the pass is whole
        ("max_epochs", 2, 125),  # exactly
        ("max_epochs", 0.5, 32),  # 31.25
        ("max_tokens", 1_000_000, 244),  # 244.14
        ("max_tokens", 8192, 2),
        ("max_flops", 1e13, 344),  # 1e13 / (7,077,888 x 4,096) = 344.9
        ("tokens_per_parameter", 20, 5120),  # Chinchilla: 20 x 2^20 / 2^12
        ("max_tokens", 1, 1),  # never less than one step
        ("max_flops", 1, 1),
    ],
)
def test_limits_become_steps(limit: str, value: float, expected: int) -> None:
    assert steps(limit, value) == expected


def test_seconds_become_steps_by_the_measured_speed() -> None:
    # a tenth is left for validation and saving: 0.9 x 90 / 0.08 = 1012.5
    assert steps("max_seconds", 90, seconds_per_step=0.08) == 1012
    assert steps("max_seconds", 0.01, seconds_per_step=0.08) == 1


def test_a_length_says_what_gave_it() -> None:
    assert str(RunLength("max_tokens", 1e9, 7)) == "max_tokens 1,000,000,000"
    assert str(RunLength("max_epochs", 0.5, 7)) == "max_epochs 0.5"


@pytest.mark.parametrize("name", LIMITS)
def test_the_one_limit_that_was_given_counts(name: str) -> None:
    assert only_limit({**dict.fromkeys(LIMITS), name: 3}) == (name, 3)


def test_two_limits_are_refused_by_name() -> None:
    given = {**dict.fromkeys(LIMITS), "trainer.max_steps": 100, "max_tokens": 1e6}
    with pytest.raises(ConfigError, match=r"trainer.max_steps=100 and max_tokens=1e\+06 both"):
        only_limit(given)


def test_no_limit_lists_all_that_could_be_given() -> None:
    with pytest.raises(ConfigError, match="no length") as caught:
        only_limit(dict.fromkeys(LIMITS))
    assert all(f"--{name}" in str(caught.value) for name in LIMITS)


@pytest.mark.parametrize("value", [0, -5, math.inf, math.nan])
def test_a_limit_has_to_be_above_zero_and_finite(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"max_epochs={value} has to be above 0"):
        only_limit({**dict.fromkeys(LIMITS), "max_epochs": value})


@pytest.mark.parametrize(
    ("tokens_per_step", "accumulate", "expected"),
    [(None, 1, 1), (None, 3, 3), (4096, 1, 1), (12288, 1, 3)],
)
def test_tokens_per_step_become_micro_batches(
    tokens_per_step: int | None, accumulate: int, expected: int
) -> None:
    assert accumulation(tokens_per_step, accumulate, tokens_per_batch=4096) == expected


@pytest.mark.parametrize(
    ("tokens_per_step", "nearest"),
    [(5000, "4,096"), (7000, "8,192"), (100, "4,096"), (12287, "12,288")],
)
def test_a_step_that_is_no_whole_number_of_batches_names_the_nearest(
    tokens_per_step: int, nearest: str
) -> None:
    with pytest.raises(ConfigError, match=f"= 4,096; nearest that is: {nearest}$"):
        accumulation(tokens_per_step, 1, tokens_per_batch=4096)


def test_the_size_of_a_step_is_stated_once() -> None:
    with pytest.raises(ConfigError, match=r"tokens_per_step=8192 and .*batches=2 both"):
        accumulation(8192, 2, tokens_per_batch=4096)


@pytest.mark.parametrize("recipe", [AdamW(), MuonAdamW()], ids=["adamw", "muon"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_measuring_a_step_leaves_net_and_random_numbers_alone(
    recipe: AdamW | MuonAdamW, autocast: torch.dtype | None
) -> None:
    net = GPT(20, 8, n_layer=1, n_head=1, n_embd=8, dropout=0.5).eval()
    weights, random = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    seconds = measure_step(net, recipe, torch.device("cpu"), batch_size=2, autocast=autocast)
    assert seconds > 0
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(weight, weights[name]) for name, weight in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not net.training
