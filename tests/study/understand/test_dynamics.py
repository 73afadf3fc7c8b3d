"""What is logged of a net that trains, against its snapshots; training goes on as without."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmtemplate.checkpoint.compatibility import NET
from lmtemplate.checkpoint.files import read
from lmtemplate.record import read_lines
from lmtemplate.study.diagnose.artifacts import open_model
from lmtemplate.study.understand.inside import update_ratios
from tests.conftest import Command
from tests.runs import check_line, curve, different, equal, load, train

EVERY = 3
FLAGS = (f"--dynamics.every_steps={EVERY}", "--model.net.dropout=0.1", "--model.net.n_layer=3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "run", corpus, *FLAGS)


def logged(run: Path, step: int) -> dict[str, Any]:
    """Name -> value, of all lines of a step."""
    return {k: v for line in read_lines(run) if line["step"] == step for k, v in line.items()}


@pytest.mark.slow
def test_each_layer_has_curves_and_histograms_at_each_third_step(run: Path) -> None:
    board = EventAccumulator(str(run), size_guidance={"scalars": 0, "histograms": 0})
    board.Reload()
    for name in ("activation_rms", "attention_entropy", "dead_units", "update_ratio"):
        for layer in range(3):
            values = board.Scalars(f"dynamics/{name}/blocks.{layer}")
            assert [event.step for event in values] == [3, 6, 9, 12]
    kinds = {name.rpartition("/")[0] for name in board.Tags()["histograms"]}
    assert kinds == {"dynamics/activation", "dynamics/gradient"}
    assert [event.step for event in board.Histograms("dynamics/gradient/blocks.1")] == [3, 6, 9, 12]


@pytest.mark.slow
def test_updates_are_those_of_the_snapshots_and_norms_add_up(run: Path) -> None:
    folder = run / "checkpoints" / "milestones"
    weights = [read(folder / f"step-{step:09d}.ckpt")["state_dict"] for step in (2, 3)]
    states = [{name.removeprefix(NET): v for name, v in state.items()} for state in weights]
    values = logged(run, 3)
    for part, ratio in update_ratios(open_model(run).net, *states).items():
        assert values[f"dynamics/update_ratio/{part}"] == pytest.approx(
            ratio, rel=0.1
        )  # of the weights that are looked at
    values = logged(run, 12)
    norms = [value for name, value in values.items() if "/gradient_norm/" in name]
    assert math.hypot(*norms) == pytest.approx(values["optim/grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_training_is_the_same_as_without_and_so_is_a_resume(
    run: Path, tmp_path: Path, corpus: Path, fit: Command
) -> None:
    without = train(tmp_path / "without", corpus, *FLAGS[1:])
    for key in ("state_dict", "optimizer_states", "random_states"):
        assert equal(load(run, 12)[key], load(without, 12)[key])
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    for path in cut.glob("checkpoints/step-*12.ckpt"):
        path.unlink()
    (cut / "summary.json").unlink()
    assert fit(cut, *FLAGS, "--resume=must").code == 0
    assert different(run, cut, 12) == []
    for tag in ("dynamics/update_ratio/head", "dynamics/largest_logit"):
        assert curve(cut, tag) == curve(run, tag)


def test_a_number_of_steps_that_is_none_is_one_line(fit: Command, tmp_path: Path) -> None:
    answer = fit(tmp_path / "run", "--dynamics.every_steps=0")
    assert "dynamics.every_steps" in check_line(answer, 2)


def test_it_is_off_until_something_is_set(finished: Path) -> None:
    names = {name for line in read_lines(finished) for name in line}
    assert not any(name.startswith("dynamics/") for name in names)
    assert yaml.safe_load((finished / "config.yaml").read_text())["dynamics"] is None
