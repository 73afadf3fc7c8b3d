"""A step walked through: what is computed by hand is what autograd and the optimizers of torch do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmtemplate.models.base import LanguageModel
from lmtemplate.muon import MuonAdamWOptimizer
from lmtemplate.optimizers import SGD, Adam, AdamW, MuonAdamW, OptimizerRecipe
from lmtemplate.study.understand.one_step import explain_step
from tests.study.understand.test_forward import trained

IDS = [3, 17, 4, 4, 29, 11, 0, 48, 17, 4]
RECIPES = {
    "MuonAdamW": MuonAdamW(weight_decay=0.1, adamw_weight_decay=0.1),
    "AdamW": AdamW(),
    "Adam": Adam(),
    "SGD": SGD(weight_decay=0.1),
}


def built(recipe: OptimizerRecipe, net: LanguageModel) -> torch.optim.Optimizer:
    optimizer = recipe.build(net)
    if isinstance(optimizer, MuonAdamWOptimizer):
        optimizer.matmul_dtype = torch.float32
    return optimizer


def explained(net: LanguageModel, recipe: OptimizerRecipe, steps: int = 2, **more: Any) -> Any:
    optimizer = built(recipe, net)
    for _ in range(steps):  # the first from empty moments, the last from those of the others
        found = explain_step(net, IDS, optimizer, str, **more)
    return found


@pytest.mark.parametrize(
    ("name", "recipe"), [*(("GPT", recipe) for recipe in RECIPES), ("GPT2", "MuonAdamW")]
)
def test_every_number_by_hand_is_the_one_of_torch(name: str, recipe: str) -> None:
    found = explained(trained(name), RECIPES[recipe])
    assert found["by_hand"]
    assert all(row["known"] for row in found["updates"])
    assert {"measured slopes", "gradient at the logits", "weights after the step"} <= {
        *found["differences"]
    }
    assert found["largest_difference"] == max(found["differences"].values()) < 1e-5


def test_matrices_without_a_gradient_are_shown_too() -> None:
    net: Any = trained("GPT")
    with torch.no_grad():  # as in a new net: nothing comes back through it
        net.head.weight.zero_()
    found = explained(net, RECIPES["MuonAdamW"], steps=1)
    numbers = found["updates"][0]["values"]
    assert numbers["ahead_largest"] == numbers["largest"] == 0
    assert found["largest_difference"] < 1e-5


def test_the_loss_is_the_mean_over_the_places_and_perplexity_its_power() -> None:
    found = explained(trained("GPT"), AdamW(), steps=1)
    losses = [-math.log(row["p"]) for row in found["predictions"]]
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert [row["next"] for row in found["predictions"]] == list(map(str, IDS[1:]))


def test_a_token_that_was_thought_impossible_has_a_finite_loss() -> None:
    net: Any = Pairs().eval()
    with torch.no_grad():
        net.table.weight[3, 5] = 200.0  # after 3 comes 17, with a probability of e^-200
    found = explained(net, AdamW(), steps=1)
    assert found["predictions"][0]["loss"] == pytest.approx(200, abs=5)
    assert found["largest_difference"] < 1e-5


def test_the_gradient_is_shown_where_the_loss_is_largest_and_adds_up_to_0() -> None:
    found = explained(trained("GPT"), AdamW(), steps=1)
    gradient, losses = found["logit_gradient"], [row["loss"] for row in found["predictions"]]
    assert losses[gradient["place"]] == max(losses)
    row = gradient["rows"][0]
    assert (row["token"], row["onehot"]) == (found["tokens"][gradient["place"] + 1], True)
    assert row["gradient"] == pytest.approx(row["p"] - 1)
    assert row["of_the_mean"] == pytest.approx(row["gradient"] / len(losses))
    assert gradient["sum"]["gradient"] == pytest.approx(0, abs=1e-5)


def test_a_small_step_does_what_the_gradient_foretold() -> None:
    after = explained(trained("GPT"), SGD(lr=1e-3, momentum=0.0), steps=1)["after"]
    change = after["loss_after"] - after["loss_before"]
    assert change < 0
    assert change == pytest.approx(after["foretold"], rel=0.02)


@pytest.mark.parametrize("clip", [(0.1, "norm"), (0.001, "value")])
def test_the_optimizer_gets_clipped_gradients(clip: tuple[float, str]) -> None:
    found = explained(trained("GPT"), SGD(lr=1.0, momentum=0.0), steps=1, clip=clip)
    assert found["largest_difference"] < 1e-5
    share = 0.1 / found["gradient_norm"]
    for row in found["updates"]:
        raw = row["values"]["gradient_before_clipping"]
        expected = share * raw if clip[1] == "norm" else 0.001
        assert abs(row["values"]["gradient"]) == pytest.approx(abs(expected), rel=1e-4)


def test_an_update_without_a_formula_is_the_measured_difference() -> None:
    net = trained("GPT")
    optimizer = torch.optim.RMSprop(net.parameters(), lr=0.01)
    found = explain_step(net, IDS, optimizer, str)
    (row,) = found["updates"]
    assert not row["known"]
    moved = row["values"]["after_by_torch"] - row["values"]["weight"]
    # its first step: lr · g / (sqrt(0.01 g²) + eps)
    assert moved == pytest.approx(-0.1 * math.copysign(1, row["values"]["gradient"]), rel=1e-3)
    assert "weights after the step" not in found["differences"]
    assert found["after"]["loss_after"] != found["after"]["loss_before"]


class Pairs(LanguageModel):
    """A researcher's own net: the next token from the last one alone."""

    def __init__(self) -> None:
        super().__init__(50, 16)
        self.table = nn.Embedding(50, 50)

    def forward(self, tokens: Tensor, caches: Any = None) -> Tensor:
        logits: Tensor = self.table(tokens)
        return logits


def test_another_net_is_shown_by_its_modules_and_by_hand_from_the_logits_on() -> None:
    found = explained(Pairs().eval(), AdamW())
    assert not found["by_hand"]
    assert [stage["name"] for stage in found["stages"]] == ["table", "logits"]
    assert found["stages"][0]["shape"] == f"{len(IDS) - 1} × 50"
    assert {"gradient at the logits", "weights after the step"} <= {*found["differences"]}
    assert found["largest_difference"] < 1e-5


def test_a_net_that_keeps_tensors_of_its_forward_pass_is_explained() -> None:
    def keep(module: nn.Module, _: Any, output: Tensor) -> None:
        module.hidden = output  # type: ignore[assignment]

    net: Any = trained("GPT")
    net.blocks[0].register_forward_hook(keep)
    found = explained(net, AdamW())
    assert found["by_hand"]
    assert found["largest_difference"] < 1e-5


def test_formulas_of_a_net_that_was_changed_since_are_not_believed() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net: Any = trained("GPT")
    changed = Doubled(128, 32, bias=False)
    changed.weight = net.blocks[0].mlp.output.weight
    net.blocks[0].mlp.output = changed
    found = explained(net, AdamW(), steps=1)
    assert not found["by_hand"]
    assert found["largest_difference"] < 1e-5


def test_norms_of_layers_make_up_the_norm_of_the_whole_gradient() -> None:
    found = explained(trained("GPT2"), AdamW(), steps=1)
    squares = sum(row["norm"] ** 2 for row in found["gradient_norms"])
    assert found["gradient_norm"] == pytest.approx(math.sqrt(squares))
    names = [row["layer"] for row in found["gradient_norms"]]
    assert names == ["embedding", "positions", "blocks.0", "blocks.1", "norm"]
