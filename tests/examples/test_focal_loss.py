"""A loss of one's own."""

import math
from pathlib import Path

import pytest
import torch

from examples.focal_loss import FocalLoss
from lmtemplate.loss import IGNORED, cross_entropy
from tests.examples.conftest import Train
from tests.runs import equal, load


def test_a_token_of_probability_a_quarter_costs_what_the_paper_says() -> None:
    logits = torch.tensor([[[math.log(3.0), 0.0], [5.0, 5.0]]])  # probabilities 3/4 and 1/4
    loss = FocalLoss(gamma=2)(logits, torch.tensor([[1, IGNORED]]))
    assert loss.objective.item() == pytest.approx(0.75**2 * math.log(4))
    assert loss.nats.item() == pytest.approx(math.log(4))
    assert loss.tokens == 1


def test_gamma_0_is_cross_entropy() -> None:
    logits, targets = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    torch.testing.assert_close(FocalLoss(gamma=0)(logits, targets), cross_entropy(logits, targets))


@pytest.mark.slow
def test_a_config_s_loss_is_what_training_minimises(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "plain")
    train(tmp_path / "zero", "focal_loss", "--model.loss.gamma=0")
    train(tmp_path / "one", "focal_loss")
    plain, zero, one = (
        load(tmp_path / name, 12)["state_dict"] for name in ("plain", "zero", "one")
    )
    for name, value in plain.items():
        torch.testing.assert_close(zero[name], value, rtol=1e-3, atol=1e-3)
    assert not equal(plain, one)
