"""Optimizers against torch's own and a singular value decomposition, and through a file."""

import io
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT, GPT2, LanguageModel
from lmtemplate.optimizers import (
    SGD,
    Adam,
    AdamW,
    MuonAdamW,
    OptimizerRecipe,
    check_moments,
    decay_groups,
    hidden_matrices,
)
from tests.test_muon import muon

VOCABULARY, BLOCK = 31, 8

RECIPES: list[OptimizerRecipe] = [AdamW(), Adam(), SGD(), MuonAdamW()]
NETS: dict[str, Callable[[], LanguageModel]] = {
    "gpt": lambda: GPT(VOCABULARY, BLOCK, n_layer=2, n_head=2, n_embd=16),
    "tied": lambda: GPT(VOCABULARY, BLOCK, n_layer=2, n_head=2, n_embd=16, tied=True),
    "gpt2": lambda: GPT2(VOCABULARY, BLOCK, n_layer=2, n_head=2, n_embd=16),
}
every_net = pytest.mark.parametrize("build", NETS.values(), ids=NETS)
every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: type(r).__name__)


def gradients_of(net: LanguageModel, seed: int = 0) -> None:
    """Fill the gradients, the same for the same seed."""
    tokens, targets = torch.randint(
        VOCABULARY, (2, 4, BLOCK), generator=torch.Generator().manual_seed(seed)
    )
    net.zero_grad()
    cross_entropy(net(tokens), targets).objective.backward()


