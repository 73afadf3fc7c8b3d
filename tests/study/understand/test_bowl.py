"""The page without a run: formulas against closed forms, its bytes, a browser without network."""

import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmtemplate import schedules
from lmtemplate.optimizers import SGD, AdamW
from lmtemplate.study.understand import bowl as study
from lmtemplate.study.understand.landscape import landscape
from tests.browser import needs_browser, open_offline
from tests.study.show.test_page import Elements, loads

STEEP = study.CURVATURES.max().item()


@cache
def way(rate: float, noise: float = 0.0) -> Tensor:
    """(STEPS + 1, 2) distances from the bottom, of plain descent."""
    return study.roll(SGD(rate, momentum=0.0), noise) - study.BOTTOM


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("landscape") / "landscape.html"
    landscape(output=output)
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(html: str) -> Any:
    """What the page's script draws."""
    found = re.search(r"^const data = (.*);$", html, re.MULTILINE)
    assert found is not None
    return json.loads(found.group(1))


def test_the_loss_is_half_curvature_times_squared_distance() -> None:
    loss = study.loss_at(study.BOTTOM + torch.tensor([3.0, 0.2], dtype=torch.float64))
    assert loss.item() == pytest.approx(0.5 * 1.0 * 9 + 0.5 * STEEP * 0.04, rel=1e-12)


@pytest.mark.parametrize("rate", study.RATES)
def test_plain_descent_keeps_one_minus_rate_times_curvature_a_step(rate: float) -> None:
    steps = torch.arange(study.STEPS + 1, dtype=torch.float64)[:, None]
    start = study.START - study.BOTTOM
    torch.testing.assert_close(
        way(rate), start * (1 - rate * study.CURVATURES) ** steps, rtol=1e-9, atol=1e-14
    )


def test_at_one_over_curvature_a_step_lands_on_the_valleys_floor() -> None:
    assert abs(way(1 / STEEP)[1, 1]) < 1e-12
    shares = {rate: abs(1 - rate * STEEP) for rate in study.RATES}
    assert min(shares, key=lambda rate: shares[rate]) == 0.05


def test_a_tenth_is_over_the_edge_and_every_other_rate_is_not() -> None:
    growing = [rate for rate in study.RATES if abs(way(rate)[-1, 1]) > abs(way(rate)[0, 1])]
    assert growing == [0.1] == [rate for rate in study.RATES if rate > 2 / STEEP]


def test_at_a_tenth_the_ball_jumps_from_wall_to_wall_further_each_time() -> None:
    heights = way(0.1)[:, 1].tolist()
    assert all(a * b < 0 and abs(b) > abs(a) for a, b in pairwise(heights))


def test_at_0_005_most_of_the_way_is_still_ahead() -> None:
    assert abs(way(0.005)[-1, 0] / way(0.005)[0, 0]) > 0.7
    assert abs(way(0.05)[-1, 0] / way(0.05)[0, 0]) < 0.05


def expected_loss(rate: float, noise: float, steps: int) -> float:
    """Mean over the noise: each axis keeps its share of the start, and of all noise before."""
    total = 0.0
    for curvature, start in zip(study.CURVATURES, study.START - study.BOTTOM, strict=True):
        share = (1 - rate * curvature.item()) ** 2
        added = (rate * noise) ** 2 * sum(share**n for n in range(steps))
        total += 0.5 * curvature.item() * (share**steps * start.item() ** 2 + added)
    return total


def test_with_noise_the_sweet_spot_is_0_03_to_0_05_on_average() -> None:
    losses = {rate: expected_loss(rate, study.NOISE, study.STEPS) for rate in study.RATES}
    assert set(sorted(losses, key=lambda rate: losses[rate])[:3]) == {0.03, 0.04, 0.05}


@pytest.mark.slow
def test_with_noise_the_sweet_spot_is_0_03_to_0_05_on_the_page(data: Any) -> None:
    means = {rate: sum(paths["SGD"]["loss"][-20:]) for rate, paths in data["paths"].items()}
    assert set(sorted(means, key=lambda rate: means[rate])[:3]) == {"0.030", "0.040", "0.050"}


def test_the_noise_is_the_same_for_every_rate() -> None:
    added = [
        (way(rate, 1.0)[1] - way(rate)[1]) / -rate  # by the first step, with and without
        for rate in (0.01, 0.1)
    ]
    torch.testing.assert_close(added[0], added[1])


