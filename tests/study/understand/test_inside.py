"""Nets made by hand, whose attention, dead units and gradients are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmtemplate.models import GPT, GPT2
from lmtemplate.study.understand.inside import (
    Recorder,
    attention_weights,
    figures_of_layer,
    figures_of_parts,
    layers_of,
    parameters_by_part,
    update_ratios,
)

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


class ByHand(nn.Module):
    """Head 0 attends evenly, head 1 to the token itself; half of the ReLU units are dead."""

    def forward(self, x: Tensor) -> Tensor:
        places = 100 * torch.eye(x.size(1))
        queries = torch.stack((torch.zeros_like(places), places))[None]
        values = x[:, None].expand(-1, 2, -1, -1)
        mixed = F.scaled_dot_product_attention(queries, queries, values, is_causal=True)
        F.relu(torch.cat((x.square(), -x.square()), -1))
        return x + mixed.sum(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.blocks = nn.ModuleList([ByHand()])

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.blocks[0](self.embedding(tokens))
        return out


def gpt() -> GPT:
    torch.manual_seed(0)
    net = GPT(11, 8, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
    nn.init.normal_(net.head.weight)
    return net.eval()


def test_attention_of_a_net_made_by_hand_is_what_was_put_in() -> None:
    net, length = Net(), TOKENS.size(1)
    with Recorder(net) as recorder:
        net(TOKENS)
    (layer,) = recorder.layers
    (attention,) = layer.attention
    even, own = attention.maps
    torch.testing.assert_close(
        even, torch.ones(length, length).tril() / torch.arange(1, 9)[:, None]
    )
    torch.testing.assert_close(own, torch.eye(length))
    figures = figures_of_layer(layer)
    mean = sum(math.log(t) for t in range(2, length + 1)) / (length - 1)
    assert attention.entropy == pytest.approx([mean, 0.0], abs=1e-5)
    assert figures["attention_entropy"] == pytest.approx(mean / 2, abs=1e-5)
    assert figures["attention_uniformity"] == pytest.approx(0.5)
    assert figures["largest_score"] == pytest.approx(100 * 100 / length**0.5)
    assert figures["dead_units"] == 0.5
    assert layer.left is not None
    assert figures["activation_rms"] == pytest.approx(layer.left.square().mean().sqrt().item())


@pytest.mark.parametrize("kind", ["causal", "boolean", "added", "fewer keys and values", "scaled"])
def test_weights_times_values_are_torchs_own_attention(kind: str) -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 4, 6, 8)
    settings: dict[str, object] = {"is_causal": kind != "boolean" and kind != "added"}
    if kind == "boolean":
        settings["attn_mask"] = torch.rand(6, 6) > 0.5 - torch.eye(6)
    elif kind == "added":
        settings["attn_mask"] = torch.randn(6, 6)
    elif kind == "scaled":
        settings["scale"] = 0.5
    elif kind == "fewer keys and values":
        keys, values, settings["enable_gqa"] = keys[:, :2], values[:, :2], True
    expected = F.scaled_dot_product_attention(queries, keys, values, **settings)  # type: ignore[arg-type]
    _, weights = attention_weights(queries, keys, values, **settings)  # type: ignore[arg-type]
    values = values.repeat_interleave(4 // values.size(1), 1)
    torch.testing.assert_close(weights @ values, expected)


def test_looking_changes_neither_logits_nor_random_numbers() -> None:
    net = gpt().train()
    torch.manual_seed(1)
    expected, state = net(TOKENS), torch.get_rng_state()
    torch.manual_seed(1)
    with Recorder(net):
        seen = net(TOKENS)
    assert torch.equal(seen, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in net.modules())


def test_every_parameter_is_in_one_part_and_norms_add_up_to_that_of_the_gradient() -> None:
    net = gpt()
    parts = parameters_by_part(net)
    assert [*parts] == ["embedding", "shift", "blocks.0", "blocks.1", "head"]
    assert sorted(name for names in parts.values() for name in names) == sorted(
        name for name, _ in net.named_parameters()
    )
    net(TOKENS).square().mean().backward()
    whole = nn.utils.clip_grad_norm_(net.parameters(), math.inf)
    norms = [part["gradient_norm"] for part in figures_of_parts(net)]
    assert math.hypot(*norms) == pytest.approx(whole.item(), rel=1e-5)


def test_layers_are_the_outer_list_and_not_experts_inside_of_one() -> None:
    net = GPT2(11, 8, n_layer=2, n_head=2, n_embd=16)
    net.blocks[0].experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))  # type: ignore[union-attr]
    assert [*layers_of(net)] == ["blocks.0", "blocks.1"]
    assert layers_of(nn.Linear(2, 2)) == {}
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(2)))
    whole = nn.Sequential(nn.Embedding(9, 2), layers, nn.Linear(2, 9))
    assert [*layers_of(whole)] == ["1.0", "1.1"]


def test_a_layer_of_another_form_is_looked_at_as_far_as_it_shows() -> None:
    class Odd(nn.Module):
        def forward(self, *, x: Tensor) -> tuple[Tensor]:
            mask = torch.ones(8, 8, dtype=torch.bool).tril(-1)  # its first row sees nothing
            seen = F.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=mask)
            return (F.relu(input=seen - seen),)

    class Stranger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Odd()])

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layers[0](x=x)[0]
            return out

    net = Stranger()
    with Recorder(net) as recorder:
        net(torch.randn(1, 2, 8, 4))
    figures = figures_of_layer(recorder.layers[0])
    assert [*figures] == [
        "attention_entropy",
        "attention_uniformity",
        "largest_score",
        "dead_units",
    ]
    assert figures["dead_units"] == 1.0
    assert 0 < figures["attention_entropy"] < math.log(8)


def test_an_update_of_one_percent_is_one_percent_of_each_part() -> None:
    net = gpt()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(1.02 if name.startswith("blocks.1") else 1.01)
    ratios = update_ratios(net, before, net.state_dict())
    assert ratios.pop("blocks.1") == pytest.approx(0.02, rel=1e-3)
    assert "shift" not in ratios  # it begins at 0: there is no share of it
    assert [*ratios.values()] == pytest.approx([0.01] * 3, rel=1e-3)
