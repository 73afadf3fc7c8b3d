"""Runs of a ladder -> a prediction that is held against a real run."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmtemplate.data import IGNORED
from lmtemplate.errors import CheckpointError
from lmtemplate.study.experiments import scaling
from lmtemplate.study.experiments.law import Law
from lmtemplate.study.experiments.scaling_results import Point, Scaling, data_figure, write_page
from lmtemplate.study.run_files import append_line
from tests.conftest import TINY, Command
from tests.study.show.test_page import write_run

HOFFMANN = Law(1.69, 406.4, 0.34, 410.7, 0.28)  # Hoffmann et al. 2022, equation 10


class Even(nn.Module):
    """Gives token 0 one half of the probability, and nine others the rest."""

    block_size, vocab_size = 4, 10

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.log(torch.tensor([9.0] + [1.0] * 9)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(*tokens.shape, 10)


class Text:
    """Nine tokens of 0, one of 9, and ten that carry no loss; 9 is rare in training."""

    def batch(self, *_: object) -> tuple[Tensor, ...]:
        targets = torch.tensor([0] * 9 + [9] + [IGNORED] * 10).view(5, 4)
        return torch.zeros_like(targets), targets, torch.tensor(5)

    def training_tokens(self, _: int) -> np.ndarray:
        return np.array([0] * 50 + [9])


def test_the_rarest_tenth_is_told_from_the_rest_and_padding_counts_for_neither() -> None:
    model: Any = SimpleNamespace(net=Even())
    corpus: Any = Text()
    assert scaling.token_losses(model, corpus) == pytest.approx((np.log(18), np.log(2), 0.5))


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


@pytest.mark.parametrize("sizes", [(1000, 1000), (2**52, 2**52 + 7)])
def test_runs_of_one_size_have_no_law(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """Resampling would look for two sizes without an end."""
    for name in ("parameters", "tokens"):
        points = [Point("a", 8, 4, 500, 500, 3.0), Point("b", 8, 4, 1000, 1000, 2.0)]
        points = [replace(p, **{name: size}) for p, size in zip(points, sizes, strict=True)]
        with pytest.raises(CheckpointError, match=f"{name} .*too close for a law"):
            scaling.check_spread(tmp_path, points)


@pytest.mark.parametrize("loss", [-1.0, 0.0, 1e-300])
def test_a_loss_that_no_law_has_is_named_with_its_run(tmp_path: Path, loss: float) -> None:
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text('{"parameters": 1000, "tokens": 1000}')
    append_line(run / "checkpoints/training_metrics.jsonl", f'{{"step": 99, "val/loss": {loss}}}')
    with pytest.raises(CheckpointError, match="run: no law has a val/loss of"):
        scaling.measure_run(run, 8, 4, [])


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
    command: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two widths of three lengths: 60 s to start them, 40 steps and parts of them take 105 s."""
    monkeypatch.setattr(scaling, "measured_seconds", lambda _: 0.75)
    folder = tmp_path / "ladder"
    words = ["--data.path", corpus, *TINY, "--model.net.n_embd=8", "--run_dir", folder]
    result = command("scaling", "--budget=160s", *words)
    assert result.code == 2
    assert "a ladder up to 38 steps is too short; give --budget 4m or more" in result.error
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
