"""Loss, curvature and planes: against closed forms, torch's own Hessian products, linear algebra."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from lmtemplate.data import IGNORED
from lmtemplate.models.base import LanguageModel
from lmtemplate.models.gpt import GPT
from lmtemplate.study.understand import surface as study
from lmtemplate.study.understand import text_losses

VOCABULARY, SCALE = 5, 3.0


class OneDistribution(LanguageModel):
    """The same logits, SCALE times its parameters, for whatever it reads."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY, 4)
        self.bias = nn.Parameter(torch.linspace(-0.4, 0.4, VOCABULARY))

    def forward(self, tokens: Tensor, caches: object = None) -> Tensor:
        return (SCALE * self.bias).expand(*tokens.shape, VOCABULARY)


def windows(count: int, vocab_size: int, length: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(
        vocab_size, (count, length + 1), generator=torch.Generator().manual_seed(1)
    )
    targets = drawn[:, 1:].clone()
    targets[-1, -2:] = IGNORED  # where a text ends
    return drawn[:, :-1], targets


@pytest.fixture
def small() -> study.NetOnText:
    torch.manual_seed(0)
    net = GPT(VOCABULARY, 8, n_layer=1, n_head=2, n_embd=8).eval()
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.3)
    return study.NetOnText(net, *windows(3, VOCABULARY, 8))


def test_sharpness_is_that_of_a_net_whose_hessian_is_known() -> None:
    """Of softmax regression: SCALE^2 (diag(p) - p p'), whatever the targets."""
    net = OneDistribution()
    shares = (SCALE * net.bias).softmax(-1).detach().double()
    known = np.linalg.eigvalsh(SCALE**2 * (torch.diag(shares) - torch.outer(shares, shares)))
    measured = study.NetOnText(net, *windows(3, VOCABULARY, 4))
    value, error = measured.sharpness(parameters_to_vector(net.parameters()).detach())
    assert abs(value - known[-1]) <= error + 1e-5
    assert value == pytest.approx(known[-1], rel=study.PRECISE)


@pytest.mark.parametrize("values", [[-5.0, -1, 0, 1, 2, 5], [-9.0, 0, 0, 0, 0.5, 3], [4.0] * 6])
def test_the_largest_eigenvalue_is_found_where_negative_ones_are_as_large(
    values: list[float],
) -> None:
    generator = torch.Generator().manual_seed(3)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    matrix = turned @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ turned.T
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    found, error = study.largest_eigenvalue(lambda vector: matrix @ vector, start)
    assert abs(found - max(values)) <= error + 1e-9
    assert error <= study.PRECISE * abs(found)


