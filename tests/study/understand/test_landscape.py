"""The page of a run, used in a browser: its balls against torch.optim, its buttons and sliders."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmtemplate.optimizers import OptimizerRecipe
from lmtemplate.study.show.page import render
from lmtemplate.study.understand import landscape as study
from lmtemplate.study.understand.bowl import OPTIMIZERS, bowl_parts
from lmtemplate.study.understand.tables import as_table
from tests.browser import needs_browser, open_offline
from tests.conftest import Command
from tests.study.show.test_page import Elements, loads

STEPS, RATE, ROUGH_RATE = 20, 0.05, 0.03
START, ZERO = (-0.7, 0.6), (0.4, -1.5)
PLACES = torch.linspace(-1, 1, 17, dtype=torch.float64)


def quadratic(place: Tensor) -> Tensor:
    """(..., 2) -> (...) loss, whose Hessian has the eigenvalues 3 and 8."""
    x, y = place.unbind(-1)
    return 0.5 * (4 * x**2 + 7 * y**2) + 2 * x * y - 0.3 * x + 1


def rough(place: Tensor) -> Tensor:
    x, y = place.unbind(-1)
    return torch.sin(4 * x) * torch.cos(3 * y) + 2 * x**2 + y**2 + 0.3 * torch.sin(9 * x * y) + 3


def sampled(name: str, loss: Any) -> dict[str, Any]:
    x, y = torch.meshgrid(PLACES, PLACES, indexing="xy")
    values = loss(torch.stack([x, y], -1)).tolist()
    grid = {"x": PLACES.tolist(), "y": PLACES.tolist(), "loss": values}
    return {"name": name, **grid, "zero": ZERO, "unit": 50.0}


def invented() -> dict[str, Any]:
    snapshots = [
        {
            "step": step,
            "x": x,
            "y": y,
            "off_plane": 0.1,
            "loss": loss,
            "loss_on_plane": loss,
            "sharpness": sharp,
            "sharpness_error": 0.1,
            "largest_stable_rate": 2 / sharp if sharp > 0 else None,
        }
        for step, x, y, loss, sharp in (
            (0, *START, 4.0, -1.0),
            (1, 0, 0.2, 3.0, 8),
            (9, 0, 0, 1, 4),
        )
    ]
    surfaces = [sampled("quadratic", quadratic), sampled("rough", rough)]
    texts = {0: "</script>zxq", 1: "The then", 9: "The people"}
    return {
        "through": (0, 9, None),
        "best": 9,
        "share_in_plane": 0.5,
        "windows": 4,
        "tokens": 64,
        "snapshots": snapshots,
        "surfaces": surfaces,
        "texts": texts,
    }


# Everything that a hand would do, and what is then to be seen.
HAND = """
const seen = {};
const click = id => element(id).click();
const move = (id, value) => { element(id).value = value; element(id).dispatchEvent(new Event("input")); };
const choose = (id, value) => { element(id).value = value; element(id).dispatchEvent(new Event("change")); };
const trace = (id, name) => element(id).data.find(each => each.name === name && each.mode === "lines+markers");
const ball = (id, name) => { const {x, y} = trace(id, name); return [x.at(-1), y.at(-1)]; };
const length = id => trace(id, "SGD").x.length;
const wait = seconds => new Promise(done => setTimeout(done, 1000 * seconds));
const rolled = async (id, steps) => { for (let n = 0; n < 20 && length(id) <= steps; n++) await wait(.1); };
async function use() {
  seen.says = element("surface-says").textContent;
  seen.opening = Number(found.rates[element("surface-rate").value]);
  seen.first = length("surface");
  click("surface-step"); click("surface-step");
  seen.stepped = length("surface");
  click("surface-start");
  await rolled("surface", 5);
  seen.rolled = length("surface");
  click("surface-start");
  seen.paused = length("surface");
  await wait(.5);
  seen.still = length("surface");
  seen.alone = names.map(name => trace("surface", name).visible);
  click("surface-all");
  seen.compared = names.map(name => trace("surface", name).visible);
  seen.balls = names.map(name => ball("surface", name));
  click("surface-reset");
  seen.reset = length("surface");
  click("surface-step");
  seen.slow = ball("surface", "SGD");
  move("surface-rate", 8);
  click("surface-step");
  seen.fast = ball("surface", "SGD");
  choose("surface-schedule", "WarmupCosine");
  click("surface-step");
  seen.warming = ball("surface", "SGD");
  move("surface-rate", 12);
  seen.off = element("surface-says").textContent;
  element("surface").emit("plotly_click", {points: [{x: .25, y: -.5, xaxis: {_id: "x"}}]});
  seen.clicked = ball("surface", "SGD");
  move("snapshot", 2);
  seen.text = element("snapshot-text").textContent;
  seen.snapshot = element("snapshot-says").textContent;
  move("snapshot", 0);
  seen.evil = element("snapshot-text").textContent;
  choose("surface-map", 1);
  seen.other = [ball("surface", "SGD"), element("surface").data.map(each => each.name)];
  click("bowl-start");
  await rolled("bowl", 3);
  seen.bowl = length("bowl");
  const root = document.documentElement;
  seen.width = root.scrollWidth - root.clientWidth;
  seen.dark = dark.matches;
  const paths = (number, rate) => names.map(name => roll(slopes[number], name, START, ZERO, Array(STEPS).fill(rate)));
  seen.quadratic = paths(0, RATE);
  seen.rough = paths(1, ROUGH_RATE);
  seen.curvature = curvature(slopes[0], [.1, .2], .05);
  console.log("SEEN " + JSON.stringify(seen));
}
use();
"""


def used(folder: Path, *flags: str) -> dict[str, Any]:
    """What HAND has seen of the page in a browser; fails where the console has an error."""
    page, picture = folder / "page.html", folder / "page.png"
    found = invented()
    parts = {**bowl_parts(), "run": "<b>run", "found": study.surface_data(found)}
    parts["snapshots"] = as_table(found["snapshots"])
    numbers = {"START": [*START], "ZERO": [*ZERO], "STEPS": STEPS}
    numbers |= {"ROUGH_RATE": ROUGH_RATE, "RATE": RATE}
    script = HAND
    for name, value in numbers.items():
        script = re.sub(rf"\b{name}\b", json.dumps(value), script)
    html = render("landscape", "page", parts)
    assert "<b>run" not in html
    page.write_text(html.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    lines = open_offline(page, picture, *flags)
    assert [line for line in lines if "rror" in line] == []
    (said,) = (line for line in lines if '"SEEN ' in line)
    match = re.search(r'"SEEN (.*)", source:', said)
    assert match is not None
    seen: dict[str, Any] = json.loads(match[1])
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return used(tmp_path_factory.mktemp("page"))


def hermite(values: Tensor, way: Tensor) -> Tensor:
    """Cubic Hermite interpolation along the first axis, slopes from the neighbours' difference."""
    before, after = (
        3 * values[0] - 3 * values[1] + values[2],
        3 * values[-1] - 3 * values[-2] + values[-3],
    )
    wide = torch.cat([before[None], values, after[None]])
    cell = int(way.item())
    t, one, two = way - cell, wide[cell + 1], wide[cell + 2]
    slopes = (wide[cell + 2] - wide[cell]) / 2, (wide[cell + 3] - wide[cell + 1]) / 2
    return (
        (2 * t**3 - 3 * t**2 + 1) * one
        + (t**3 - 2 * t**2 + t) * slopes[0]
        + (3 * t**2 - 2 * t**3) * two
        + (t**3 - t**2) * slopes[1]
    )


