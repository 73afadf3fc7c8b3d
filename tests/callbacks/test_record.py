"""A run -> its record, equal to the last bit to what TensorBoard has; whole after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmtemplate.callbacks.record import RecordLogger

from lmtemplate.callbacks import record as module
from lmtemplate.record import LINES, from_lines, read_lines, read_record
from tests.conftest import TINY, Command
from tests.runs import curve, load, train

ROOT = Path(__file__).parents[2]


def arrays(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "checkpoints/training_metrics.json").read_text())
    return content


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 steps, logged every 5, validated every 4."""
    flags = ["--trainer.log_every_n_steps=5", "--trainer.max_steps=13"]
    return train(tmp_path_factory.mktemp("record") / "run", corpus, *flags)


def test_there_is_a_row_every_n_steps_at_validations_and_at_the_end(run: Path) -> None:
    assert arrays(run)["steps"] == [4, 5, 8, 10, 12, 13]


def test_every_validation_has_its_value(run: Path) -> None:
    evaluated = [value is not None for value in arrays(run)["val_loss"]]
    assert evaluated == [True, False, True, False, True, True]


def test_the_record_is_what_tensorboard_shows_to_its_last_bit(run: Path) -> None:
    record = read_record(run)
    names = {"train/loss": record.train_loss, "optim/lr": record.learning_rate, **record.values}
    for tag, values in names.items():
        points = dict(curve(run, tag))
        for step, value in zip(record.steps.tolist(), values, strict=True):
            assert (step in points) == (not np.isnan(value)), tag
            if step in points:
                assert np.float32(points[step]) == np.float32(value), tag
    validations = dict(zip(*(part.tolist() for part in record.validations), strict=True))
    for step, value in [(0, record.initial_val_loss), *validations.items()]:
        assert np.float32(dict(curve(run, "val/loss"))[step]) == np.float32(value)


def test_the_last_validation_is_the_checkpoint_s_and_the_summary_s(run: Path) -> None:
    best = json.loads((run / "checkpoints/best.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert min(v for v in arrays(run)["val_loss"] if v is not None) == best["val_loss"]
    assert arrays(run)["val_loss"][-1] == summary["last_val_loss"]
    assert arrays(run)["steps"][-1] == summary["step"] == load(run, 13)["global_step"]


def test_losses_between_rows_average_to_the_row(corpus: Path, tmp_path: Path) -> None:
    fine = train(tmp_path / "fine", corpus, "--trainer.log_every_n_steps=1")
    coarse = train(tmp_path / "coarse", corpus, "--trainer.log_every_n_steps=5")
    each, start = read_record(fine).train_loss, 0
    for step, loss in zip(arrays(coarse)["steps"], arrays(coarse)["train_loss"], strict=True):
        assert loss == pytest.approx(each[start:step].mean(), rel=1e-6)
        start = step


def test_a_resumed_run_has_the_record_of_the_uninterrupted_one(
    corpus: Path, tmp_path: Path
) -> None:
    flags = ["--trainer.log_every_n_steps=5", "--model.schedule=Constant"]
    whole = train(tmp_path / "whole", corpus, *flags, "--trainer.max_steps=13")
    resumed = train(tmp_path / "resumed", corpus, *flags, "--trainer.max_steps=8")
    # as if a kill had come after more was logged than saved
    with (resumed / "checkpoints" / LINES).open("a") as file:
        file.write('{"step": 9, "train/loss": 1.0}\n{"step": 10, "tra')
    train(resumed, corpus, *flags, "--trainer.max_steps=13", "--resume=auto")
    assert arrays(resumed) == arrays(whole)


def test_what_the_model_wrote_is_kept_by_step(run: Path) -> None:
    samples = read_record(run).samples
    assert list(samples) == [0, 4, 8, 12, 13]
    assert all(list(texts) == [""] for texts in samples.values())


def test_a_loss_that_is_not_finite_is_listed(fit: Command, tmp_path: Path) -> None:
    flags = ["--model.optimizer=SGD", "--model.optimizer.lr=1e38", "--model.net.logit_cap=null"]
    flags += ["--trainer.log_every_n_steps=1", "--model.schedule.warmup_steps=0"]
    assert fit(tmp_path / "run", *flags).code == 4
    content = arrays(tmp_path / "run")
    assert content["nonfinite_steps"] == [2, 3, 4]  # the last one with its validation
    assert content["steps"] == [1]


def test_the_arrays_are_rewritten_less_often_as_they_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    logger, written = RecordLogger(tmp_path, 0), list[float]()

    def slow(*_: object) -> None:
        written.append(clock[0])
        clock[0] += 0.05  # what writing a long record takes

    monkeypatch.setattr(module.Writer, "write_arrays", slow)
    for step in range(1000):
        clock[0] += 0.1
        logger.log_metrics({"train/loss": 1.0}, step)
    gaps = np.diff(written)
    assert gaps.min() >= 10  # a 200th of the time
    assert gaps.max() < 11


def test_a_kill_leaves_whole_lines_and_strict_json(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*TINY, "--trainer.max_steps=100000", "--trainer.val_check_interval=50"]
    words = ["fit", "--data.path", corpus, *flags, "--run_dir", run]
    child = subprocess.Popen(
        [sys.executable, "-m", "lmtemplate", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    written = run / "checkpoints" / "training_metrics.json"
    while not (written.exists() and len(arrays(run)["steps"]) > 20):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    text = (run / "checkpoints" / LINES).read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines == list(read_lines(run))
    steps, content = from_lines(lines).steps.tolist(), arrays(run)
    assert content["steps"] == steps[: len(content["steps"])]
