"""GPT-2 to the letter: its formula written out, and the published model's size and cost."""

import math

import pytest
import torch
from torch import Tensor

from lmtemplate.models import GPT2


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def written_out(weights: dict[str, Tensor], tokens: Tensor, n_layer: int, n_head: int) -> Tensor:
    """GPT-2 as a page of formulas, in float64."""
    w = {name: weight.double() for name, weight in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def heads(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(n_head, dim=-1), dim=1)  # (B, H, T, D)

    x = w["embedding.weight"][tokens] + w["positions.weight"][: tokens.size(1)]
    later = torch.ones(tokens.size(1), tokens.size(1), dtype=torch.bool).triu(1)
    for layer in range(n_layer):
        block = f"blocks.{layer}"
        y = norm(f"{block}.norm_1", x)
        queries, keys, values = (
            heads(linear(f"{block}.attention.{name}", y)) for name in ("query", "key", "value")
        )
        scores = queries @ keys.mT / math.sqrt(queries.size(-1))
        attended = scores.masked_fill(later, -math.inf).softmax(-1) @ values
        x = x + linear(f"{block}.attention.output", torch.cat(attended.unbind(1), dim=-1))
        hidden = gelu(linear(f"{block}.mlp.up", norm(f"{block}.norm_2", x)))
        x = x + linear(f"{block}.mlp.output", hidden)
    return norm("norm", x) @ w["embedding.weight"].T


def test_gpt2_equals_its_formula() -> None:
    torch.manual_seed(0)
    net = GPT2(41, 12, n_layer=3, n_head=4, n_embd=32).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(41, (2, 9))
    expected = written_out(net.state_dict(), tokens, n_layer=3, n_head=4)
    torch.testing.assert_close(net(tokens), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def published() -> GPT2:
    """The smallest published size, without memory for its weights."""
    with torch.device("meta"):
        return GPT2(50257, 1024)


def test_the_defaults_are_the_published_124m(published: GPT2) -> None:
    assert published.parameter_count() == 124_439_808


def test_flops_of_the_124m_are_as_many_as_counted_by_hand(published: GPT2) -> None:
    matrices_and_vectors = 124_439_808 - 1024 * 768  # positions are looked up, the tied head is not
    attention = 12 * 12 * 768 * 1024
    assert published.flops_per_token() == 6 * matrices_and_vectors + attention == 855_166_464


def test_weights_begin_as_published() -> None:
    torch.manual_seed(0)
    net = GPT2(500, 64, n_layer=8, n_head=4, n_embd=128)
    for name, weight in net.named_parameters():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        else:
            scale = 0.02 / math.sqrt(2 * 8) if "output" in name else 0.02
            assert weight.std().item() == pytest.approx(scale, rel=0.03), name


def test_nanogpts_variant_has_no_bias_and_the_exact_gelu() -> None:
    torch.manual_seed(0)
    net = GPT2(41, 12, n_layer=1, n_head=2, n_embd=8, mlp="exact_gelu", bias=False)
    assert not any("bias" in name for name, _ in net.named_parameters())
    x = torch.linspace(-3, 3, 16).view(2, 8)
    mlp = net.blocks[0].mlp
    expected = torch.nn.functional.gelu(mlp.up(x)) @ mlp.output.weight.T
    torch.testing.assert_close(mlp(x), expected)