def test_momentum_follows_its_recurrence() -> None:
    place, speed = study.START - study.BOTTOM, torch.zeros(2, dtype=torch.float64)
    for _ in range(study.STEPS):
        speed = 0.9 * speed + study.CURVATURES * place
        place = place - 0.03 * speed
    rolled = study.roll(study.OPTIMIZERS["momentum 0.9"](0.03), 0.0)
    torch.testing.assert_close(rolled[-1], place + study.BOTTOM, rtol=1e-10, atol=0)


def test_adams_first_step_is_the_rate_along_every_axis() -> None:
    rolled = study.roll(study.OPTIMIZERS["Adam"](0.05), 0.0)
    towards = torch.sign(study.BOTTOM - study.START)
    torch.testing.assert_close(rolled[1] - study.START, 0.05 * towards, rtol=1e-7, atol=0)


def test_adamw_takes_the_step_that_one_writes_by_hand() -> None:
    rate, beta1, beta2, eps, decay = 0.05, 0.9, 0.95, 1e-8, 0.5
    recipe = AdamW(rate, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    rolled = study.roll(recipe, 0.0)
    first, second = 0.0, 0.0
    place = study.START
    for step in (1, 2, 3):
        slope = study.CURVATURES * (place - study.BOTTOM)
        first = beta1 * first + (1 - beta1) * slope
        second = beta2 * second + (1 - beta2) * slope**2
        step_size = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + eps)
        place = place - rate * decay * place - rate * step_size
        torch.testing.assert_close(rolled[step], place, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_the_sliders_begin_at_the_settings_that_the_text_speaks_of(data: Any, html: str) -> None:
    opening = re.findall(r'<input type="range" id="(\w+)" min="0" max="(\d+)" value="(\d+)">', html)
    values = {
        "rate": [*data["paths"]],
        "warmup": [*data["schedules"]],
    }
    assert {name: len(values[name]) - 1 for name in values} == {n: int(m) for n, m, _ in opening}
    at_first = {name: values[name][int(value)] for name, _, value in opening}
    assert at_first == {"rate": "0.030", "warmup": "100"}


@pytest.mark.slow
def test_a_ball_rolls_along_the_path_of_its_optimizer(data: Any) -> None:
    assert [*data["paths"]["0.050"]] == [*study.OPTIMIZERS]
    for name, path in data["paths"]["0.050"].items():
        rolled = study.roll(study.OPTIMIZERS[name](0.05))
        assert path["x"] == pytest.approx(rolled[:, 0].tolist(), abs=1e-5)
        assert path["y"] == pytest.approx(rolled[:, 1].tolist(), abs=1e-5)
        assert path["loss"] == pytest.approx(study.loss_at(rolled).tolist(), abs=1e-5)
        assert (path["x"][0], path["y"][0]) == (-1.8, 1.1)


@pytest.mark.slow
def test_low_error_is_green_and_high_error_red(html: str) -> None:
    low, *_, high = re.findall(r'\[[\d.]+, "#(\w{6})"\]', html)
    assert max(range(3), key=lambda channel: int(low[2 * channel :][:2], 16)) == 1
    assert max(range(3), key=lambda channel: int(high[2 * channel :][:2], 16)) == 0


@pytest.mark.slow
def test_every_shape_of_schedule_is_drawn_as_it_is_computed(data: Any) -> None:
    drawn = data["schedules"]["100"]
    assert drawn.keys() == {
        name
        for name, value in vars(schedules).items()
        if isinstance(value, type) and schedules.Schedule in value.__bases__
    }
    cosine = schedules.WarmupCosine(warmup_steps=100)
    expected = [cosine.factor(step, study.RUN_STEPS) for step in data["run_steps"]]
    assert drawn["WarmupCosine"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_page_loads_nothing_from_elsewhere(html: str) -> None:
    assert loads(html) == []
    assert Elements(html).count("script") == 2  # plotly.js once, and what draws
    assert len(html) < 9e6


@needs_browser
@pytest.mark.browser
def test_the_page_opens_without_network_and_without_errors(html: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "landscape.html", tmp_path / "landscape.png"
    path.write_text(html, encoding="utf-8")
    assert [line for line in open_offline(path, picture) if "rror" in line] == []
    assert picture.stat().st_size > 50_000  # an empty page has 10,000


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize(
    "mistake",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="https://example.org/x.css">',
        "<script>missing.name = 1</script>",
    ],
)
def test_a_page_that_is_broken_offline_is_noticed(tmp_path: Path, mistake: str) -> None:
    path = tmp_path / "broken.html"
    path.write_text(f"<!doctype html><title>x</title>{mistake}")
    assert any("rror" in line for line in open_offline(path, tmp_path / "broken.png"))
