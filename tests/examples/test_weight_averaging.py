"""Averages of the weights, against an average taken by hand."""

import json
import re
from pathlib import Path

import pytest
import torch

from tests.conftest import Command
from tests.examples.conftest import Train, copy_killed_after_8
from tests.runs import curve, equal, load

pytestmark = pytest.mark.slow

DECAY = {
    "weight_averaging": "--weight_averaging.decay=0.5",
    "lightning_ema": "--trainer.callbacks.decay=0.5",
}
EVERY_STEP = "--checkpoint.milestones=1000"


@pytest.mark.parametrize("example", ["weight_averaging", "lightning_ema"])
def test_the_best_checkpoint_is_the_average_and_validation_used_it(
    train: Train, command: Command, tmp_path: Path, example: str
) -> None:
    run = tmp_path / "run"
    train(run, example, DECAY[example], EVERY_STEP)
    best = json.loads((run / "checkpoints/best.json").read_text())
    trained = [
        torch.load(run / f"checkpoints/milestones/step-{step:09d}.ckpt", weights_only=True)
        for step in range(1, best["step"] + 1)
    ]
    average = trained[0]["state_dict"]
    for after in trained[1:]:
        average = {k: 0.5 * v + 0.5 * after["state_dict"][k] for k, v in average.items()}
    saved = load(run, best["step"])["state_dict"]
    assert not equal(saved, trained[-1]["state_dict"])
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-5, atol=1e-6)
    shown = command("validate", run, "--checkpoint", "best", "--allow=lightning").out
    again = float(re.findall(r"val/loss\s+([\d.]+)", shown)[0])
    assert dict(curve(run, "val/loss"))[best["step"]] == pytest.approx(again, abs=1e-5)


@pytest.mark.parametrize("example", DECAY)
def test_a_resumed_average_is_the_same_to_the_bit(
    train: Train, tmp_path: Path, example: str
) -> None:
    train(tmp_path / "whole", example, DECAY[example])
    copy = copy_killed_after_8(tmp_path / "whole", tmp_path / "killed")
    train(copy, example, DECAY[example], "--resume=must")
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert equal(load(copy, 12)[key], load(tmp_path / "whole", 12)[key]), key
