"""The fits give the values that were published, and nets are ours and of the size asked for."""

import math

import numpy as np
import pytest
import torch

from lmtemplate.errors import ConfigError
from lmtemplate.models import GPT
from lmtemplate.study.plan.scaling_laws import (
    adamw_lr,
    batch_tokens,
    block_size_for,
    estimated_loss,
    net_sizes,
    parameter_count,
    vocabulary_for,
)


@pytest.mark.parametrize(
    ("parameters", "tokens", "of_size", "of_data", "loss"),  # Gopher, Chinchilla
    [(280e9, 300e9, 0.052, 0.251, 1.993), (70e9, 1.4e12, 0.083, 0.163, 1.936)],
)
def test_the_loss_fit_gives_the_terms_known_for_gopher_and_chinchilla(
    parameters: float, tokens: float, of_size: float, of_data: float, loss: float
) -> None:
    """What a finite net, and finite data, cost in nats: to three digits after the point."""
    floor = estimated_loss(math.inf, math.inf) or 0
    assert floor == 1.69
    assert estimated_loss(parameters, math.inf) - floor == pytest.approx(of_size, abs=5e-4)
    assert estimated_loss(math.inf, tokens) - floor == pytest.approx(of_data, abs=5e-4)
    assert estimated_loss(parameters, tokens) == pytest.approx(loss, abs=1e-3)


def refitted_loss(parameters: float, tokens: float) -> float:
    """Besiroglu et al. 2024: the same data, fitted by others."""
    return 1.8172 + 482.01 / parameters**0.3478 + 2085.43 / tokens**0.3658


@pytest.mark.parametrize("tokens", [1.4e12, 175 * 300e9 / 70])  # the second for equal FLOPs
def test_70b_parameters_beat_175b_on_300b_tokens_by_both_fits(tokens: float) -> None:
    for fit in (estimated_loss, refitted_loss):
        assert fit(70e9, tokens) < fit(175e9, 300e9)


def test_each_tenfold_of_data_helps_less() -> None:
    gains = [
        estimated_loss(1e9, tokens) - estimated_loss(1e9, 10 * tokens) for tokens in (1e9, 1e10)
    ]
    assert gains[1] / gains[0] == pytest.approx(10**-0.28)


@pytest.mark.parametrize(
    ("parameters", "rate", "sequences"),  # Bi et al. 2024, table 2; 2T tokens, blocks of 4,096
    [(7e9, 4.2e-4, 2304), (67e9, 3.2e-4, 4608)],
)
def test_learning_rates_and_batches_are_those_of_deepseek_s_models(
    parameters: float, rate: float, sequences: int
) -> None:
    flops = 6 * parameters * 2e12
    assert adamw_lr(flops) == pytest.approx(rate, rel=0.02)
    assert batch_tokens(flops) == pytest.approx(sequences * 4096, rel=0.05)


def test_vocabularies_and_contexts_grow_with_the_net() -> None:
    assert [vocabulary_for(size) for size in (1e3, 1.8e6, 1e12)] == [512, 4096, 32768]
    assert [block_size_for(size) for size in (1.8e6, 1.24e8, 1e11)] == [64, 1024, 2048]


@pytest.mark.slow
@pytest.mark.parametrize("vocab_size", [256, None])
def test_a_net_is_ours_and_of_the_size_asked_for(vocab_size: int | None) -> None:
    for size in range(8):  # 30k to 316B
        parameters = 10 ** (4.5 + size)
        ids = vocab_size or vocabulary_for(parameters)
        if parameters > 60 * ids:
            sizes = net_sizes(parameters, ids)
            with torch.device("meta"):
                net = GPT(ids, 8, **sizes)
            count = parameter_count(ids, sizes["n_layer"], sizes["n_embd"])
            assert (
                net.parameter_count()
                == count
                == pytest.approx(parameters, rel=0.15 if size > 1 else 0.25)
            )


@pytest.mark.parametrize(
    ("parameters", "vocab_size", "layers", "heads", "width"),  # published, or our own
    [
        (1_835_136, 4096, 4, 2, 128),  # quickstart's depth and width
        (162e6, 50304, 12, 12, 768),  # GPT-2 small, untied
        (7e9, 32000, 33, 32, 4096),  # Llama 7B has 32 layers and a gated MLP
        (175e9, 50257, 96, 96, 12288),  # GPT-3
        (405e9, 128256, 125, 128, 16384),  # Llama 3 405B has 126 layers
    ],
)
def test_known_sizes_get_about_their_known_shapes(
    parameters: float, vocab_size: int, layers: int, heads: int, width: int
) -> None:
    sizes = net_sizes(parameters, vocab_size)
    assert (sizes["n_head"], sizes["n_embd"]) == (heads, width)
    assert sizes["n_layer"] == pytest.approx(layers, abs=2)


def test_heads_have_64_or_128_channels() -> None:
    for exponent in np.linspace(6, 12, 60).tolist():
        sizes = net_sizes(10**exponent, vocabulary_for(10**exponent))
        assert sizes["n_embd"] / sizes["n_head"] == (128 if sizes["n_embd"] >= 2048 else 64)


def test_a_vocabulary_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no net of 100,000 parameters .* 50,257 ids"):
        net_sizes(1e5, 50257)
