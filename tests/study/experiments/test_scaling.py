"""Runs of a ladder -> the law that made them, and a prediction that is held against a real run."""

import json
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.study.experiments.law import Law, fit_law, interval
from lmtemplate.study.experiments.scaling_results import Point, Scaling
from tests.conftest import TINY, Command

HOFFMANN = Law(1.69, 406.4, 0.34, 410.7, 0.28)  # Hoffmann et al. 2022, equation 10
SIZES = np.repeat([1e6, 3e6, 1e7, 3e7], 4)
TOKENS = np.tile([1e7, 1e8, 1e9, 1e10], 4)


def test_the_law_that_made_losses_is_found_again() -> None:
    law, _ = fit_law(SIZES.tolist(), TOKENS.tolist(), HOFFMANN.loss(SIZES, TOKENS).tolist())
    found = (law.E, law.A, law.a, law.B, law.b)
    assert found == pytest.approx((1.69, 406.4, 0.34, 410.7, 0.28), rel=1e-3)


def test_a_run_gone_wrong_moves_the_law_little() -> None:
    """Huber's loss: in squares, one loss that is 30 % too high would move it far."""
    losses = HOFFMANN.loss(SIZES, TOKENS)
    losses[5] *= 1.3
    law, _ = fit_law(SIZES.tolist(), TOKENS.tolist(), losses.tolist())
    assert float(law.loss(1e8, 1e11)) == pytest.approx(float(HOFFMANN.loss(1e8, 1e11)), rel=0.02)


def test_intervals_hold_the_truth_and_shrink_with_the_noise() -> None:
    widths = []
    for noise in (0.01, 0.001):
        errors = np.random.default_rng(1).normal(0, noise, len(SIZES))
        losses = HOFFMANN.loss(SIZES, TOKENS) * np.exp(errors)
        _, laws = fit_law(SIZES.tolist(), TOKENS.tolist(), losses.tolist())
        low, high = interval([float(law.loss(1e8, 1e10)) for law in laws])
        assert low < float(HOFFMANN.loss(1e8, 1e10)) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_the_best_split_has_the_lowest_loss_for_its_flops() -> None:
    """Against a search over all splits of as much compute."""
    parameters, tokens = HOFFMANN.best_split(1e20)
    assert 6 * parameters * tokens == pytest.approx(1e20)
    sizes = np.geomspace(1e7, 1e11, 4001)
    searched = sizes[HOFFMANN.loss(sizes, 1e20 / (6 * sizes)).argmin()]
    assert parameters == pytest.approx(searched, rel=0.01)


def test_the_error_is_the_prediction_less_the_measured_loss() -> None:
    points = [Point("a", 8, 4, 1000, 2000, 3.0), Point("b", 16, 8, 4000, 4000, 2.5)]
    found = Scaling(points, HOFFMANN, [HOFFMANN], 2.6)
    assert found.as_json()["error"] == pytest.approx(0.1)
    assert "2.600 predicted" in found.text()
    assert "0.100 too high" in found.text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "scaling needs --run_dir"),
        (["--run_dir=x", "--budget=ten"], "is no time; give it as 90s, 10m or 2h"),
    ],
)
def test_a_mistake_is_one_line(command: Command, words: list[str], says: str) -> None:
    result = command("scaling", *words)
    assert (result.code, says in result.error) == (2, True)


def test_a_budget_that_is_too_small_names_one_that_is_not(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ladder"
    result = command("scaling", "--budget=20s", "--data.path", corpus, *TINY, "--run_dir", folder)
    assert result.code == 2
    assert "is too short; give --budget 3m or more" in result.error
    assert not (folder / "ladder.json").exists()


@pytest.mark.slow
def test_a_ladder_foretells_its_largest_run_before_it_is_trained(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "ladder"
    words = ["scaling", "--budget=130s", "--data.path", corpus, *TINY, "--run_dir", folder]
    result = command(*words, "--json")
    found = json.loads(result.out[result.out.index("{") :])
    told = json.loads((folder / "prediction.json").read_text())["val_loss"]
    assert told == pytest.approx(found["predicted"])
    last = folder / f"trial-{len(found['points']) - 1:03d}"
    assert (folder / "prediction.json").stat().st_mtime < (last / "config.yaml").stat().st_mtime
    assert abs(found["error"]) < 0.5
    assert found["points"][-1]["tokens"] == max(point["tokens"] for point in found["points"])
    assert "More data, less loss" in (folder / "scaling.html").read_text()
    again = command(*words, "--json")  # everything is there: nothing is trained
    assert json.loads(again.out[again.out.index("{") :]) == found
