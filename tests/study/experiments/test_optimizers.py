"""Optimizers on the same batches: a search that is the same for all, and a table that is true."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.cli import TrainingCLI
from lmtemplate.errors import NumbersError
from lmtemplate.run_dir import folder_of
from lmtemplate.study.experiments import optimizers
from lmtemplate.study.experiments.optimizers import (
    CONTENDERS,
    HALF_DECADE,
    MOST_RATES,
    best_rate,
    compare_optimizers,
    next_rate,
    reached,
)
from lmtemplate.study.show.page import read_run
from tests.conftest import TINY
from tests.study.experiments.seeded import write_seed
from tests.study.show.test_page import BYTES_PER_TOKEN, SECONDS_PER_STEP


@pytest.mark.parametrize(("best", "tried"), [(0.1, 3), (0.02, 4), (1.2, 5), (1e9, MOST_RATES)])
def test_the_search_ends_beside_the_best_rate_or_after_as_many_tries_for_all(
    best: float, tried: int
) -> None:
    scores = dict[float, float]()
    while (rate := next_rate(scores, 0.1)) is not None:
        scores[rate] = abs(np.log(rate / best))
    assert len(scores) == tried
    if tried < MOST_RATES:
        assert abs(np.log(best_rate(scores) / best)) <= np.log(HALF_DECADE) / 2


def test_where_all_diverge_lower_rates_are_tried() -> None:
    scores = dict[float, float]()
    while (rate := next_rate(scores, 0.1)) is not None:
        scores[rate] = np.inf
    assert len(scores) == MOST_RATES
    assert best_rate(scores) == min(scores)
    assert max(scores) == pytest.approx(0.1 * HALF_DECADE)


def test_steps_and_seconds_to_a_loss_lie_on_the_line_between_two_validations(
    tmp_path: Path,
) -> None:
    run = read_run(write_seed(tmp_path / "run", 1))
    bits = 1.25 / np.log(2) / BYTES_PER_TOKEN  # between 2.0 at step 10 and 1.0 at step 20
    assert reached(run, bits) == pytest.approx((17.5, 17.5 * SECONDS_PER_STEP))
    assert np.isnan(reached(run, 0.0)).all()


def pretend(words: list[str], allowed: list[str], arm: Path, seed: int) -> Path:
    """A run whose score depends on rate and seed alone; Adam of any rate diverges."""
    if not (arm / f"seed-{seed}").exists():
        flags = dict(word[2:].split("=", 1) for word in words if word.startswith("--model"))
        shift = abs(np.log10(float(flags["model.optimizer.lr"]))) + 0.01 * seed
        write_seed(arm / f"seed-{seed}", seed, shift)
        TRAINED.append(arm.name)
        if flags["model.optimizer"].endswith(".Adam"):
            (arm / f"seed-{seed}" / "summary.json").write_text('{"stop_reason": "numbers"}')
            raise NumbersError("train/loss is NaN")
    return arm / f"seed-{seed}"


TRAINED: list[str] = []


def test_the_table_is_that_of_the_best_rates_and_the_same_command_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(optimizers, "train_seed", pretend)
    monkeypatch.setattr(optimizers, "first_of", lambda *_: (tmp_path / "all", 1))
    monkeypatch.setenv("COLUMNS", "200")
    compare_optimizers(["--seeds=3"], [])
    printed = capsys.readouterr().out
    assert re.search(r"^ +adamw +adam +muon +momentum +sgd$", printed, re.M)
    assert "Rates tried on seed 1, of which the best was taken: adamw 6, adam 6, muon 6," in printed
    # momentum's best rate is 1, where the score is that of the record and 0.01 for each seed
    best = 0.5 / np.log(2) / BYTES_PER_TOKEN + 0.02
    assert re.search(rf"best bits per byte( +\d\.\d+){{3}} +{best:.4f} +{best:.4f}$", printed, re.M)
    assert "deviation of seeds" in printed
    trained = len(TRAINED)
    compare_optimizers(["--seeds=3", "--json"], [])
    told = json.loads(capsys.readouterr().out)
    assert len(TRAINED) == trained
    assert [one["rate"] for one in told["optimizers"]][3:] == pytest.approx([1, 1])
    assert told["optimizers"][1]["tried"] == dict.fromkeys(told["optimizers"][1]["tried"])
    assert (tmp_path / "all" / "optimizers.html").is_file()


def test_where_every_run_diverges_the_log_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(words: list[str], allowed: list[str], arm: Path, seed: int) -> Path:
        record = folder_of(arm / f"seed-{seed}") / "training_metrics.jsonl"
        record.parent.mkdir(parents=True)
        record.write_text('{"step": 1, "train/loss": 5.0}\n')
        raise NumbersError("train/loss is NaN")

    monkeypatch.setattr(optimizers, "train_seed", diverge)
    monkeypatch.setattr(optimizers, "first_of", lambda *_: (tmp_path, 1))
    with pytest.raises(NumbersError, match=r"every run diverged.*output\.log says which"):
        compare_optimizers(["--seeds=1", "--json"], [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "rates"),
    [
        ("adamw", "AdamW", {0.02}),
        ("adam", "Adam", {0.02}),
        ("muon", "MuonAdamWOptimizer", {0.02, 0.003}),
        ("momentum", "SGD", {0.02}),
        ("sgd", "SGD", {0.02}),
    ],
)
def test_the_words_of_each_build_that_optimizer_at_that_rate(
    name: str, kind: str, rates: set[float], corpus: Path
) -> None:
    config = ["--config=configs/quickstart.yaml", f"--data.path={corpus}", *TINY]
    model = TrainingCLI([*config, *CONTENDERS[name].words(0.02)]).model
    optimizer = model.recipe.build(model.net)
    assert type(optimizer).__name__ == kind
    assert {group["lr"] for group in optimizer.param_groups} == rates
    if kind == "SGD":
        assert optimizer.defaults["momentum"] == (0.9 if name == "momentum" else 0)
