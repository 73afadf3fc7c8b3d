"""The landscape page: formulas against closed forms, its bytes, a browser without network."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lmtemplate import schedules
from lmtemplate.errors import ConfigError
from lmtemplate.optimizers import SGD, AdamW
from lmtemplate.study.show import landscape as page
from tests.browser import needs_browser, open_offline

STEEP = page.CURVATURES.max().item()


def way(rate: float, noise: float = 0.0) -> Tensor:
    """(STEPS + 1, 2) distances from the bottom, of plain descent."""
    return page.roll(SGD(rate, momentum=0.0), noise) - page.BOTTOM


@pytest.fixture(scope="module")
def figure() -> page.Json:
    return page.landscape_figure()


@pytest.fixture(scope="module")
def html(figure: page.Json) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "landscape_figure", lambda: figure)  # it takes a second to make
        return page.write_page()


def test_the_loss_is_half_curvature_times_squared_distance() -> None:
    loss = page.loss_at(page.BOTTOM + torch.tensor([3.0, 0.2], dtype=torch.float64))
    assert loss.item() == pytest.approx(0.5 * 1.0 * 9 + 0.5 * STEEP * 0.04, rel=1e-12)


def test_the_steep_curvature_is_slightly_above_20() -> None:
    assert 20 < STEEP < 20.5


@pytest.mark.parametrize("rate", page.RATES)
def test_plain_descent_keeps_one_minus_rate_times_curvature_a_step(rate: float) -> None:
    steps = torch.arange(page.STEPS + 1, dtype=torch.float64)[:, None]
    start = page.START - page.BOTTOM
    torch.testing.assert_close(
        way(rate), start * (1 - rate * page.CURVATURES) ** steps, rtol=1e-9, atol=1e-14
    )


def test_at_one_over_curvature_a_step_lands_on_the_valleys_floor() -> None:
    assert abs(way(1 / STEEP)[1, 1]) < 1e-12
    shares = {rate: abs(1 - rate * STEEP) for rate in page.RATES}
    assert min(shares, key=lambda rate: shares[rate]) == 0.05


def test_a_tenth_is_over_the_edge_and_every_other_rate_is_not() -> None:
    growing = [rate for rate in page.RATES if abs(way(rate)[-1, 1]) > abs(way(rate)[0, 1])]
    assert growing == [0.1] == [rate for rate in page.RATES if rate > 2 / STEEP]


def test_at_a_tenth_the_ball_jumps_from_wall_to_wall_further_each_time() -> None:
    heights = way(0.1)[:, 1].tolist()
    assert all(a * b < 0 and abs(b) > abs(a) for a, b in pairwise(heights))


def test_at_0_005_most_of_the_way_is_still_ahead() -> None:
    assert abs(way(0.005)[-1, 0] / way(0.005)[0, 0]) > 0.7
    assert abs(way(0.05)[-1, 0] / way(0.05)[0, 0]) < 0.05


def expected_loss(rate: float, noise: float, steps: int) -> float:
    """Mean over the noise: each axis keeps its share of the start, and of every earlier kick."""
    total = 0.0
    for curvature, start in zip(page.CURVATURES, page.START - page.BOTTOM, strict=True):
        share = (1 - rate * curvature.item()) ** 2
        kicks = (rate * noise) ** 2 * sum(share**n for n in range(steps))
        total += 0.5 * curvature.item() * (share**steps * start.item() ** 2 + kicks)
    return total


def test_with_noise_the_sweet_spot_is_0_03_to_0_05_on_average() -> None:
    losses = {rate: expected_loss(rate, page.NOISE, page.STEPS) for rate in page.RATES}
    assert set(sorted(losses, key=lambda rate: losses[rate])[:3]) == {0.03, 0.04, 0.05}


def test_with_noise_the_sweet_spot_is_0_03_to_0_05_on_the_page() -> None:
    ends = {rate: page.loss_at(way(rate, page.NOISE) + page.BOTTOM)[-20:] for rate in page.RATES}
    means = {rate: end.mean().item() for rate, end in ends.items()}
    assert set(sorted(means, key=lambda rate: means[rate])[:3]) == {0.03, 0.04, 0.05}


def test_the_noise_is_the_same_for_every_rate() -> None:
    kicks = [
        (way(rate, 1.0)[1] - way(rate)[1]) / -rate  # the first step, with and without
        for rate in (0.01, 0.1)
    ]
    torch.testing.assert_close(kicks[0], kicks[1])


def test_momentum_follows_its_recurrence() -> None:
    place, speed = page.START - page.BOTTOM, torch.zeros(2, dtype=torch.float64)
    for _ in range(page.STEPS):
        speed = 0.9 * speed + page.CURVATURES * place
        place = place - 0.03 * speed
    rolled = page.roll(page.OPTIMIZERS["momentum 0.9"](0.03), 0.0)
    torch.testing.assert_close(rolled[-1], place + page.BOTTOM, rtol=1e-10, atol=0)


def test_adams_first_step_is_the_rate_along_every_axis() -> None:
    rolled = page.roll(page.OPTIMIZERS["Adam"](0.05), 0.0)
    towards = torch.sign(page.BOTTOM - page.START)
    torch.testing.assert_close(rolled[1] - page.START, 0.05 * towards, rtol=1e-7, atol=0)


def test_adamw_takes_the_step_that_one_writes_by_hand() -> None:
    rate, beta1, beta2, eps, decay = 0.05, 0.9, 0.95, 1e-8, 0.5
    recipe = AdamW(rate, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    rolled = page.roll(recipe, 0.0)
    first, second = 0.0, 0.0
    place = page.START
    for step in (1, 2, 3):
        slope = page.CURVATURES * (place - page.BOTTOM)
        first = beta1 * first + (1 - beta1) * slope
        second = beta2 * second + (1 - beta2) * slope**2
        step_size = (first / (1 - beta1**step)) / ((second / (1 - beta2**step)).sqrt() + eps)
        place = place - rate * decay * place - rate * step_size
        torch.testing.assert_close(rolled[step], place, rtol=1e-12, atol=0)


def test_the_slider_has_the_documents_rates_and_starts_each_at_the_start(figure: page.Json) -> None:
    steps = figure["layout"]["sliders"][0]["steps"]
    assert {"0.005", "0.030", "0.050", "0.100"} <= {step["label"] for step in steps}
    frames = {frame["name"]: frame for frame in figure["frames"]}
    for step in steps:
        ball = frames[step["args"][0][0]]["data"][0]
        assert (ball["x"], ball["y"]) == ([-1.8], [1.1])


def test_the_slider_gives_start_the_frames_of_its_rate(figure: page.Json) -> None:
    frames = {frame["name"]: frame for frame in figure["frames"]}
    for step in figure["layout"]["sliders"][0]["steps"]:
        menus = frames[step["args"][0][0]]["layout"]["updatemenus"]
        group = menus[0]["buttons"][0]["args"][0]
        assert float(group) == float(step["label"])
        assert sum(frame["group"] == group for frame in figure["frames"]) == page.STEPS + 1


def test_the_last_frame_shows_the_whole_way_with_the_ball_at_its_end(figure: page.Json) -> None:
    last = next(frame for frame in figure["frames"] if frame["name"] == f"0.05 {page.STEPS}")
    for trace, recipe in zip(last["data"], page.OPTIMIZERS.values(), strict=False):
        rolled = page.roll(recipe(0.05))
        assert trace["x"] == pytest.approx(rolled[:, 0].flip(0).tolist(), rel=1e-3)
        assert trace["y"] == pytest.approx(rolled[:, 1].flip(0).tolist(), rel=1e-3)


def test_low_error_is_green_and_high_error_red() -> None:
    colours = [colour for _, colour in page.landscape_map()["colorscale"]]
    (low, high) = (
        [int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (colours[0], colours[-1])
    )
    assert low[1] == max(low)
    assert high[0] == max(high)


def test_every_shape_of_schedule_is_drawn_as_it_is_computed() -> None:
    drawn = page.schedule_figure()
    shapes = {
        name
        for name, value in vars(schedules).items()
        if isinstance(value, type) and schedules.Schedule in value.__bases__
    }
    by_name = {trace["name"]: trace for trace in drawn["data"]}
    assert by_name.keys() == shapes
    cosine = schedules.WarmupCosine(warmup_steps=100)
    for step, factor in zip(
        by_name["WarmupCosine"]["x"], by_name["WarmupCosine"]["y"], strict=True
    ):
        assert factor == pytest.approx(cosine.factor(step, page.RUN_STEPS), rel=1e-3)


def test_the_word_to_come_has_the_documents_losses() -> None:
    guess = torch.tensor(page.GUESS, dtype=torch.float64).log()
    assert page.word_loss(guess).item() == pytest.approx(1.61, abs=0.005)
    labels = page.word_figure()["layout"]["sliders"][0]["steps"]
    losses = [float(step["args"][1]["xaxis.title.text"].split()[-1]) for step in labels]
    assert losses[0] == 1.609
    assert losses[-1] < 0.105
    assert losses == sorted(losses, reverse=True)


def test_temperature_is_a_power_of_the_probabilities() -> None:
    for step in page.word_figure()["layout"]["sliders"][1]["steps"]:
        powers = [share ** (1 / float(step["label"])) for share in page.GUESS]
        expected = [power / sum(powers) for power in powers]
        assert step["args"][0]["y"][0] == pytest.approx(expected, rel=1e-3)


class Loads(HTMLParser):
    """Collects whatever a page would fetch, and the text of its styles."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.styles = ""
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        loads = {"src", "srcset", "data", "poster"} | ({"href"} if tag != "a" else set())
        self.fetched += [f"{tag} {value}" for name, value in attrs if name in loads]
        self.styles += " ".join(value or "" for name, value in attrs if name == "style")

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.styles += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def test_the_page_loads_nothing_from_elsewhere(html: str) -> None:
    loads = Loads()
    loads.feed(html)
    assert loads.fetched == []
    assert not re.search(r"@import|url\(", loads.styles)


def test_the_page_has_plotly_once_and_no_logo(html: str) -> None:
    assert html.count("Plotly.newPlot(") == 3
    assert 3e6 < len(html) < 9e6
    assert html.count('"displaylogo": false') == 3


def test_a_page_of_its_own_is_replaced_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page, "write_page", lambda: f"<!doctype html>{page.MARK}")
    output = tmp_path / "new" / "landscape.html"
    page.landscape(output)
    page.landscape(output)
    assert page.MARK in output.read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"{output}\n" * 2
    output.write_text("my notes")
    with pytest.raises(ConfigError, match=r"landscape\.html exists and is no landscape page"):
        page.landscape(output)
    assert output.read_text() == "my notes"
    with pytest.raises(ConfigError, match="is no landscape page"):
        page.landscape(tmp_path)


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