def interpolated(place: Tensor) -> Tensor:
    """(1, 2) -> (1,) loss of the rough surface between its grid's points."""
    x, y = torch.meshgrid(PLACES, PLACES, indexing="xy")
    values, (u, v) = rough(torch.stack([x, y], -1)), (place[0] + 1) * 8
    return hermite(hermite(values, v), u)[None]


def by_torch(recipe: OptimizerRecipe, loss: Any, steps: int = STEPS) -> list[list[float]]:
    """Places of STEPS steps; decay pulls to ZERO, so the weights are counted from there."""
    zero = torch.tensor([ZERO], dtype=torch.float64)
    weights = torch.nn.Parameter(torch.tensor([START], dtype=torch.float64) - zero)
    optimizer, places = recipe.build(torch.nn.ParameterList([weights])), list[list[float]]()
    for _ in range(steps + 1):
        places.append((weights + zero)[0].tolist())
        optimizer.zero_grad()
        loss(weights + zero).sum().backward()
        optimizer.step()
    return places


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize("number", range(4))
def test_a_ball_steps_as_torch_optim_does(seen: dict[str, Any], number: int) -> None:
    recipe = [*OPTIMIZERS.values()][number]
    for surface, loss, rate in (
        ("quadratic", quadratic, RATE),
        ("rough", interpolated, ROUGH_RATE),
    ):
        path, expected = seen[surface][number], by_torch(recipe(rate), loss)
        rolled = [*zip(path["x"], path["y"], strict=True)]
        assert len(rolled) > STEPS // 2  # up to where it leaves the map
        for here, there in zip(rolled, expected, strict=False):
            assert here == pytest.approx(there, abs=1e-9)
        losses = [loss(torch.tensor([place], dtype=torch.float64)).item() for place in rolled]
        assert path["loss"] == pytest.approx(losses, abs=1e-9)


