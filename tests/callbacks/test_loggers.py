"""A run -> what TensorBoard shows of it, and its record: equal to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Trainer
from tensorboard.plugins.hparams import plugin_data_pb2

from lmtemplate.callbacks.early_stopping import EarlyStopping
from lmtemplate.callbacks.loggers import BOTH_LOSSES, VALIDATION, RecordLogger, TensorBoard
from lmtemplate.module import LitLanguageModel, log_values
from lmtemplate.record import LINES, from_lines, read_lines, read_record
from tests.conftest import TINY, Command
from tests.runs import curve, events, load, steps, train


@pytest.fixture
def run(finished: Path) -> Path:
    return finished


def test_events_lie_in_a_run_whose_name_has_a_dollar(tmp_path: Path) -> None:
    run = tmp_path / "$HOME"
    TensorBoard(run, 0, {}).log_metrics({"train/loss": 1.0}, 1)
    assert list(run.glob("events.*"))


def hparams(run: Path) -> dict[str, Any]:
    """Setting -> value, as the hparams tab lists them."""
    metadata = events(run).SummaryMetadata("_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    values = content.session_start_info.hparams.items()
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in values}


def test_both_losses_stand_in_tensorboards_first_chart_in_two_colours(run: Path) -> None:
    """One tag in two runs: lines of one run have one colour. Capitals sort first."""
    tags = events(run).Tags()["scalars"]
    assert min(tags) == BOTH_LOSSES
    assert curve(run, BOTH_LOSSES) == curve(run, "train/loss")
    early = [point for point in curve(run, "val/early_loss") if point[0]]
    assert early
    assert curve(run / VALIDATION, BOTH_LOSSES) == sorted(early + curve(run, "val/loss"))


def test_the_settings_stand_in_the_hparams_tab(run: Path) -> None:
    settings = hparams(run)
    assert settings["model.optimizer.init_args.lr"] == 0.001
    assert settings["trainer.max_steps"] == 12
    assert settings["data.block_size"] == 16
    assert settings["model.net.class_path"] == "lmtemplate.models.GPT"


def test_the_hparams_tab_shows_the_best_validation_loss(run: Path) -> None:
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert curve(run, "val/best_loss") == [(12, pytest.approx(best["val_loss"], rel=1e-6))]
    metadata = events(run).SummaryMetadata("_hparams_/experiment")
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    assert [info.name.tag for info in content.experiment.metric_infos] == ["val/best_loss"]


def test_lightning_s_epoch_is_not_shown(run: Path) -> None:
    assert "epoch" not in events(run).Tags()["scalars"]
    assert "hp_metric" not in events(run).Tags()["scalars"]


def test_the_data_s_epoch_is_the_share_of_the_split_that_was_seen(run: Path) -> None:
    blocks = (30_545 - 1) // 16
    for step, passes in curve(run, "data/epoch"):
        assert passes == pytest.approx(step * 4 / blocks, rel=1e-6)


def test_settings_are_written_once_in_config_yaml(run: Path) -> None:
    assert not list(run.rglob("hparams.yaml"))


@pytest.mark.slow
def test_a_resumed_run_shows_its_new_best(run: Path, corpus: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    train(copy, corpus, "--trainer.max_steps=16", "--resume=auto")
    best = json.loads((copy / "checkpoints" / "best.json").read_text())
    assert curve(copy, "val/best_loss")[-1] == (16, pytest.approx(best["val_loss"], rel=1e-6))


@pytest.mark.parametrize("seconds", [0, 3600], ids=["at once", "after the clock was set back"])
def test_starts_make_one_curve_in_which_each_hides_what_the_one_before_wrote_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    clock = time.time
    for number, (first, last) in enumerate([(0, 4), (3, 5), (5, 6)]):
        monkeypatch.setattr(time, "time", lambda number=number: clock() - seconds * number)
        board = TensorBoard(tmp_path, first, {})
        for step in range(first, last + 1):
            board.log_metrics({"a": float(number)}, step)
        board.finalize("success")
    values = [(0, 0.0), (1, 0.0), (2, 0.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)]
    assert curve(tmp_path, "a") == values


def test_events_that_cannot_be_written_are_one_line_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard writes in a thread of its own, whose errors Python would print."""
    shown: list[object] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    board = TensorBoard(tmp_path, 0, {})
    board.log_metrics({"a": 1.0}, 1)
    board.sync()
    (events_file,) = tmp_path.iterdir()
    events_file.unlink()
    events_file.mkdir()  # appending fails
    for step in (2, 3):
        board.log_metrics({"a": 1.0}, step)
        board.sync()
    assert not shown
    other = threading.Thread(target=int, args=["x"])
    other.start()
    other.join()
    assert len(shown) == 1
    board.finalize("failed")
    told = capsys.readouterr().out
    assert told == f"TensorBoard cannot write to {tmp_path}: Is a directory\n"
    assert threading.excepthook == shown.append


@pytest.mark.slow
def test_a_run_without_checkpoints_has_no_hparams_and_no_error(
    corpus: Path, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", corpus, "--checkpoint=null", "--trainer.max_steps=4")
    assert steps(run, "val/loss") == [0, 4]


ROOT = Path(__file__).parents[2]


def arrays(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "checkpoints/training_metrics.json").read_text())
    return content


