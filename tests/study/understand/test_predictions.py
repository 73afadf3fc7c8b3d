"""Probabilities, losses and the gradient at the logits: those of texts, and of autograd."""

import pytest
import torch

from lmtemplate.study.understand.predictions import (
    logit_gradient,
    softmax_of,
    target_nats,
    worked_example,
)

SAT = {"the": 0.15, "cat": 0.10, "sat": 0.05, "on": 0.20, "mat": 0.50}  # after "The cat sat"
ON_THE = {"mat": 0.35, "floor": 0.25, "chair": 0.20, "keyboard": 0.15, "hat": 0.05}


@pytest.mark.parametrize(
    ("words", "target", "gradient", "loss"),
    [
        (SAT, "on", [0.15, 0.10, 0.05, -0.80, 0.50], 1.609),
        (SAT, "mat", [0.15, 0.10, 0.05, 0.20, -0.50], 0.693),
        (ON_THE, "mat", [-0.65, 0.25, 0.20, 0.15, 0.05], 1.050),
    ],
)
def test_the_gradient_of_made_up_words_is_that_of_the_text(
    words: dict[str, float], target: str, gradient: list[float], loss: float
) -> None:
    """Of "on", 0.20 - 1 = -0.80; of "mat", 0.50 - 0 = +0.50; and the loss is -ln p."""
    shares, place = torch.tensor([[*words.values()]]), torch.tensor([[*words].index(target)])
    assert logit_gradient(shares, place)[0].tolist() == pytest.approx(gradient)
    assert target_nats(shares, place).item() == pytest.approx(loss, abs=1e-3)


def test_the_gradient_is_what_autograd_finds() -> None:
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(7)
    torch.nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    found = logit_gradient(softmax_of(logits.detach()), targets)
    torch.testing.assert_close(found, logits.grad)


def test_softmax_survives_scores_that_float32_cannot_raise_e_to() -> None:
    scores = torch.tensor([1000.0, 999.0, -torch.inf])
    torch.testing.assert_close(softmax_of(scores), scores.softmax(-1))


def test_the_made_up_words_come_out_of_the_same_code() -> None:
    rows = {row["token"]: row["gradient"] for row in worked_example()["rows"]}
    assert (rows["on"], rows["mat"]) == (pytest.approx(-0.80), pytest.approx(0.50))
    assert worked_example()["loss"] == pytest.approx(1.61, abs=0.005)
