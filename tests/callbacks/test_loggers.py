"""A run -> what TensorBoard shows of it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from lmtemplate.callbacks.loggers import TensorBoard
from tests.runs import curve, events, steps, train


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "run", corpus, "--model.optimizer.lr=0.01")


def hparams(run: Path) -> dict[str, Any]:
    """Setting -> value, as the hparams tab lists them."""
    metadata = events(run).SummaryMetadata("_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    values = content.session_start_info.hparams.items()
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in values}


def test_both_losses_stand_in_one_chart(run: Path) -> None:
    (event,) = events(run).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert ["train/loss", "val/loss"] in [list(chart.multiline.tag) for chart in charts]


def test_every_curve_of_the_charts_is_logged(run: Path) -> None:
    (event,) = events(run).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    tags = {tag for cat in layout.category for chart in cat.chart for tag in chart.multiline.tag}
    assert tags <= set(events(run).Tags()["scalars"])


def test_the_settings_stand_in_the_hparams_tab(run: Path) -> None:
    settings = hparams(run)
    assert settings["model.optimizer.lr"] == 0.01
    assert settings["trainer.max_steps"] == 12
    assert settings["data.block_size"] == 16
    assert settings["model.net"] == "GPT"


def test_the_hparams_tab_shows_the_best_validation_loss(run: Path) -> None:
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert curve(run, "best/val_loss") == [(12, pytest.approx(best["val_loss"], rel=1e-6))]
    metadata = events(run).SummaryMetadata("_hparams_/experiment")
    content = plugin_data_pb2.HParamsPluginData.FromString(metadata.plugin_data.content)
    assert [info.name.tag for info in content.experiment.metric_infos] == ["best/val_loss"]


def test_lightning_s_epoch_is_not_shown(run: Path) -> None:
    assert "epoch" not in events(run).Tags()["scalars"]
    assert "hp_metric" not in events(run).Tags()["scalars"]


def test_the_data_s_epoch_is_the_share_of_the_split_that_was_seen(run: Path) -> None:
    blocks = (30_545 - 1) // 16
    for step, passes in curve(run, "data/epoch"):
        assert passes == pytest.approx(step * 4 / blocks, rel=1e-6)


def test_settings_are_written_once_in_config_yaml(run: Path) -> None:
    assert not list(run.rglob("hparams.yaml"))


def test_a_resumed_run_shows_its_new_best(run: Path, corpus: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    train(copy, corpus, "--trainer.max_steps=16", "--model.optimizer.lr=0.01", "--resume=auto")
    best = json.loads((copy / "checkpoints" / "best.json").read_text())
    assert curve(copy, "best/val_loss")[-1] == (16, pytest.approx(best["val_loss"], rel=1e-6))


def test_what_an_earlier_start_wrote_from_a_step_on_is_hidden(tmp_path: Path) -> None:
    killed = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3, 4):
        killed.log_metrics({"a": 1.0}, step)
    killed.save()
    resumed = TensorBoard(tmp_path, 3)
    resumed.log_metrics({"a": 2.0}, 3)
    resumed.save()
    assert curve(tmp_path, "a") == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_run_without_checkpoints_has_no_hparams_and_no_error(
    corpus: Path, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", corpus, "--checkpoint=null", "--trainer.max_steps=4")
    assert steps(run, "val/loss") == [0, 4]