@pytest.fixture(scope="module")
def recorded(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 steps, logged every 3, validated every 2."""
    flags = ["--trainer.log_every_n_steps=3", "--trainer.max_steps=5"]
    flags += ["--trainer.val_check_interval=2"]
    return train(tmp_path_factory.mktemp("record") / "run", corpus, *flags)


def test_there_is_a_row_every_n_steps_at_validations_and_at_the_end(recorded: Path) -> None:
    assert arrays(recorded)["steps"] == [2, 3, 4, 5]


def test_every_validation_has_its_value(recorded: Path) -> None:
    evaluated = [value is not None for value in arrays(recorded)["val_loss"]]
    assert evaluated == [True, False, True, True]


def test_the_record_is_what_tensorboard_shows_to_its_last_bit(recorded: Path) -> None:
    record = read_record(recorded)
    names = {"train/loss": record.train_loss, "optim/lr": record.learning_rate, **record.values}
    for tag, values in names.items():
        points = dict(curve(recorded, tag))
        for step, value in zip(record.steps.tolist(), values, strict=True):
            assert (step in points) == (not np.isnan(value)), tag
            if step in points:
                assert np.float32(points[step]) == np.float32(value), tag
    validations = dict(zip(*(part.tolist() for part in record.validations), strict=True))
    for step, value in [(0, record.initial_val_loss), *validations.items()]:
        assert np.float32(dict(curve(recorded, "val/loss"))[step]) == np.float32(value)


def test_the_last_validation_is_the_checkpoint_s_and_the_summary_s(recorded: Path) -> None:
    best = json.loads((recorded / "checkpoints/best.json").read_text())
    summary = json.loads((recorded / "summary.json").read_text())
    assert min(v for v in arrays(recorded)["val_loss"] if v is not None) == best["val_loss"]
    assert arrays(recorded)["val_loss"][-1] == summary["last_val_loss"]
    assert arrays(recorded)["steps"][-1] == summary["step"] == load(recorded, 5)["global_step"]


@pytest.mark.slow
def test_losses_between_rows_average_to_the_row(corpus: Path, tmp_path: Path) -> None:
    fine = train(tmp_path / "fine", corpus, "--trainer.log_every_n_steps=1")
    coarse = train(tmp_path / "coarse", corpus, "--trainer.log_every_n_steps=5")
    each, start = read_record(fine).train_loss, 0
    for step, loss in zip(arrays(coarse)["steps"], arrays(coarse)["train_loss"], strict=True):
        assert loss == pytest.approx(each[start:step].mean(), rel=1e-6)
        start = step


@pytest.mark.slow
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


def test_what_the_model_wrote_is_kept_by_step(recorded: Path) -> None:
    samples = read_record(recorded).samples
    assert list(samples) == [0, 2, 4, 5]
    assert all(list(texts) == [""] for texts in samples.values())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_listed(fit: Command, tmp_path: Path) -> None:
    flags = ["--model.optimizer=SGD", "--model.optimizer.lr=1e38", "--model.net.logit_cap=null"]
    flags += ["--trainer.log_every_n_steps=1", "--model.schedule.warmup_steps=0"]
    assert fit(tmp_path / "run", *flags).code == 4
    content = arrays(tmp_path / "run")
    assert content["nonfinite_steps"] == [2, 3, 4]  # the last one with its validation
    assert content["steps"] == [1]


def test_values_that_come_after_their_step_was_written_are_read_with_it(tmp_path: Path) -> None:
    logger = RecordLogger(tmp_path, 0)
    for step in (5, 10):
        logger.log_metrics({"train/loss": 3.0, "optim/lr": 0.1}, step)
        logger.log_metrics({"mine": 1.0 * step, "epoch": 0}, step - 1)  # as Lightning does
    logger.sync()
    assert [entry["step"] for entry in read_lines(tmp_path)] == [5, 5, 10, 10]
    record = read_record(tmp_path)
    assert record.steps.tolist() == [5, 10]
    assert record.values["mine"].tolist() == [5.0, 10.0]


@pytest.mark.slow
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


def test_a_callback_may_log_at_any_time_and_its_values_stand_at_their_step(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_as(name: str) -> Callable[..., None]:
        def hook(_: EarlyStopping, trainer: Trainer, module: LitLanguageModel, *__: object) -> None:
            log_values(module, {name: trainer.global_step})

        return hook

    for name in ("on_train_batch_start", "on_validation_end"):
        monkeypatch.setattr(EarlyStopping, name, log_as(name), raising=False)
    flags = ["--trainer.max_steps=4", "--trainer.val_check_interval=2"]
    run = train(tmp_path / "run", corpus, *flags, "--trainer.log_every_n_steps=3")
    for name, expected in (("on_train_batch_start", range(4)), ("on_validation_end", (0, 2, 4))):
        logged = [(line["step"], line[name]) for line in read_lines(run) if name in line]
        assert logged == [(step, step) for step in expected]