def flat(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


@every_net
@every_recipe
def test_every_parameter_is_in_exactly_one_group_with_a_name_of_its_own(
    build: Callable[[], LanguageModel], recipe: OptimizerRecipe
) -> None:
    net = build()
    optimizer = recipe.build(net)
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    assert set(counts.values()) == {1}
    assert set(counts) == {id(p) for p in net.parameters()}
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == len(names)


@every_net
@pytest.mark.parametrize(
    "recipe",
    [
        AdamW(weight_decay=0.3),
        SGD(weight_decay=0.3),
        MuonAdamW(weight_decay=0.3, adamw_weight_decay=0.3),
    ],
    ids=lambda r: type(r).__name__,
)
def test_all_matrices_decay_and_no_vector_does(
    build: Callable[[], LanguageModel], recipe: OptimizerRecipe
) -> None:
    for group in recipe.build(build()).param_groups:
        expected = {0.3 if parameter.dim() >= 2 else 0.0 for parameter in group["params"]}
        assert {group["weight_decay"]} == expected


@every_recipe
def test_frozen_parameters_are_left_out(recipe: OptimizerRecipe) -> None:
    net = NETS["gpt"]()
    net.get_submodule("embedding").requires_grad_(False)
    optimizer = recipe.build(net)
    left = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert left == net.parameter_count() == sum(p.numel() for p in net.parameters()) - 31 * 16


def test_empty_groups_are_left_out() -> None:
    assert [g["name"] for g in decay_groups([nn.Parameter(torch.zeros(2, 2))], 0.1)] == ["decay"]


def stock_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = list(net.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


STOCK: list[tuple[OptimizerRecipe, Callable[[nn.Module], torch.optim.Optimizer]]] = [
    (
        AdamW(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2),
        lambda net: torch.optim.AdamW(
            stock_groups(net, 0.2), lr=0.01, betas=(0.8, 0.9), eps=1e-6, fused=False
        ),
    ),
    (
        Adam(lr=0.01, betas=(0.8, 0.9), eps=1e-6),
        lambda net: torch.optim.Adam(
            net.parameters(), lr=0.01, betas=(0.8, 0.9), eps=1e-6, fused=False
        ),
    ),
    (
        SGD(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.2),
        lambda net: torch.optim.SGD(stock_groups(net, 0.2), lr=0.1, momentum=0.8, nesterov=True),
    ),
    (SGD(lr=0.1, momentum=0.0), lambda net: torch.optim.SGD(net.parameters(), lr=0.1)),
]


@pytest.mark.parametrize(("recipe", "stock"), STOCK, ids=["adamw", "adam", "sgd", "descent"])
def test_updates_are_those_of_torch(
    recipe: OptimizerRecipe, stock: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    torch.manual_seed(0)
    ours, theirs = NETS["gpt2"](), NETS["gpt2"]()
    theirs.load_state_dict(ours.state_dict())
    our_optimizer, their_optimizer = recipe.build(ours), stock(theirs)
    for step in range(5):
        gradients_of(ours, step)
        gradients_of(theirs, step)
        our_optimizer.step()
        their_optimizer.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-5, atol=1e-6)


def test_muon_leaves_the_gradients_as_they_were() -> None:
    net = NETS["gpt2"]()
    optimizer = muon(net)
    gradients_of(net)
    before = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    optimizer.step()
    after = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(map(torch.equal, before, after))


@every_net
def test_the_adamw_part_of_muon_is_that_of_torch(build: Callable[[], LanguageModel]) -> None:
    torch.manual_seed(0)
    ours, theirs = build(), build()
    theirs.load_state_dict(ours.state_dict())
    optimizer = muon(ours, adamw_lr=0.01, adamw_weight_decay=0.2)
    stock = torch.optim.AdamW(
        stock_groups(theirs, 0.2), lr=0.01, betas=(0.8, 0.95), eps=1e-10, fused=True
    )
    hidden = {id(p) for p in hidden_matrices(ours)}
    for step in range(4):
        gradients_of(ours, step)
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.grad = None if mine.grad is None else mine.grad.clone()
        optimizer.step()
        stock.step()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if id(mine) not in hidden:
            assert torch.equal(mine, other), name


@every_net
def test_muon_takes_the_matrices_between_embedding_and_head(
    build: Callable[[], LanguageModel],
) -> None:
    net = build()
    taken = {id(p) for p in hidden_matrices(net)}
    for name, parameter in net.named_parameters():
        assert (id(parameter) in taken) == (parameter.dim() == 2 and "blocks" in name), name


def test_a_hidden_layer_as_wide_as_the_vocabulary_is_still_muons() -> None:
    net = GPT(vocab_size=64, block_size=BLOCK, n_layer=1, n_head=2, n_embd=16)
    taken = {id(p) for p in hidden_matrices(net)}
    assert net.blocks[0].mlp.up.weight.shape == net.head.weight.shape
    assert {name for name, p in net.named_parameters() if id(p) in taken} == {
        name for name, _ in net.named_parameters() if name.startswith("blocks.")
    }


def test_a_net_without_hidden_matrices_is_all_adamws() -> None:
    class Bigram(LanguageModel):
        def __init__(self) -> None:
            super().__init__(VOCABULARY, BLOCK)
            self.table = nn.Embedding(VOCABULARY, VOCABULARY)

        def forward(self, tokens: Tensor, caches: None = None) -> Tensor:
            return self.table(tokens)

    net = Bigram()
    optimizer = MuonAdamW().build(net)
    assert [group["algorithm"] for group in optimizer.param_groups] == ["adamw"]
    gradients_of(net)
    optimizer.step()


def test_parameters_without_a_gradient_stay_where_they_are() -> None:
    net = NETS["gpt"]()
    optimizer = muon(net, weight_decay=0.5, adamw_weight_decay=0.5)
    before = flat(net)
    optimizer.step()
    assert torch.equal(flat(net), before)


def test_a_closure_is_evaluated_with_gradients() -> None:
    net = NETS["gpt"]()
    optimizer = muon(net)

    def closure() -> float:
        assert torch.is_grad_enabled()
        gradients_of(net)
        return 1.5

    before = flat(net)
    assert optimizer.step(closure) == 1.5
    assert not torch.equal(flat(net), before)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("build", "recipe"),
    [*((NETS["gpt"], recipe) for recipe in RECIPES), (NETS["tied"], RECIPES[-1])],
    ids=lambda one: type(one).__name__,
)
def test_a_state_restored_from_a_file_goes_on_to_the_bit(
    build: Callable[[], LanguageModel], recipe: OptimizerRecipe
) -> None:
    torch.manual_seed(0)
    net = build()
    optimizer = recipe.build(net)
    for step in range(3):
        gradients_of(net, step)
        optimizer.step()
    other = build()
    other.load_state_dict(net.state_dict())
    resumed = recipe.build(other)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for step in range(3, 6):
        for each, its_optimizer in ((net, optimizer), (other, resumed)):
            gradients_of(each, step)
            its_optimizer.step()
    assert torch.equal(flat(net), flat(other))


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.items() for part in item for leaf in leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


@every_recipe
def test_an_optimizer_saves_tensors_and_plain_types(recipe: OptimizerRecipe) -> None:
    net = NETS["gpt2"]()
    optimizer = recipe.build(net)
    gradients_of(net)
    optimizer.step()
    kinds = {type(leaf) for leaf in leaves(optimizer.state_dict())}
    assert kinds <= {Tensor, str, int, float, bool, type(None)}


@every_recipe
def test_learning_rates_act_through_the_groups(recipe: OptimizerRecipe) -> None:
    net = NETS["gpt"]()
    optimizer = recipe.build(net)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    gradients_of(net)
    before = flat(net)
    optimizer.step()
    assert torch.equal(flat(net), before)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (AdamW, "weight_decay"),
        (SGD, "weight_decay"),
        (MuonAdamW, "weight_decay"),
        (MuonAdamW, "adamw_weight_decay"),
    ],
)
def test_a_negative_weight_decay_is_refused_by_name(recipe: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.optimizer\.{name}=-1 has to be 0 or more"):
        recipe(**{name: -1})


def test_lightning_may_clip_gradients_that_are_scaled_for_float16() -> None:
    """It refuses to clip for an optimizer that unscales them itself, as torch's fused ones do."""
    from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling

    net = nn.ParameterList([nn.Parameter(torch.ones(2, 2))])
    assert _optimizer_handles_unscaling(torch.optim.AdamW(net.parameters(), fused=True))
    assert not _optimizer_handles_unscaling(AdamW(1e-3).build(net))


MOMENTS: dict[str, tuple[str, Tensor]] = {
    "too short": ("exp_avg", torch.zeros(3)),
    "one number, repeated": ("exp_avg_sq", torch.zeros(1, 1).expand(4, 4)),
    "no step": ("step", torch.zeros(0)),
    "a sparse step": ("step", torch.ones(1).to_sparse()),
    "a sparse moment of another name": ("own", torch.ones(1).to_sparse()),
}


@pytest.mark.parametrize(("name", "value"), MOMENTS.values(), ids=MOMENTS)
def test_a_moment_that_a_fused_step_would_write_beyond_is_refused(name: str, value: Tensor) -> None:
    """Not stepped here: that would damage the memory of this process."""
    net = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    check_moments(optimizer)
    saved = optimizer.state_dict()
    saved["state"][0][name] = value
    optimizer.load_state_dict(saved)
    with pytest.raises(CheckpointError, match=f"wrong {name}"):
        check_moments(optimizer)


ODD = (torch.complex64, torch.uint16, torch.float8_e4m3fn)
STEPS = [*(torch.ones((), dtype=dtype) for dtype in ODD), torch.ones((), device="meta")]


@pytest.mark.parametrize("value", STEPS, ids=lambda one: f"{one.dtype} {one.device}")
def test_a_count_that_no_save_can_look_at_is_refused(value: Tensor) -> None:
    """SGD has none, so torch hands it on as it is."""
    net = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["step"] = value
    optimizer.load_state_dict(saved)
    with pytest.raises(CheckpointError, match="wrong step"):
        check_moments(optimizer)