@needs_browser
@pytest.mark.browser
def test_the_maps_steepest_curvature_is_the_largest_eigenvalue(seen: dict[str, Any]) -> None:
    assert seen["curvature"] == pytest.approx(8, abs=1e-9)
    assert "c = 8.00" in seen["says"]
    assert "2 / c = 0.250" in seen["says"]
    assert seen["opening"] == 0.1  # the nearest to 1 / 8


@needs_browser
@pytest.mark.browser
def test_buttons_and_sliders_move_the_ball(seen: dict[str, Any]) -> None:
    assert (seen["first"], seen["stepped"], seen["reset"]) == (1, 3, 1)
    assert seen["rolled"] > 5
    assert seen["still"] == seen["paused"] == seen["rolled"]
    assert seen["bowl"] > 3
    start = torch.tensor([START], dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(quadratic, start)[0, 0]
    for name, rate in (("slow", 0.1), ("fast", 0.2), ("warming", 0.2 / 10)):
        assert seen[name] == pytest.approx((start[0] - rate * slope).tolist(), abs=1e-9)
    assert "Off the map: SGD at step" in seen["off"]
    assert seen["clicked"] == [0.25, -0.5]


@needs_browser
@pytest.mark.browser
def test_optimizers_are_compared_where_one_asks_for_it(seen: dict[str, Any]) -> None:
    assert seen["alone"] == [True, *["legendonly"] * 3]
    assert seen["compared"] == [True] * 4
    assert len({tuple(place) for place in seen["balls"]}) == 4


@needs_browser
@pytest.mark.browser
def test_a_snapshots_text_stands_under_the_map(seen: dict[str, Any]) -> None:
    assert seen["text"] == "The people"
    assert "Sharpness 4.00: plain descent is stable up to a rate of 0.500" in seen["snapshot"]
    assert seen["evil"] == "</script>zxq"
    place, names = seen["other"]
    assert place == [*study.RANDOM_START]
    assert "the run's snapshots" not in names


@needs_browser
@pytest.mark.browser
def test_on_a_dark_phone_nothing_sticks_out(tmp_path: Path, seen: dict[str, Any]) -> None:
    flags = "--blink-settings=preferredColorScheme=0", "--window-size=500,4000"
    phone = used(tmp_path, *flags)
    assert (seen["dark"], phone["dark"]) == (False, True)
    assert (seen["width"], phone["width"]) == (0, 0)


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("landscape") / "run"))


@pytest.mark.slow
def test_a_runs_page_has_all_that_is_printed_as_json(run: Path, command: Command) -> None:
    done = command("landscape", run, "--grid", 5, "--windows", 2, "--prompt", "ab", "--json")
    html, numbers = (run / "landscape.html").read_text("utf-8"), json.loads(done.out)
    found = re.search(r"^const found = (.*);$", html, re.MULTILINE)
    assert found is not None
    drawn = json.loads(found[1])
    assert {key: drawn[key] for key in numbers} == numbers
    assert [*numbers["texts"]] == [str(each["step"]) for each in numbers["snapshots"]]
    assert loads(html) == []
    assert Elements(html).count("script") == 2
    assert len(html) < 6e6
    shown = command("landscape", run, "--grid", 5, "--windows", 2, "--output", run / "other.html")
    assert "of the way from snapshot to snapshot" in " ".join(shown.out.split())
    assert (run / "other.html").is_file()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 3, "no run nowhere"),
        (["--json"], 2, "--json prints the numbers of a run"),
        (["nowhere", "--windows", "0"], 2, "--windows 0 has to be 1 or more"),
        (["nowhere", "--grid", "6"], 2, "grid"),
        (["nowhere", "--rate", "1"], 2, "rate"),
    ],
)
def test_a_wrong_word_gets_one_line(
    command: Command, words: list[str], code: int, says: str
) -> None:
    done = command("landscape", *words)
    assert (done.code, "\n" in done.error.strip()) == (code, False)
    assert says in done.error


def test_a_number_that_is_not_finite_is_null() -> None:
    assert study.finite({"a": [float("nan"), (1.5, None)], "b": "inf"}) == {
        "a": [None, [1.5, None]],
        "b": "inf",
    }
