"""A callback of one's own: what it logs is where all else is."""

import json
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.record import read_record
from tests.examples.conftest import Train
from tests.runs import curve, steps


@pytest.mark.slow
def test_norms_of_layers_stand_beside_the_loss_and_add_up(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "layer_norms", "--trainer.accumulate_grad_batches=2")
    record = read_record(run)
    layers = sorted(name for name in record.values if name.startswith("grad_norm/"))
    assert [name.partition("/")[2] for name in layers] == [
        *("blocks.0", "blocks.1", "embedding", "head", "shift"),
    ]
    for name in layers:
        assert steps(run, name) == steps(run, "train/loss") == record.steps.tolist()
        assert np.allclose([value for _, value in curve(run, name)], record.values[name])
    # the norm over all parameters, which the core logs itself, is that of the layers' norms
    squares = sum(record.values[name] ** 2 for name in layers)
    assert np.allclose(np.sqrt(squares), record.values["optim/grad_norm"], rtol=1e-4)
    lines = (run / "checkpoints/training_metrics.jsonl").read_text().splitlines()
    said = [json.loads(line)["step"] for line in lines if "grad_norm/head" in line]
    assert said == [2, 4, 6, 8, 10, 12]
