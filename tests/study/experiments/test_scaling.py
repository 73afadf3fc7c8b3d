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
from lmtemplate.study.experiments.scaling_results import Point
from lmtemplate.study.run_files import append_line
from tests.conftest import TINY, Command
from tests.study.show.test_page import write_run


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
        (["--run_dir=x", "--budget=nanm"], "is no time; give it as 90s, 10m or 2h"),
        (["--run_dir=x", "--budget=1e999s"], "is no time; give it as 90s, 10m or 2h"),
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
