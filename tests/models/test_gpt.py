"""GPT: its formula written out, its first loss, its cost, and a language whose entropy is known."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmtemplate.data.formats.grammar import Grammar
from lmtemplate.data.train_tokenizer import train_tokenizer
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT
from lmtemplate.optimizers import MuonAdamW
from lmtemplate.schedules import WarmupLinear
from tests.data.formats.grammar_entropy import information


@torch.no_grad()
def scramble(net: GPT) -> GPT:
    for parameter in net.parameters():
        parameter.normal_(std=0.2)
    return net.eval()


def norm(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def turn(x: Tensor) -> Tensor:
    """Rotary positions of x (B, H, T, D), by complex multiplication."""
    half = x.size(-1) // 2
    angles = torch.arange(x.size(2))[:, None] * 10_000.0 ** (-torch.arange(half) / half)
    numbers = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat((numbers.real, numbers.imag), dim=-1)


def written_out(weights: dict[str, Tensor], tokens: Tensor, n_layer: int, n_head: int) -> Tensor:
    """The default GPT as a page of formulas, in float64."""
    w = {name: weight.double() for name, weight in weights.items()}

    def heads(x: Tensor, weight: Tensor) -> Tensor:
        return torch.stack((x @ weight.T).chunk(n_head, dim=-1), dim=1)  # (B, H, T, D)

    x = norm(w["embedding.weight"][tokens])
    before = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
    x = x + w["shift.share"] * before if "shift.share" in w else x
    later = torch.ones(tokens.size(1), tokens.size(1), dtype=torch.bool).triu(1)
    for layer in range(n_layer):
        block = f"blocks.{layer}"
        y = norm(x)
        queries, keys, values = (
            heads(y, w[f"{block}.attention.{name}.weight"]) for name in ("query", "key", "value")
        )
        queries, keys = turn(norm(queries)), turn(norm(keys))
        scores = queries @ keys.mT / math.sqrt(queries.size(-1))
        attended = scores.masked_fill(later, -math.inf).softmax(-1) @ values
        together = torch.cat(attended.unbind(1), dim=-1)
        x = x + together @ w[f"{block}.attention.output.weight"].T
        hidden = norm(x) @ w[f"{block}.mlp.up.weight"].T
        x = x + hidden.clamp(min=0) ** 2 @ w[f"{block}.mlp.output.weight"].T
    return 15 * torch.tanh(norm(x) @ w["head.weight"].T / 15)


@pytest.mark.parametrize("token_shift", [True, False])
def test_the_default_equals_its_formula(token_shift: bool) -> None:
    torch.manual_seed(0)
    net = scramble(GPT(41, 12, n_layer=3, n_head=4, n_embd=32, token_shift=token_shift))
    assert ("shift.share" in net.state_dict()) == token_shift
    tokens = torch.randint(41, (2, 12))
    expected = written_out(net.state_dict(), tokens, n_layer=3, n_head=4)
    torch.testing.assert_close(net(tokens), expected.float(), rtol=1e-4, atol=1e-4)


def test_logits_stay_inside_their_cap() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(41, (4, 12))
    capped, free = (GPT(41, 12, n_embd=32, logit_cap=cap) for cap in (5.0, None))
    scramble(free)
    torch.nn.init.normal_(free.head.weight, std=3.0)
    capped.load_state_dict(free.state_dict())
    assert free(tokens).abs().max() > 20
    torch.testing.assert_close(capped.eval()(tokens), 5 * torch.tanh(free(tokens) / 5))


def test_a_tied_head_is_the_embedding() -> None:
    net = GPT(50, 8, n_layer=1, n_embd=16, tied=True)
    apart = GPT(50, 8, n_layer=1, n_embd=16, tied=False)
    assert net.head.weight is net.embedding.weight
    assert apart.parameter_count() - net.parameter_count() == 50 * 16


def test_rotary_wavelengths_follow_their_base() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(41, (1, 12))
    near, far = (scramble(GPT(41, 12, n_embd=32, rope_base=base)) for base in (10.0, 1e6))
    far.load_state_dict(near.state_dict())
    assert not torch.allclose(near(tokens), far(tokens), atol=1e-3)


@pytest.mark.parametrize("n_layer", [1, 12])
def test_at_first_the_residual_stream_is_the_embedding_at_any_depth(n_layer: int) -> None:
    torch.manual_seed(0)
    net = GPT(41, 12, n_layer=n_layer, n_embd=32, logit_cap=None)
    torch.nn.init.normal_(net.head.weight)
    tokens = torch.randint(41, (1, 12))
    expected = norm(net.embedding.weight[tokens]) @ net.head.weight.T
    torch.testing.assert_close(net(tokens), expected, rtol=1e-3, atol=1e-3)


def test_matrices_begin_scaled_by_their_fan_in() -> None:
    torch.manual_seed(0)
    net = GPT(41, 12, n_layer=2, n_head=4, n_embd=256, mlp="swiglu")
    for name in ("attention.query", "attention.key", "attention.value", "mlp.up", "mlp.gate"):
        for block in net.blocks:
            weight: Any = block.get_submodule(name).weight
            assert weight.std().item() == pytest.approx(256**-0.5, rel=0.03)


@pytest.mark.parametrize("n_embd", [64, 768])
def test_the_first_loss_of_a_tied_model_is_the_log_of_the_vocabulary(n_embd: int) -> None:
    torch.manual_seed(0)
    net = GPT(1024, 16, n_layer=1, n_head=4, n_embd=n_embd, tied=True).eval()
    tokens, targets = torch.randint(1024, (2, 64, 16))
    loss = cross_entropy(net(tokens), targets).objective.item()
    assert loss == pytest.approx(math.log(1024), rel=0.01)


def test_parameters_are_as_many_as_counted_by_hand() -> None:
    net = GPT(1024, 256, n_layer=4, n_head=4, n_embd=128)
    matrices = 2 * 1024 * 128 + 4 * (4 * 128**2 + 8 * 128**2)
    assert net.parameter_count() == matrices + 128 == 1_048_704  # 128 of the token shift
    shared = GPT(1024, 256, n_layer=4, n_head=4, n_embd=128, n_kv_head=1)
    assert net.parameter_count() - shared.parameter_count() == 4 * 2 * (128 - 32) * 128


def test_flops_are_as_many_as_counted_by_hand() -> None:
    net = GPT(1024, 256, n_layer=4, n_head=4, n_embd=128)
    matrices = 4 * 12 * 128**2 + 1024 * 128  # blocks and head; the embedding is a look-up
    assert net.flops_per_token() == 6 * matrices + 12 * 4 * 128 * 256 == 7_077_888


@pytest.mark.parametrize(
    "settings", [{}, {"mlp": "swiglu", "n_kv_head": 2}, {"tied": True}], ids=str
)
def test_flops_are_those_that_torch_counts(settings: dict[str, Any]) -> None:
    net = GPT(100, 32, n_layer=3, n_head=4, n_embd=64, **settings)
    tokens = torch.randint(100, (2, 32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net(tokens).sum().backward()
    assert counter.get_total_flops() / tokens.numel() == net.flops_per_token()


def windows(stream: Tensor, block_size: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        first = torch.randint(len(stream) - block_size, (batch_size, 1), generator=generator)
        window = stream[first + torch.arange(block_size + 1)]
        yield window[:, :-1], window[:, 1:]


def train(net: GPT, stream: Tensor, steps: int) -> None:
    optimizer, schedule = MuonAdamW(lr=0.02, adamw_lr=0.03).build(net), WarmupLinear(10)
    peaks = [group["lr"] for group in optimizer.param_groups]
    batches = windows(stream, net.block_size, batch_size=16)
    for step in range(steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule.factor(step, steps)
        inputs, targets = next(batches)
        optimizer.zero_grad()
        cross_entropy(net(inputs), targets).objective.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def loss_over_entropy() -> Callable[[int, int, int], float]:
    """Train a model on the grammar; its loss on other text / the exact information of that text."""
    seen, unseen = list(Grammar(seed=0, documents=8000)), list(Grammar(seed=1, documents=400))
    tokenizer = train_tokenizer("bpe", seen[:2000], 512)

    def stream(documents: list[str]) -> Tensor:
        parts = [np.append(ids, tokenizer.eot_id) for ids in tokenizer.encode(documents)]
        return torch.from_numpy(np.concatenate([[tokenizer.eot_id], *parts]))

    train_stream, val_stream = stream(seen), stream(unseen)
    grammar = Grammar()
    nats = sum(information(grammar, text) for text in unseen)
    entropy = nats / (len(val_stream) - 1)  # nats per token

    def ratio(n_layer: int, block_size: int, steps: int) -> float:
        torch.manual_seed(0)
        net = GPT(tokenizer.vocab_size, block_size, n_layer=n_layer, n_head=4, n_embd=64)
        train(net, train_stream, steps)
        end = (len(val_stream) - 1) // block_size * block_size
        inputs, targets = val_stream[:end], val_stream[1 : end + 1]
        with torch.inference_mode():
            logits = net.eval()(inputs.view(-1, block_size))
            loss = cross_entropy(logits, targets.view(-1, block_size)).objective
        return float(loss) / entropy

    return ratio


@pytest.mark.slow
def test_a_model_reaches_the_entropy_of_a_grammar_and_not_below(
    loss_over_entropy: Callable[[int, int, int], float],
) -> None:
    assert 0.99 < loss_over_entropy(1, 64, 120) < 1.1


@pytest.mark.slow
def test_a_deeper_model_comes_within_two_percent_of_the_entropy(
    loss_over_entropy: Callable[[int, int, int], float],
) -> None:
    assert 0.995 < loss_over_entropy(2, 128, 400) < 1.02
