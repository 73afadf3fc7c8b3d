"""The bricks against formulas: attention, positions, heads, nonlinearities."""

import math

import pytest
import torch
from torch import Tensor

from lmtemplate.errors import ConfigError
from lmtemplate.models.layers import (
    MLP,
    Activation,
    Attention,
    KVCache,
    Rotary,
    TokenCache,
    TokenShift,
    causal_attention,
    check_sizes,
    rms_norm,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def einsum_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(QK' / sqrt(D)) V with -inf above the diagonal, in float64; all (B, H, T, D)."""
    queries, keys, values = queries.double(), keys.double(), values.double()
    scores = torch.einsum("bhtd,bhsd->bhts", queries, keys) / math.sqrt(queries.size(-1))
    time = torch.arange(keys.size(2))
    first = keys.size(2) - queries.size(2)
    later = time[None, :] > first + torch.arange(queries.size(2))[:, None]
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return torch.einsum("bhts,bhsd->bhtd", weights, values)


@pytest.mark.parametrize(("new", "known"), [(9, 9), (1, 1), (1, 9), (4, 9), (8, 9)])
def test_attention_equals_an_einsum(new: int, known: int) -> None:
    queries, keys, values = draw(2, 3, new, 8), draw(2, 3, known, 8, seed=1), draw(2, 3, known, 8)
    attended = causal_attention(queries, keys, values, dropout=0.0)
    expected = einsum_attention(queries, keys, values).float()
    torch.testing.assert_close(attended, expected, rtol=1e-5, atol=1e-6)


def test_attention_keeps_the_type_it_was_given() -> None:
    x = draw(1, 2, 5, 8).bfloat16()
    assert causal_attention(x, x, x, dropout=0.0).dtype == torch.bfloat16


def test_attention_averages_values_where_all_keys_are_alike() -> None:
    queries, keys, values = draw(1, 1, 6, 4), torch.zeros(1, 1, 6, 4), draw(1, 1, 6, 4, seed=1)
    means = values.cumsum(2) / torch.arange(1, 7)[:, None]
    torch.testing.assert_close(causal_attention(queries, keys, values, 0.0), means)


def rotated(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Channels d and d + D/2 as a complex number, times exp(i position base^(-2d/D)); float64."""
    half = x.size(-1) // 2
    numbers = torch.complex(x[..., :half].double(), x[..., half:].double())
    wavelengths = base ** (-2 * torch.arange(half, dtype=torch.float64) / x.size(-1))
    turned = numbers * torch.exp(1j * positions[:, None] * wavelengths)
    return torch.cat((turned.real, turned.imag), dim=-1)


@pytest.mark.parametrize("base", [10_000.0, 100.0])
@pytest.mark.parametrize("first", [0, 13])
def test_rotary_is_multiplication_by_complex_phases(base: float, first: int) -> None:
    x = draw(2, 3, 20, 8)
    expected = rotated(x, torch.arange(first, first + 20), base)
    turned = Rotary(8, 40, base)(x, first)
    torch.testing.assert_close(turned, expected.float(), rtol=0, atol=2e-6)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    rotary = Rotary(16, 512, 10_000.0)
    query, key = draw(1, 1, 1, 16), draw(1, 1, 1, 16, seed=1)

    def score(query_at: int, key_at: int) -> float:
        return float((rotary(query, query_at) * rotary(key, key_at)).sum())

    for distance in (0, 1, 7, 100):
        scores = [score(start + distance, start) for start in (0, 1, 50, 400)]
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-4)
    assert score(100, 0) != pytest.approx(score(0, 0), abs=1e-2)


def test_rotary_keeps_lengths_and_leaves_the_first_position_alone() -> None:
    x = draw(2, 2, 30, 8)
    turned = Rotary(8, 30, 10_000.0)(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_rotary_tables_are_no_part_of_a_checkpoint() -> None:
    assert not Rotary(8, 16, 10_000.0).state_dict()


def test_odd_heads_cannot_be_rotated() -> None:
    with pytest.raises(ConfigError, match="n_embd / n_head = 5 is odd"):
        Rotary(5, 16, 10_000.0)


@pytest.mark.parametrize(("qk_norm", "bias"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("positions", [False, True])
def test_the_attention_layer_equals_its_formula(qk_norm: bool, bias: bool, positions: bool) -> None:
    torch.manual_seed(0)
    rotary = Rotary(8, 12, 10_000.0) if positions else None
    layer = Attention(32, 4, 4, 0.0, bias=bias, qk_norm=qk_norm, rotary=rotary)
    x = draw(2, 12, 32)

    def project(name: str) -> Tensor:
        linear = layer.get_submodule(name)
        flat = torch.einsum("btc,oc->bto", x.double(), linear.weight.double())
        flat = flat if linear.bias is None else flat + linear.bias.double()
        return torch.stack(flat.split(8, dim=-1), dim=1)  # (B, H, T, D)

    queries, keys, values = project("query"), project("key"), project("value")
    if qk_norm:
        queries = queries / queries.square().mean(-1, keepdim=True).sqrt()
        keys = keys / keys.square().mean(-1, keepdim=True).sqrt()
    if positions:
        queries, keys = (rotated(x, torch.arange(12), 10_000.0) for x in (queries, keys))
    heads = torch.cat(einsum_attention(queries, keys, values).unbind(1), dim=-1)
    expected = heads @ layer.output.weight.double().T
    expected = expected + layer.output.bias.double() if bias else expected
    torch.testing.assert_close(layer(x), expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
def test_grouped_queries_equal_full_heads_with_shared_weights(n_kv_head: int) -> None:
    grouped = Attention(32, 8, n_kv_head, 0.0, qk_norm=True, rotary=Rotary(4, 10, 10_000.0))
    full = Attention(32, 8, 8, 0.0, qk_norm=True, rotary=Rotary(4, 10, 10_000.0))
    weights = dict(grouped.state_dict())
    for name in ("key.weight", "value.weight"):
        per_head = weights[name].view(n_kv_head, 4, 32)
        weights[name] = per_head.repeat_interleave(8 // n_kv_head, dim=0).reshape(32, 32)
    full.load_state_dict(weights)
    x = draw(2, 10, 32)
    torch.testing.assert_close(grouped(x), full(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_kv_head", [1, 2, 8])
def test_shared_heads_have_fewer_weights(n_kv_head: int) -> None:
    layer = Attention(32, 8, n_kv_head, 0.0)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 32 * 32 + 2 * 32 * n_kv_head * 4


def test_attention_drops_weights_in_training_alone() -> None:
    layer, x = Attention(16, 2, 2, 0.5), draw(1, 8, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_a_cache_returns_everything_it_was_given() -> None:
    cache, keys, values = KVCache(10), draw(2, 3, 9, 4), draw(2, 3, 9, 4)
    for start, end in ((0, 4), (4, 5), (5, 9)):
        known = cache.extend(keys[:, :, start:end], values[:, :, start:end])
        assert torch.equal(known[0], keys[:, :, :end])
        assert torch.equal(known[1], values[:, :, :end])
    assert cache.length == 9


def test_a_cache_has_the_type_of_the_weights() -> None:
    layer, cache = Attention(8, 2, 2, 0.0).to(torch.bfloat16), KVCache(4)
    layer(draw(1, 1, 8).to(torch.bfloat16), cache)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16


def by_hand(activation: str, layer: MLP, x: Tensor) -> Tensor:
    hidden = x @ layer.up.weight.T
    if activation == "relu2":
        hidden = torch.where(hidden > 0, hidden * hidden, 0.0)
    elif activation == "gelu":
        inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + torch.tanh(inner))
    else:
        assert layer.gate is not None
        gate = x @ layer.gate.weight.T
        hidden = gate / (1 + torch.exp(-gate)) * hidden
    return hidden @ layer.output.weight.T


@pytest.mark.parametrize("activation", ["relu2", "gelu", "swiglu"])
def test_an_mlp_equals_its_formula(activation: Activation) -> None:
    torch.manual_seed(0)
    layer, x = MLP(24, activation), draw(2, 5, 24) * 3
    torch.testing.assert_close(layer(x), by_hand(activation, layer, x), rtol=1e-4, atol=1e-5)


def test_all_nonlinearities_have_about_as_many_weights() -> None:
    counts = [
        sum(p.numel() for p in MLP(96, activation).parameters())
        for activation in ("relu2", "gelu", "swiglu")
    ]
    assert counts == [8 * 96**2] * 3


def test_an_mlp_has_biases_where_asked() -> None:
    assert {n for n, _ in MLP(8, "gelu", bias=True).named_parameters() if "bias" in n} == {
        "up.bias",
        "output.bias",
    }


def shift_of(share: Tensor) -> TokenShift:
    shift = TokenShift(len(share))
    shift.load_state_dict({"share": share})
    return shift


@torch.no_grad()
def test_a_token_shift_adds_a_share_of_the_token_before() -> None:
    x, share = draw(2, 7, 5), draw(5, seed=1)
    shifted = shift_of(share)(x)
    for channel in range(5):
        for time in range(7):
            before = x[:, time - 1, channel] if time else torch.zeros(2)
            expected = x[:, time, channel] + share[channel] * before
            torch.testing.assert_close(shifted[:, time, channel], expected)


def test_a_token_shift_begins_by_changing_nothing() -> None:
    shift, x = TokenShift(5), draw(2, 7, 5)
    assert torch.equal(shift(x), x)
    assert [(name, tuple(p.shape)) for name, p in shift.named_parameters()] == [("share", (5,))]


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 1, 3]], ids=str)
@torch.no_grad()
def test_a_token_shift_in_chunks_equals_all_at_once(chunks: list[int]) -> None:
    shift, x, cache = shift_of(draw(5, seed=1)), draw(2, 7, 5), TokenCache()
    parts = [shift(part, cache) for part in x.split(chunks, dim=1)]
    assert torch.equal(torch.cat(parts, dim=1), shift(x))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((130, 4, 4), r"n_embd=130 .*n_head=4; nearest n_embd that is: 128, 132"),
        ((3, 4, 4), r"nearest n_embd that is: 4"),
        ((128, 4, 3), r"n_head=4 .*n_kv_head=3"),
    ],
)
def test_heads_that_do_not_share_out_evenly_are_refused(
    sizes: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sizes(*sizes)


@pytest.mark.parametrize("name", ["rms_norm", "relu2"])
def test_gradients_written_by_hand_are_those_of_autograd_and_so_are_theirs(name: str) -> None:
    """Second derivatives are what the sharpness of a loss is measured with."""
    layer = MLP(4, "relu2").double()
    x = torch.linspace(-2, 2.1, 24, dtype=torch.float64).view(2, 3, 4).requires_grad_()
    function = {"rms_norm": rms_norm, "relu2": layer}[name]
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,))


def test_rms_norm_is_that_of_torch() -> None:
    for x in (draw(2, 3, 8) * 30, draw(2, 3, 8) * 1e-3, torch.zeros(1, 8)):
        torch.testing.assert_close(rms_norm(x), torch.nn.functional.rms_norm(x, (8,)))
