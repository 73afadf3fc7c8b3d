"""Steps of a config outside of Lightning: on its data, clipped as it says."""

from pathlib import Path

import pytest
import torch

from lmtemplate.study.experiments.trial_steps import TrialSteps
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
