"""A training step of one's own."""

from pathlib import Path

import pytest

from lmtemplate.record import read_record
from tests.examples.conftest import Train
from tests.runs import equal, load, steps

pytestmark = pytest.mark.slow


def test_noise_0_changes_nothing_and_noise_1_all(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "plain")
    for noise in (0, 1):
        train(tmp_path / f"noise_{noise}", "step", f"--model.noise={noise}")
    plain = load(tmp_path / "plain", 12)["state_dict"]
    assert equal(load(tmp_path / "noise_0", 12)["state_dict"], plain)
    assert not equal(load(tmp_path / "noise_1", 12)["state_dict"], plain)


def test_what_the_step_logs_is_where_train_loss_is(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "step", "--model.noise=0.5", "--data.batch_size=32")
    assert steps(run, "train/replaced") == steps(run, "train/loss") == [2, 4, 6, 8, 10, 12]
    replaced = read_record(run).values["train/replaced"]
    # 512 tokens each: the standard deviation of the mean over 6 points is 0.009
    assert replaced.mean() == pytest.approx(0.5, abs=0.05)
    assert load(run, 12)["config"]["model"]["class_path"] == "examples.step.NoisyInputs"
