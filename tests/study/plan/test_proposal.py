"""Proposed nets are ours and of the size asked for; rates and batches are the published ones."""

import pytest
import torch

from lmtemplate.errors import ConfigError
from lmtemplate.models import GPT
from lmtemplate.study.plan.proposal import (
    Proposal,
    adamw_rate,
    batch_tokens,
    block_size_for,
    parameter_count,
    propose,
    propose_shape,
    vocabulary_for,
)
from lmtemplate.study.plan.scaling_laws import Budget

SIZES = [10 ** (4.5 + third / 3) for third in range(22)]  # 30k to 316B


def budget(parameters: float, tokens: float) -> Budget:
    return Budget(parameters, tokens, "", "")


@pytest.mark.parametrize("tied", [False, True])
def test_the_closed_formula_counts_what_our_gpt_has(tied: bool) -> None:
    with torch.device("meta"):
        net = GPT(1000, 8, n_layer=3, n_head=4, n_embd=96, tied=tied)
    assert parameter_count(1000, 3, 96, tied=tied) == net.parameter_count()


@pytest.mark.parametrize("vocab_size", [256, 4096, 50257, None])
def test_a_proposed_net_is_of_the_size_asked_for(vocab_size: int | None) -> None:
    for parameters in SIZES:
        ids = vocab_size or vocabulary_for(parameters)
        if parameters > 20 * ids:
            assert propose_shape(parameters, ids).parameters == pytest.approx(parameters, rel=0.15)


@pytest.mark.parametrize("parameters", [3e4, 1e6, 1.24e8, 7e9])
def test_our_gpt_accepts_the_proposed_sizes(parameters: float) -> None:
    shape = propose_shape(parameters, vocabulary_for(parameters))
    sizes = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd}
    with torch.device("meta"):
        net = GPT(shape.vocab_size, 8, tied=shape.tied, **sizes)
    assert net.parameter_count() == shape.parameters


def test_heads_divide_the_width_evenly() -> None:
    for parameters in SIZES:
        shape = propose_shape(parameters, vocabulary_for(parameters))
        assert shape.n_embd % (2 * shape.n_head) == 0


def test_quickstart_s_size_gets_quickstart_s_shape() -> None:
    shape = propose_shape(1_835_136, 4096)
    assert (shape.n_layer, shape.n_head, shape.n_embd, shape.tied) == (4, 4, 128, False)


def test_llama_s_size_gets_about_llama_s_shape() -> None:
    shape = propose_shape(7e9, 32000)
    assert shape.n_embd == 4096
    assert 30 <= shape.n_layer <= 36


def test_a_large_vocabulary_in_a_small_net_is_tied() -> None:
    assert propose_shape(1e6, 50257).tied


def test_a_vocabulary_that_does_not_fit_is_said_so() -> None:
    with pytest.raises(ConfigError, match=r"no net of 100k parameters .* 50,257 ids"):
        propose_shape(1e5, 50257)


def test_vocabularies_grow_with_the_net() -> None:
    assert vocabulary_for(1.8e6) == 4096
    assert [vocabulary_for(size) for size in (1e3, 1e12)] == [512, 32768]


def test_contexts_grow_with_the_net() -> None:
    assert (block_size_for(1.8e6), block_size_for(1.24e8), block_size_for(1e11)) == (64, 1024, 2048)


@pytest.mark.parametrize(
    ("parameters", "rate", "sequences"),  # Bi et al. 2024, table 2; 2T tokens, blocks of 4,096
    [(7e9, 4.2e-4, 2304), (67e9, 3.2e-4, 4608)],
)
def test_rates_and_batches_are_those_of_deepseek_s_models(
    parameters: float, rate: float, sequences: int
) -> None:
    flops = 6 * parameters * 2e12
    assert adamw_rate(flops) == pytest.approx(rate, rel=0.02)
    assert batch_tokens(flops) == pytest.approx(sequences * 4096, rel=0.05)


@pytest.mark.parametrize("devices", [1, 3, 16])
@pytest.mark.parametrize("parameters", [1e5, 1e8, 7e9])
def test_steps_times_tokens_are_the_tokens_asked_for(parameters: float, devices: int) -> None:
    run = propose(budget(parameters, 20 * parameters), vocabulary_for(parameters), devices=devices)
    assert run.steps * run.tokens_per_step == pytest.approx(20 * parameters, rel=0.01)
    parts = run.batch_size * run.block_size * run.devices * run.accumulate
    assert run.tokens_per_step == parts


def test_a_large_net_accumulates_what_does_not_fit() -> None:
    run = propose(budget(7e9, 140e9), 32768)
    assert run.accumulate > 100
    assert run.batch_size == 1


def test_a_small_run_has_five_hundred_steps() -> None:
    run = propose(budget(6e5, 1e6), 4096, block_size=16)
    assert 480 <= run.steps <= 520


@pytest.mark.parametrize(("fresh", "dropout"), [(None, 0.0), (2e6, 0.0), (2.5e5, 0.1)])
def test_dropout_comes_with_repeated_text(fresh: float | None, dropout: float) -> None:
    assert propose(budget(6e5, 1e6), 4096, fresh=fresh).dropout == dropout


def proposal(**changes: int) -> Proposal:
    sizes = {"block_size": 64, "batch_size": 2, "accumulate": 3, "devices": 1, "steps": 1000}
    sizes.update(changes)
    return Proposal(
        propose_shape(1e6, 512), **sizes, tokens_per_step_how="", adamw_lr=0.0123456, passes=None
    )


@pytest.mark.parametrize(
    ("devices", "nodes", "per_node"), [(1, 1, 1), (8, 1, 8), (16, 2, 8), (12, 2, 6), (11, 11, 1)]
)
def test_many_devices_are_spread_over_nodes(devices: int, nodes: int, per_node: int) -> None:
    trainer = proposal(devices=devices).config("data/x", "runs/x")["trainer"]
    assert (trainer.get("num_nodes", 1), trainer["devices"]) == (nodes, per_node)


@pytest.mark.parametrize(
    ("steps", "warmup", "every"), [(5, 0, 1), (1000, 50, 100), (10**6, 2000, 10**5)]
)
def test_warm_up_and_validations_fit_into_the_run(steps: int, warmup: int, every: int) -> None:
    config = proposal(steps=steps).config("data/x", "runs/x")
    assert config["model"]["schedule"]["init_args"]["warmup_steps"] == warmup
    assert config["trainer"]["val_check_interval"] == every
