"""The contract: what every architecture keeps, whatever is inside."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lmtemplate.errors import ConfigError
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT, GPT2, LanguageModel
from lmtemplate.models.layers import KVCache

VOCABULARY, BLOCK = 37, 16
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 32}

Build = Callable[..., LanguageModel]


def of(architecture: type[LanguageModel], **settings: object) -> Build:
    standard = {"vocab_size": VOCABULARY, "block_size": BLOCK, **SIZES, **settings}
    return lambda **more: architecture(**{**standard, **more})


ARCHITECTURES = {
    "relu2": of(GPT),
    "grouped": of(GPT, n_kv_head=2, mlp="gelu"),
    "one_kv_head": of(GPT, n_kv_head=1, mlp="swiglu"),
    "tied": of(GPT, tied=True),
    "plain": of(GPT, qk_norm=False, logit_cap=None, token_shift=False),
    "gpt2": of(GPT2),
}

kinds = ["relu2", "one_kv_head", "gpt2"]
some_architectures = pytest.mark.parametrize("build", map(ARCHITECTURES.get, kinds), ids=kinds)
every_architecture = pytest.mark.parametrize("build", ARCHITECTURES.values(), ids=ARCHITECTURES)


@torch.no_grad()
def scrambled(net: LanguageModel) -> LanguageModel:
    """Every parameter drawn anew: a head that begins at zero would hide whatever is before it."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return net.eval()


def random_tokens(*shape: int, seed: int = 2) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@every_architecture
def test_logits_have_one_row_per_token(build: Build) -> None:
    assert build()(random_tokens(3, 11)).shape == (3, 11, VOCABULARY)


@every_architecture
def test_future_tokens_cannot_change_past_logits(build: Build) -> None:
    net, tokens, changed = scrambled(build()), random_tokens(2, BLOCK), 5
    others = tokens.clone()
    others[:, changed:] = (others[:, changed:] + 1) % VOCABULARY
    before, after = net(tokens), net(others)
    torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, changed:], before[:, changed:], atol=1e-3)


@every_architecture
def test_no_gradient_flows_from_a_logit_to_a_later_token(build: Build) -> None:
    net, place = scrambled(build()), 5
    embedding = net.get_submodule("embedding")
    seen: list[Tensor] = []
    embedding.register_forward_hook(lambda _m, _i, output: seen.append(output) or None)
    logits = net(random_tokens(1, BLOCK))
    (gradient,) = torch.autograd.grad(logits[0, place].sum(), seen[0])
    assert gradient[0, : place + 1].abs().amax(-1).min() > 0
    assert gradient[0, place + 1 :].abs().max() == 0


@every_architecture
def test_a_sequence_does_not_depend_on_its_neighbours_in_the_batch(build: Build) -> None:
    net, tokens = scrambled(build()), random_tokens(4, BLOCK)
    torch.testing.assert_close(net(tokens)[2:3], net(tokens[2:3]), rtol=0, atol=1e-5)


@every_architecture
@pytest.mark.parametrize("chunks", [[1] * 16, [7, 1, 8]], ids=str)
@torch.no_grad()
def test_a_cache_gives_the_same_logits_as_reading_all_again(
    build: Build, chunks: list[int]
) -> None:
    net, tokens = scrambled(build()), random_tokens(2, BLOCK)
    caches = net.new_caches(2)
    parts = [net(part, caches) for part in tokens.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), net(tokens), rtol=0, atol=1e-5)


@every_architecture
def test_a_new_cache_is_as_long_as_a_block(build: Build) -> None:
    net = build()
    caches = net.new_caches(3)
    net(random_tokens(3, 1), caches)
    assert caches is not None
    layers = [cache for cache in caches if isinstance(cache, KVCache)]
    assert len(layers) == SIZES["n_layer"]
    assert {cache.keys.shape[2] for cache in layers} == {BLOCK}
    assert {cache.keys.shape[0] for cache in layers} == {3}


@every_architecture
def test_the_first_loss_is_the_log_of_the_vocabulary(build: Build) -> None:
    torch.manual_seed(0)
    net = build(vocab_size=500).eval()
    tokens, targets = torch.randint(500, (2, 64, BLOCK))
    loss = cross_entropy(net(tokens), targets).objective.item()
    assert loss == pytest.approx(math.log(500), rel=0.01)


