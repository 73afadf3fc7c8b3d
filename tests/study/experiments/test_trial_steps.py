"""Steps of a config outside of Lightning: on its data, clipped as it says."""

from functools import partial
from pathlib import Path

import pytest
import torch

from lmtemplate.__main__ import explain
from lmtemplate.study.experiments.trial_steps import TrialSteps
from lmtemplate.study.show.schedule import schedule
from tests.conftest import TINY

SGD = ["--model.optimizer=lmtemplate.optimizers.SGD", "--model.optimizer.lr=1.0"]
SGD += ["--model.optimizer.momentum=0.0"]


@pytest.mark.parametrize("by", ["value", "norm"])
def test_few_sequences_are_read_again_and_gradients_clipped_as_the_config_says(
    corpus: Path, tmp_path: Path, by: str
) -> None:
    words = [f"--data.path={corpus}", *TINY, f"--run_dir={tmp_path / 'run'}", *SGD]
    words += ["--trainer.gradient_clip_val=0.001", f"--trainer.gradient_clip_algorithm={by}"]
    trial = TrialSteps("find-lr", [*words, "--data.max_train_blocks=3"], [])
    before = [parameter.detach().clone() for parameter in trial.net.parameters()]
    for _ in range(2):
        inputs, targets = trial.next_batch()
        assert inputs.shape == (4, 16)
    trial.step(inputs, targets)
    after = trial.net.parameters()
    moved = torch.cat([(p.detach() - q).ravel() for p, q in zip(after, before, strict=True)])
    size = moved.abs().max() if by == "value" else moved.norm()
    assert size.item() == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "setting"), [("Adam", "betas=[2.0, 0.9]"), ("AdamW", "betas=[2.0, -1.0]")]
)
def test_an_optimizer_that_refuses_its_settings_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, setting: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lmtemplate.errors.own_line", lambda _: None)  # no own code but this test
    words = [f"--data.path={corpus}", *TINY, f"--run_dir={tmp_path / 'run'}"]
    words += [f"--model.optimizer=lmtemplate.optimizers.{name}", f"--model.optimizer.{setting}"]
    for train in (partial(TrialSteps, "find-lr"), schedule):
        with pytest.raises(ValueError, match="Invalid beta") as refused:
            train(words, [])
        line, code = explain(refused.value)
        assert line.startswith(
            "model.optimizer or model.schedule does not fit: ValueError: Invalid"
        )
        assert code == 2
