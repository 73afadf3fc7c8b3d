"""The loss against formulas in float64, and in chunks against all at once."""

import math

import pytest
import torch
from torch import Tensor

import lmtemplate.loss
from lmtemplate.data import IGNORED
from lmtemplate.errors import ConfigError
from lmtemplate.loss import Loss, cross_entropy, linear_cross_entropy, training_loss
from lmtemplate.models import GPT, LanguageModel
from lmtemplate.models.base import soft_cap

VOCABULARY = 23


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(3, 7, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3


@pytest.fixture
def targets() -> Tensor:
    drawn = torch.randint(VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    drawn[0, 2:5] = IGNORED
    drawn[2, -1] = IGNORED
    return drawn


def in_numbers(logits: Tensor, targets: Tensor, smoothing: float, z_loss: float) -> list[float]:
    """Objective's sum, cross-entropy's sum, tokens: one token at a time, in Python floats."""
    objective = nats = 0.0
    counted = 0
    for row, target in zip(logits.flatten(0, 1).tolist(), targets.flatten().tolist(), strict=True):
        if target == IGNORED:
            continue
        log_z = math.log(math.fsum(map(math.exp, row)))
        smooth = [smoothing / VOCABULARY] * VOCABULARY
        smooth[target] += 1 - smoothing
        objective += sum(q * (log_z - logit) for q, logit in zip(smooth, row, strict=True))
        objective += z_loss * log_z**2
        nats += log_z - row[target]
        counted += 1
    return [objective, nats, counted]


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_the_loss_equals_its_formula(
    logits: Tensor, targets: Tensor, smoothing: float, z_loss: float
) -> None:
    objective, nats, tokens = in_numbers(logits, targets, smoothing, z_loss)
    loss = cross_entropy(logits, targets, smoothing, z_loss)
    assert loss.objective.item() == pytest.approx(objective / tokens, rel=1e-6)
    assert loss.nats.item() == pytest.approx(nats, rel=1e-6)
    assert loss.tokens.item() == tokens == 17


def test_smoothing_is_that_of_torch(logits: Tensor, targets: Tensor) -> None:
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, label_smoothing=0.1
    )
    torch.testing.assert_close(cross_entropy(logits, targets, 0.1).objective, expected)


def test_regularisers_do_not_change_what_is_reported(logits: Tensor, targets: Tensor) -> None:
    plain, regularised = cross_entropy(logits, targets), cross_entropy(logits, targets, 0.3, 0.1)
    assert torch.equal(plain.nats, regularised.nats)
    assert regularised.objective > plain.objective


def test_ignored_targets_carry_no_gradient(logits: Tensor, targets: Tensor) -> None:
    logits.requires_grad_()
    cross_entropy(logits, targets, 0.1, 0.01).objective.backward()
    assert logits.grad is not None
    assert not logits.grad[targets == IGNORED].any()
    assert logits.grad[targets != IGNORED].abs().amax(-1).min() > 0


def test_a_batch_without_targets_costs_nothing(logits: Tensor) -> None:
    logits.requires_grad_()
    loss = cross_entropy(logits, torch.full((3, 7), IGNORED), 0.1, 0.01)
    loss.objective.backward()
    assert [part.item() for part in loss] == [0.0, 0.0, 0]
    assert logits.grad is not None
    assert not logits.grad.any()


def test_what_is_reported_holds_no_graph(logits: Tensor, targets: Tensor) -> None:
    loss = cross_entropy(logits.requires_grad_(), targets, 0.1, 0.01)
    assert loss.objective.requires_grad
    assert not loss.nats.requires_grad


def loss_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Loss, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = cross_entropy(logits, targets, 0.1, 0.01)
    loss.objective.backward()
    assert logits.grad is not None
    return loss, logits.grad


@pytest.mark.parametrize("chunk_logits", [1, VOCABULARY, 4 * VOCABULARY + 1, 20 * VOCABULARY])
def test_chunks_change_neither_loss_nor_gradient(
    logits: Tensor, targets: Tensor, chunk_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, gradient = loss_and_gradient(logits, targets)
    monkeypatch.setattr(lmtemplate.loss, "CHUNK_LOGITS", chunk_logits)
    chunked, chunked_gradient = loss_and_gradient(logits, targets)
    for part, expected in zip(chunked, whole, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(chunked_gradient, gradient, rtol=1e-6, atol=1e-8)


def test_chunks_widen_no_more_logits_at_once_than_they_may(
    logits: Tensor, targets: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, sums = [], lmtemplate.loss._sums

    def counting(logits: Tensor, *rest: object) -> Tensor:
        rows.append(len(logits))
        return sums(logits, *rest)

    monkeypatch.setattr(lmtemplate.loss, "_sums", counting)
    monkeypatch.setattr(lmtemplate.loss, "CHUNK_LOGITS", 5 * VOCABULARY)
    cross_entropy(logits, targets)
    assert rows == [5, 5, 5, 5, 1]


def test_half_precision_logits_are_widened_before_they_are_summed(
    logits: Tensor, targets: Tensor
) -> None:
    rounded = logits.bfloat16()
    _, nats, _ = in_numbers(rounded.double(), targets, 0.0, 0.0)
    assert cross_entropy(rounded, targets).nats.item() == pytest.approx(nats, rel=1e-6)


def head_loss(fused: bool, targets: Tensor, cap: float | None) -> tuple[Loss, Tensor, Tensor]:
    """The loss of a linear head, with its gradients for features and weight."""
    generator = torch.Generator().manual_seed(3)
    features = (torch.randn(3, 7, 5, generator=generator) * 2).requires_grad_()
    weight = torch.randn(VOCABULARY, 5, generator=generator).requires_grad_()
    if fused:
        loss = linear_cross_entropy(features, weight, targets, cap)
    else:
        loss = cross_entropy(soft_cap(features @ weight.mT, cap), targets)
    (2 * loss.objective).backward()
    assert features.grad is not None
    assert weight.grad is not None
    return loss, features.grad, weight.grad


@pytest.mark.parametrize("chunk_logits", [1, 4 * VOCABULARY, 2**19])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_loss_of_a_head_and_its_gradients_are_those_of_its_logits(
    targets: Tensor,
    cap: float | None,
    chunk_logits: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lmtemplate.loss, "CHUNK_LOGITS_ON_CPU", chunk_logits)
    loss, *gradients = head_loss(True, targets, cap)
    plain, *expected = head_loss(False, targets, cap)
    torch.testing.assert_close(loss, plain, rtol=2e-6, atol=0)
    torch.testing.assert_close(gradients, expected, rtol=1e-5, atol=1e-7)
    assert not loss.nats.requires_grad


def test_the_loss_of_a_head_is_near_the_plain_one_under_autocast(targets: Tensor) -> None:
    plain, *expected = head_loss(False, targets, 15.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, *gradients = head_loss(True, targets, 15.0)
    assert loss.nats.item() == pytest.approx(plain.nats.item(), rel=1e-2)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - wanted).norm() < 0.01 * wanted.norm()


def test_a_head_without_targets_costs_nothing() -> None:
    loss, *gradients = head_loss(True, torch.full((3, 7), IGNORED), 15.0)
    assert [part.item() for part in loss] == [0.0, 0.0, 0]
    assert not any(gradient.any() for gradient in gradients)


class Doubled(GPT):
    """Says something else than its features."""

    def forward(self, tokens: Tensor, caches: object = None) -> Tensor:
        return 2 * super().forward(tokens)


@pytest.mark.parametrize("kind", [GPT, Doubled])
def test_a_net_is_trained_on_the_logits_that_it_returns(kind: type[LanguageModel]) -> None:
    torch.manual_seed(0)
    net, tokens = kind(VOCABULARY, 8), torch.randint(VOCABULARY, (2, 8))
    torch.nn.init.normal_(net.output_weight)
    expected = cross_entropy(net(tokens), tokens, 0.1, 0.01)
    loss = training_loss(net, tokens, tokens, None, 0.1, 0.01)
    torch.testing.assert_close(loss, expected)


def test_logits_with_swapped_axes_are_named(logits: Tensor, targets: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"logits .* have shape \(3, 23, 7\), not \(3, 7, V\)"):
        cross_entropy(logits.mT, targets)


def test_a_loss_that_returns_a_number_alone_is_told_what_to_return(targets: Tensor) -> None:
    net = GPT(VOCABULARY, 7, n_layer=1, n_head=1, n_embd=8)
    inputs = targets.clamp(min=0)
    with pytest.raises(ConfigError, match=r"returns Tensor, not Loss\(objective, nats, tokens\)"):
        training_loss(net, inputs, targets, lambda logits, _: logits.mean())  # type: ignore[arg-type, return-value]
