"""Runs of a ladder and their law -> the figures, the intervals and the error that one reads."""

from pathlib import Path

import numpy as np
import pytest

from lmtemplate.study.experiments.law import Law
from lmtemplate.study.experiments.scaling_results import Point, Scaling, data_figure, write_page

HOFFMANN = Law(1.69, 406.4, 0.34, 410.7, 0.28)  # Hoffmann et al. 2022, equation 10


def test_the_page_has_the_interval_of_twice_as_much_data(tmp_path: Path) -> None:
    """D^-1 gains half of itself: 3 / 2000 and 5 / 2000 at 1000 tokens, the law between them."""
    laws = [Law(1.0, 1.0, 1.0, B, 1.0) for B in (3.0, 4.0, 5.0)]
    point = Point("a", 8, 4, 1000, 1000, 2.0)
    write_page(tmp_path, Scaling([point], laws[1], [laws[0]] * 50 + [laws[2]] * 50, 2.0))
    assert "0.0020 (0.0015 to 0.0025)" in (tmp_path / "scaling.html").read_text()


def test_the_law_of_the_largest_net_lies_in_a_band_of_its_color() -> None:
    laws = [Law(1.0, 1.0, 1.0, B, 1.0) for B in (3.0, 4.0, 5.0)]
    points = [Point("a", 8, 4, size, 1000, 2.0) for size in (500, 1000)]
    found = Scaling(points, laws[1], [laws[0]] * 50 + [laws[2]] * 50, 2.0)
    traces = {trace.name: trace for trace in data_figure(found).data if trace.mode != "markers"}
    line, band = traces["0.001M parameters"], traces["90 % of resampled laws"]
    assert band.fillcolor.startswith(line.line.color)
    excess = np.array(line.y) - 1 - 1 / 1000  # what the data leave: B / D
    assert np.array(band.y[:60]) - 1 - 1 / 1000 == pytest.approx(excess * 3 / 4)
    assert np.array(band.y[:59:-1]) - 1 - 1 / 1000 == pytest.approx(excess * 5 / 4)


def test_the_error_is_the_prediction_less_the_measured_loss() -> None:
    points = [Point("a", 8, 4, 1000, 2000, 3.0), Point("b", 16, 8, 4000, 4000, 2.5)]
    found = Scaling(points, HOFFMANN, [HOFFMANN], 2.6)
    assert found.as_json()["error"] == pytest.approx(0.1)
    assert "2.600 predicted" in found.text()
    assert "0.100 too high" in found.text()


def test_intervals_are_those_of_the_resampled_laws_and_the_best_split_costs_its_flops() -> None:
    laws = [Law(1.0, 1.0, 1.0, B, 1.0) for B in np.linspace(3.0, 5.0, 101)]
    last = Point("b", 16, 8, 1000, 500, 2.0)
    found = Scaling([last], laws[50], laws, 2.0).as_json()
    assert found["intervals"]["B"] == pytest.approx((3.1, 4.9))  # 5 % are left out on each side
    assert found["intervals"]["E"] == (1.0, 1.0)
    excess = np.array(found["predicted_interval"]) - 1 - 1 / 1000
    assert excess * 500 == pytest.approx((3.1, 4.9))
    for factor, split in zip((1, 10, 100), found["best_split"].values(), strict=True):
        assert 6 * split["parameters"] * split["tokens"] == pytest.approx(factor * 6 * 1000 * 500)
        assert split["tokens"] == pytest.approx(4 * split["parameters"])  # A / N is B / D there
