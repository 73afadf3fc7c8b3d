"""Figures worked out by hand -> our loss, metrics, optimizers and schedules come to them."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmtemplate.data.prepare import prepare
from lmtemplate.generate import logits_to_probs
from lmtemplate.loss import cross_entropy
from lmtemplate.metrics import TokenMetrics
from lmtemplate.models import GPT
from lmtemplate.optimizers import SGD, Adam, AdamW, OptimizerRecipe
from lmtemplate.schedules import WarmupCosine

STEP = {"the": 0.15, "cat": 0.10, "sat": 0.05, "on": 0.20, "mat": 0.50}  # after "The cat sat"
MAT = {"mat": 0.35, "floor": 0.25, "chair": 0.20, "keyboard": 0.15, "hat": 0.05}
WEIGHTS, SLOPE = (0.1, -0.2, 0.3), (0.5, -0.3, 0.8)


def guess(shares: dict[str, float]) -> Tensor:
    """Logits (1, 1, V) whose softmax is this distribution."""
    return torch.tensor([[list(shares.values())]], dtype=torch.float64).log()


def loss_of(shares: dict[str, float], truth: str) -> float:
    target = torch.tensor([[list(shares).index(truth)]])
    return cross_entropy(guess(shares), target).objective.item()


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.20, "1.61"),
        (0.90, "0.105"),
        (0.05, "2.996"),
        (0.85, "0.162"),
        (0.95, "0.05"),
        (0.1, "2.3"),
    ],
)
def test_the_loss_is_minus_the_log_of_the_right_token_s_share(share: float, text: str) -> None:
    last_digit = 10.0 ** -len(text.partition(".")[2])  # 0.1625 is cut off, the others are rounded
    loss = loss_of({"World": share, "others": 1 - share}, "World")
    assert loss == pytest.approx(-math.log(share), rel=1e-5)
    assert loss == pytest.approx(float(text), abs=last_digit)


def test_how_sure_a_wrong_guess_is_does_not_tell_the_loss() -> None:
    sure, unsure = ({"World": 0.05, "apple": p, "others": 0.95 - p} for p in (0.9, 0.1))
    assert loss_of(sure, "World") == pytest.approx(loss_of(unsure, "World"))
    assert loss_of(unsure, "World") == pytest.approx(2.996, abs=1e-3)  # and not 2.3


def test_the_slope_of_a_logit_is_its_share_less_one_for_the_truth() -> None:
    logits = guess(STEP).requires_grad_()
    loss = cross_entropy(logits, torch.tensor([[list(STEP).index("on")]])).objective
    (slope,) = torch.autograd.grad(loss, logits)
    expected = torch.tensor([[[0.15, 0.10, 0.05, -0.80, 0.50]]], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-6)


def test_a_batch_of_a_thousand_texts_averages_losses_and_slopes() -> None:
    """As often as it says each word comes: the loss is its entropy, and no slope is left."""
    shares = torch.tensor(list(MAT.values()), dtype=torch.float64)
    targets = torch.arange(5).repeat_interleave((1000 * shares).round().long())[:, None]
    logits = guess(MAT).expand(1000, 1, 5).clone().requires_grad_()
    loss = cross_entropy(logits, targets).objective
    each = [loss_of(MAT, word) for word in MAT]
    (slopes,) = torch.autograd.grad(loss, logits)
    assert len(targets) == 1000
    assert each[0] == pytest.approx(1.05, abs=0.005)
    assert loss.item() == pytest.approx(np.dot(list(MAT.values()), each), rel=1e-5)
    assert slopes.sum(0).abs().max() < 1e-6


def test_a_hundred_thousand_tokens_get_a_share_each() -> None:
    loss = cross_entropy(torch.zeros(1, 2, 100_000), torch.tensor([[0, 99_999]]))
    assert loss.objective.item() == pytest.approx(math.log(100_000), rel=1e-6)


def perplexity(*shares: float) -> float:
    """Of a text whose tokens got these probabilities."""
    metrics, nats = TokenMetrics(), -sum(map(math.log, shares))
    places = (1, len(shares))
    metrics.update(torch.tensor(nats), torch.zeros(*places, 2), torch.zeros(places).long())
    return metrics.compute()["perplexity"].item()


def test_perplexity_is_e_to_the_loss() -> None:
    assert perplexity(math.exp(-2.0)) == pytest.approx(7.39, abs=0.005)


def test_perplexity_is_the_geometric_mean_of_inverse_probabilities() -> None:
    assert perplexity(0.2, 0.5, 0.05) == pytest.approx((5 * 2 * 20) ** (1 / 3), rel=1e-6)
    assert perplexity(0.1, 0.1, 0.1, 0.1) == pytest.approx(10, rel=1e-6)


def test_perplexities_of_two_tokenizers_differ_where_bits_per_byte_do_not() -> None:
    """The same 12 bytes at the same probability, as 12 tokens and as 3."""
    found = []
    for tokens in (12, 3):
        metrics = TokenMetrics(torch.tensor([12 // tokens]))
        places = (1, tokens)
        metrics.update(torch.tensor(9.0), torch.zeros(*places, 1), torch.zeros(places).long())
        found.append(metrics.compute())
    assert found[0]["bits_per_byte"] == found[1]["bits_per_byte"]
    assert found[1]["perplexity"].item() == pytest.approx(found[0]["perplexity"].item() ** 4)


def stepped(recipe: OptimizerRecipe, *slopes: tuple[float, ...]) -> Tensor:
    """(3,) weights after a step along each of the slopes, from WEIGHTS."""
    weights = nn.Parameter(torch.tensor([WEIGHTS], dtype=torch.float64))  # a matrix decays
    optimizer = recipe.build(nn.ParameterList([weights]))
    for slope in slopes:
        weights.grad = torch.tensor([slope], dtype=torch.float64)
        optimizer.step()
    return weights.detach()[0]


def test_a_step_of_plain_descent_is_the_rate_times_the_slope() -> None:
    weights = stepped(SGD(1e-4, momentum=0.0), SLOPE)
    assert weights.tolist() == pytest.approx([0.09995, -0.19997, 0.29992], abs=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_corrects_its_moments_and_decays_by_the_rate_times_lambda(decay: float) -> None:
    rate, beta1, beta2, eps, slopes = 1e-4, 0.9, 0.999, 1e-8, (SLOPE, (0.1, 0.4, -0.2))
    weights, first, second = np.array(WEIGHTS), np.zeros(3), np.zeros(3)
    for step, slope in enumerate(map(np.array, slopes), start=1):
        first = beta1 * first + (1 - beta1) * slope
        second = beta2 * second + (1 - beta2) * slope**2
        mean, variance = first / (1 - beta1**step), second / (1 - beta2**step)
        weights = weights - rate * decay * weights - rate * mean / (np.sqrt(variance) + eps)
    ours = stepped(AdamW(rate, (beta1, beta2), eps, decay), *slopes)
    assert ours.tolist() == pytest.approx(weights.tolist(), rel=1e-12)


def test_adam_without_bias_correction_would_begin_with_steps_three_times_as_long() -> None:
    slope = np.array(SLOPE)
    uncorrected = 1e-4 * 0.1 * slope / (np.sqrt(0.001 * slope**2) + 1e-8)  # m / (sqrt v + eps)
    ours = np.array(WEIGHTS) - stepped(Adam(1e-4, (0.9, 0.999)), SLOPE).numpy()
    assert ours == pytest.approx(1e-4 * np.sign(slope), rel=1e-6)
    assert uncorrected / ours == pytest.approx(np.sqrt(10), rel=1e-5)


def test_the_rate_warms_up_in_a_line_and_falls_along_a_cosine_to_nearly_nothing() -> None:
    """Llama 3's: 8,000 steps up to 8e-5; its paper goes down to 8e-7 at step 1,200,000."""
    total, warmup = 1_200_000, 8_000
    schedule = WarmupCosine(warmup, floor_ratio=0.01)
    rates = {step: 8e-5 * schedule.factor(step - 1, total) for step in (1, 4_000, 8_000, total)}
    assert rates == pytest.approx({1: 1e-8, 4_000: 4e-5, 8_000: 8e-5, total: 8e-7}, rel=1e-6)
    middle = 8e-5 * schedule.factor((total + warmup) // 2, total)
    assert middle == pytest.approx((8e-5 + 8e-7) / 2, rel=1e-6)


def test_a_fifth_of_the_text_is_held_out_unless_one_says_otherwise() -> None:
    assert inspect.signature(prepare).parameters["val_ratio"].default == 0.2


def test_the_first_loss_of_66_symbols_is_419() -> None:
    torch.manual_seed(0)
    net = GPT(66, 16, n_layer=1, n_head=2, n_embd=16).eval()
    tokens, targets = torch.randint(66, (2, 8, 16))
    assert f"{cross_entropy(net(tokens), targets).objective.item():.2f}" == "4.19"


def test_temperature_makes_a_choice_peaky_or_flat_and_changes_no_order() -> None:
    logits = guess(STEP)[0, 0]
    cold, plain, hot = (logits_to_probs(logits, heat) for heat in (0.1, 1.0, 2.0))
    assert cold.max() > 0.99
    assert plain.tolist() == pytest.approx(list(STEP.values()))
    assert plain.min() < hot.min() < hot.max() < plain.max()
    assert len({tuple(choice.argsort().tolist()) for choice in (cold, plain, hot)}) == 1