@some_architectures
def test_one_batch_is_memorised(build: Build) -> None:
    torch.manual_seed(0)
    net, tokens = build(), random_tokens(4, BLOCK + 1, seed=3)
    assert len(set(tokens[:, 0].tolist())) == 4  # else the second token could not be known
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03, fused=True)
    for _ in range(25):
        loss = cross_entropy(net(tokens[:, :-1]), tokens[:, 1:]).objective
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@every_architecture
def test_every_parameter_learns(build: Build) -> None:
    net = scrambled(build())
    logits = net(random_tokens(4, BLOCK))
    cross_entropy(logits, random_tokens(4, BLOCK, seed=3)).objective.backward()
    idle = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # what all keys have in common, softmax does not see: their bias has no gradient but rounding
    assert all(name.endswith("key.bias") for name in idle)


@pytest.mark.parametrize("architecture", [GPT, GPT2])
def test_gradient_checkpointing_changes_no_gradient(architecture: type[LanguageModel]) -> None:
    def gradients(**more: object) -> list[Tensor]:
        net = scrambled(of(architecture, dropout=0.1, **more)()).train()
        torch.manual_seed(0)  # of the dropout
        tokens = random_tokens(2, BLOCK)
        cross_entropy(net(tokens), tokens).objective.backward()
        return [p.grad for p in net.parameters() if p.grad is not None]

    kept, recomputed = gradients(), gradients(gradient_checkpointing=True)
    assert len(kept) == len(recomputed) > 0
    assert all(map(torch.equal, kept, recomputed))


@every_architecture
def test_dropout_acts_in_training_alone(build: Build) -> None:
    net, tokens = scrambled(build(dropout=0.5)), random_tokens(2, BLOCK)
    same = scrambled(build(dropout=0.0))
    assert torch.equal(net(tokens), same(tokens))
    net.train()
    assert not torch.allclose(net(tokens), net(tokens), atol=1e-3)


@every_architecture
def test_training_without_dropout_is_evaluation(build: Build) -> None:
    net, tokens = scrambled(build()), random_tokens(2, BLOCK)
    evaluated = net(tokens)
    assert torch.equal(net.train()(tokens), evaluated)


@every_architecture
def test_the_same_seed_gives_the_same_weights(build: Build) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build().parameters())

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


@every_architecture
def test_bfloat16_changes_little(build: Build) -> None:
    net, tokens = scrambled(build()), random_tokens(2, BLOCK)
    exact = net(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = net(tokens)
    assert (rounded.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("architecture", [GPT, GPT2])
def test_a_width_that_the_heads_cannot_share_names_those_they_can(
    architecture: type[LanguageModel],
) -> None:
    with pytest.raises(ConfigError, match=r"n_embd=130 .* model.net.n_head=4; .*: 128, 132"):
        architecture(VOCABULARY, BLOCK, n_layer=1, n_head=4, n_embd=130)


class Bigram(LanguageModel):
    def __init__(self, vocab_size: int, block_size: int) -> None:
        super().__init__(vocab_size, block_size)
        self.table = nn.Embedding(vocab_size, vocab_size)
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)

    def forward(self, tokens: Tensor, caches: None = None) -> Tensor:
        return self.table(tokens)


def test_a_subclass_needs_no_more_than_forward() -> None:
    net = Bigram(VOCABULARY, BLOCK)
    assert net(random_tokens(2, 3)).shape == (2, 3, VOCABULARY)
    assert net.new_caches(1) is None


def test_frozen_parameters_are_not_counted() -> None:
    assert Bigram(VOCABULARY, BLOCK).parameter_count() == VOCABULARY**2


def test_flops_are_six_per_parameter_unless_a_subclass_says_otherwise() -> None:
    assert Bigram(VOCABULARY, BLOCK).flops_per_token() == 6 * VOCABULARY**2


def test_the_base_class_alone_computes_nothing() -> None:
    with pytest.raises(NotImplementedError):
        LanguageModel(VOCABULARY, BLOCK)(random_tokens(1, 2))