def test_a_hessian_product_is_torchs_own(small: study.NetOnText) -> None:
    names = [name for name, _ in small.net.named_parameters()]
    shapes = [weight.shape for weight in small.parameters]
    inputs, targets = windows(3, VOCABULARY, 8)

    def loss(weights: Tensor) -> Tensor:
        parts = weights.split([shape.numel() for shape in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        logits = functional_call(small.net, named, (inputs,))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)

    weights = parameters_to_vector(small.parameters).detach()
    direction = torch.randn(len(weights), generator=torch.Generator().manual_seed(2))
    with study.sdpa_kernel(study.SDPBackend.MATH):
        _, expected = torch.autograd.functional.hvp(loss, weights, direction)
    torch.testing.assert_close(small.hessian_product(direction), expected, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_mean_over_the_tokens_that_count(
    small: study.NetOnText, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, targets = windows(3, VOCABULARY, 8)
    weights = parameters_to_vector(small.parameters).detach() * 1.5
    small.set(weights)
    shares = small.net(inputs).softmax(-1)
    kept = targets != IGNORED
    nats = -shares[kept].gather(1, targets[kept][:, None]).log()
    assert small.tokens == len(nats) == 22
    assert small.loss(weights) == pytest.approx(nats.mean().item(), rel=1e-6)
    monkeypatch.setattr(text_losses, "LOGITS_AT_ONCE", 1)  # one window after the other
    alone = study.NetOnText(small.net, inputs, targets)
    assert len(alone.parts) == 3
    assert alone.loss(weights) == pytest.approx(nats.mean().item(), rel=1e-6)


def test_a_plane_goes_through_its_three_points_on_orthogonal_axes_of_one_length() -> None:
    points = torch.randn(3, 500, generator=torch.Generator().manual_seed(4))
    plane = study.plane_through(*points)
    gram = (plane.axes @ plane.axes.T) / plane.unit**2
    torch.testing.assert_close(gram, torch.eye(2), rtol=0, atol=1e-6)
    places = [plane.place(point) for point in points]
    assert places[0] == pytest.approx((0, 0), abs=1e-6)
    assert places[1] == pytest.approx((1, 0), abs=1e-6)
    for point, place in zip(points, places, strict=True):
        torch.testing.assert_close(plane.at(*place), point, rtol=1e-5, atol=1e-5)


def test_the_nearest_point_of_a_plane_is_that_of_least_squares() -> None:
    *three, other = torch.randn(4, 50, generator=torch.Generator().manual_seed(5))
    plane = study.plane_through(*three)
    expected = torch.linalg.lstsq(plane.axes.T, (other - plane.origin)[:, None]).solution.flatten()
    assert plane.place(other) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_random_direction_has_rows_as_long_as_the_nets() -> None:
    net = GPT(VOCABULARY, 8, n_layer=1, n_head=2, n_embd=8)
    direction = study.random_direction(net, 7)
    parts = direction.split([weight.numel() for weight in net.parameters()])
    assert not torch.equal(direction, study.random_direction(net, 8))
    for weight, part in zip(net.parameters(), parts, strict=True):
        if weight.dim() == 1:
            assert not part.any()
            continue
        norms = part.view(weight.shape).norm(dim=1)
        torch.testing.assert_close(norms, weight.detach().norm(dim=1), rtol=1e-5, atol=1e-6)


def test_a_coarse_grid_is_computed_before_what_lies_between() -> None:
    order = study.coarse_to_fine(9)
    assert len({*order}) == 81
    assert {*order[:4]} == {(0, 0), (0, 8), (8, 0), (8, 8)}
    assert {*order[:25]} == {(row, column) for row in range(0, 9, 2) for column in range(0, 9, 2)}


def test_a_loss_that_is_kept_is_not_computed_again(small: study.NetOnText, tmp_path: Path) -> None:
    origin = parameters_to_vector(small.parameters).detach()
    axes = torch.stack([study.random_direction(small.net, seed) for seed in (1, 2)])
    asked = list[Tensor]()
    measure = small.loss

    def watch(weights: Tensor) -> float:
        asked.append(weights)
        return measure(weights)

    small.loss = watch  # type: ignore[method-assign]

    def surface(size: int, depends: str) -> dict[str, Any]:
        places = np.linspace(-1, 1, size).tolist()
        kept = study.Kept(tmp_path / "numbers.json", {"weights": depends})
        plane = study.Plane(origin, axes)
        return study.measure_surface("test", small, plane, places, places, kept)

    coarse, again = surface(3, "one"), surface(3, "one")
    assert (len(asked), again) == (9, coarse)
    fine = surface(5, "one")
    assert len(asked) == 25
    assert [row[::2] for row in fine["loss"][::2]] == coarse["loss"]
    assert fine["loss"][2][2] == pytest.approx(measure(origin), rel=1e-6)
    surface(3, "other weights")
    assert len(asked) == 25 + 9


@pytest.mark.parametrize("content", ["", "[]", "{", '{"depends": {"a": 1}, "numbers": [1]}'])
def test_a_damaged_cache_is_an_empty_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "numbers.json"
    path.write_text(content)
    kept = study.Kept(path, {"a": 1})
    assert kept.get("x", lambda: math.e) == math.e
    kept.numbers["bad"] = math.nan  # is not kept: JSON has no such number
    kept.save()
    assert study.Kept(path, {"a": 1}).numbers == {"x": math.e}
