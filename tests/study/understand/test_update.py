"""Updates written out by hand: the numbers of texts, and those of torch's optimizers."""

import math
from typing import Any

import pytest
import torch

from lmtemplate.muon import orthogonalise
from lmtemplate.study.understand.update import (
    FORMULAS,
    adam_formula,
    formula_of,
    muon_formula,
    nearly_orthogonal,
    sgd_formula,
)

GROUP = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}


def test_plain_descent_gives_the_numbers_of_the_text() -> None:
    """[0.1, -0.2, 0.3] - 0.0001 x [0.5, -0.3, 0.8] = [0.09995, -0.19997, 0.29992]."""
    weights, gradient = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.5, -0.3, 0.8])
    after = sgd_formula(weights, gradient, {}, {"lr": 1e-4})["after"]
    assert after.tolist() == pytest.approx([0.09995, -0.19997, 0.29992])


def test_the_first_step_of_adam_is_the_rate_and_smaller_without_bias_correction() -> None:
    gradient = torch.tensor([0.5, -3e-4])
    values = adam_formula(torch.zeros(2), gradient, {}, GROUP)
    assert values["step"].tolist() == pytest.approx([0.01, -0.01], rel=1e-4)
    share = (1 - 0.9) / math.sqrt(1 - 0.999)  # 3.16 times too far with these betas
    assert values["step_uncorrected"].tolist() == pytest.approx(
        [0.01 * share, -0.01 * share], rel=2e-3
    )


def test_decay_is_multiplied_by_the_rate() -> None:
    values = adam_formula(torch.tensor([2.0]), torch.tensor([0.0]), {}, GROUP)
    assert values["decay"].item() == pytest.approx(0.01 * 0.1 * 2.0)
    assert values["decay_without_rate"].item() == pytest.approx(0.1 * 2.0)
    assert values["after"].item() == pytest.approx(2.0 - 0.002)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12)])
def test_a_changed_spectrum_is_what_newton_and_schulz_iterate_to(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    made = nearly_orthogonal(matrix)
    torch.testing.assert_close(made, orthogonalise(matrix[None])[0], atol=1e-4, rtol=1e-4)
    left, values, right = torch.linalg.svd(matrix.double() / matrix.double().norm())
    for _ in range(5):  # the iteration changes the singular values alone
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    count = len(values)
    expected = left[:, :count] @ torch.diag(values) @ right[:count]
    torch.testing.assert_close(made, expected.float(), atol=1e-5, rtol=1e-4)


PLAIN = torch.optim.SGD
MADE: list[tuple[Any, dict[str, Any], Any]] = [
    (torch.optim.AdamW, {"weight_decay": 0.1}, adam_formula),
    (torch.optim.Adam, {"weight_decay": 0.1}, adam_formula),  # added to the gradient
    (PLAIN, {"lr": 0.1}, sgd_formula),
    (PLAIN, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, sgd_formula),
    (PLAIN, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, sgd_formula),
]


@pytest.mark.parametrize(("kind", "settings", "formula"), MADE)
def test_three_steps_are_those_of_torch(kind: Any, settings: dict[str, Any], formula: Any) -> None:
    weights = torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    optimizer = kind([weights], **settings)
    for seed in range(3):
        weights.grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed + 1))
        (group,) = optimizer.param_groups
        assert formula_of(optimizer, group) is formula
        values = formula(weights.detach().clone(), weights.grad, optimizer.state[weights], group)
        assert {*values} <= {*FORMULAS}
        optimizer.step()
        torch.testing.assert_close(values["after"], weights.detach())


def test_muon_moves_a_tall_matrix_further() -> None:
    group = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.0}
    for shape, scale in (((8, 2), 2.0), ((2, 8), 1.0)):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = muon_formula(torch.zeros(shape), gradient, {}, group)
        spectrum = torch.linalg.svdvals(values["muon_step"]) / (0.02 * scale)
        assert 0.6 < spectrum.min() <= spectrum.max() < 1.3


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.RMSprop, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (PLAIN, {"momentum": 0.9, "dampening": 0.5}),
    ],
)
def test_an_optimizer_without_a_formula_is_not_given_one(kind: Any, settings: Any) -> None:
    optimizer = kind([torch.nn.Parameter(torch.zeros(2))], lr=0.1, **settings)
    assert formula_of(optimizer, optimizer.param_groups[0]) is None
