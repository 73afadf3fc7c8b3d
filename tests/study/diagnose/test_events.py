"""TensorBoard's files as anyone writes them, read as a record."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from lmtemplate.errors import ConfigError
from lmtemplate.study.diagnose.events import read_curves, read_events
from tests.faults.spy import within

Curves = dict[str, dict[int, float]]

CURVES: Curves = {
    "train/loss": {10: 4.0, 20: 3.0, 30: 2.5},
    "val/loss": {0: 5.0, 19: 3.5, 30: 3.0},
    "optim/lr": {5: 0.1, 20: 0.2},
    "val/accuracy": {0: 0.01, 30: 0.25},
}


def write_events(folder: Path, curves: Curves, *, as_tensors: bool = False) -> Path:
    with SummaryWriter(str(folder)) as board:
        for tag, curve in curves.items():
            for step, value in curve.items():
                board.add_scalar(tag, value, step, new_style=as_tensors)
    return folder


@pytest.mark.parametrize("as_tensors", [False, True])
def test_curves_become_rows(tmp_path: Path, as_tensors: bool) -> None:
    record = read_events(write_events(tmp_path, CURVES, as_tensors=as_tensors))
    assert record.steps.tolist() == [10, 20, 30]
    assert record.train_loss.tolist() == [4.0, 3.0, 2.5]
    assert record.initial_val_loss == 5.0
    np.testing.assert_allclose(record.learning_rate, [0.1, 0.2, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(record.values["val/accuracy"], [math.nan, math.nan, 0.25])
    assert record.initial["val/accuracy"] == pytest.approx(0.01)


def test_a_validation_between_rows_stands_on_the_one_before_it(tmp_path: Path) -> None:
    steps, losses = read_events(write_events(tmp_path, CURVES)).validations
    assert (steps.tolist(), losses.tolist()) == ([10, 30], [3.5, 3.0])


def test_values_that_are_not_finite_have_no_row_and_are_listed(tmp_path: Path) -> None:
    curves = {**CURVES, "train/loss": {10: 4.0, 20: math.nan, 30: 2.5}, "val/loss": {30: math.inf}}
    record = read_events(write_events(tmp_path, curves))
    assert record.nonfinite_steps == (20, 30)
    assert record.steps.tolist() == [10, 30]
    assert len(record.validations[0]) == 0


def test_a_value_that_no_plot_can_square_is_not_finite(tmp_path: Path) -> None:
    folder = write_events(tmp_path, CURVES)
    writer = EventFileWriter(str(folder))
    huge = Summary.Value(tag="train/loss", tensor=TensorProto(dtype=2, double_val=[1e308]))
    writer.add_event(Event(step=40, summary=Summary(value=[huge])))
    writer.close()
    assert read_events(folder).nonfinite_steps == (40,)


def test_a_tensor_that_is_no_number_is_no_curve(tmp_path: Path) -> None:
    """Its shape would take 8 TB, were it unpacked; others have no number, or an unknown type."""
    huge = TensorShapeProto(dim=[TensorShapeProto.Dim(size=10**12)])
    tensors = {
        "huge": TensorProto(dtype=1, tensor_shape=huge, float_val=[1.0]),
        "nothing": TensorProto(dtype=1),
        "unknown": TensorProto(dtype=99),
        "cut": TensorProto(dtype=2, tensor_content=b"abc"),
        "too large": TensorProto(dtype=19, half_val=[70_000]),
    }
    folder = write_events(tmp_path, {"train/loss": {1: 2.0}, "val/loss": {1: 2.5}})
    writer = EventFileWriter(str(folder))
    for tag, tensor in tensors.items():
        values = [Summary.Value(tag=tag, tensor=tensor)]
        writer.add_event(Event(step=1, summary=Summary(value=values)))
    writer.close()
    assert read_curves(folder).keys() == {"train/loss", "val/loss"}


def test_any_names_of_tags_will_do(tmp_path: Path) -> None:
    renamed = {"loss": CURVES["train/loss"], "eval": CURVES["val/loss"], "rate": {10: 0.5}}
    record = read_events(write_events(tmp_path, renamed), "loss", "eval", "rate")
    assert record.train_loss.tolist() == [4.0, 3.0, 2.5]
    assert record.learning_rate.tolist() == [0.5, 0.5, 0.5]


def test_a_run_without_validation_or_rates_is_read_too(tmp_path: Path) -> None:
    folder = write_events(tmp_path, {"loss": CURVES["train/loss"]})
    record = read_events(folder, "loss", None, None)
    assert len(record) == 3
    assert np.isnan(record.val_loss).all()
    assert np.isnan(record.learning_rate).all()


def test_an_absent_tag_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    write_events(tmp_path, {"loss": {1: 1.0}, "eval": {1: 1.0}})
    with pytest.raises(ConfigError, match=r"--val_loss val/loss: .*there are: eval, loss$"):
        read_events(tmp_path, "loss")


def test_what_a_second_start_logged_again_counts_once(tmp_path: Path) -> None:
    write_events(tmp_path, {"loss": {10: 4.0, 20: 3.0}})
    write_events(tmp_path, {"loss": {20: 2.0, 30: 1.0}})
    record = read_events(tmp_path, "loss", None, None)
    assert (record.steps.tolist(), record.train_loss.tolist()) == ([10, 20, 30], [4.0, 2.0, 1.0])


def test_a_folder_without_event_files_names_folders_below_that_have_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no TensorBoard event files there$"):
        read_events(tmp_path)
    write_events(tmp_path / "version_0", CURVES)
    with pytest.raises(ConfigError, match="version_0"):
        read_events(tmp_path)


def test_an_event_file_that_never_ends_is_named(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").symlink_to("/proc/self/mem")
    with within(20), pytest.raises(ConfigError, match="is no plain file"):
        read_curves(tmp_path)
    (tmp_path / "events.out.tfevents.1").unlink()
    os.mkfifo(tmp_path / "events.out.tfevents.1")
    with within(20), pytest.raises(ConfigError, match="is no plain file"):
        read_curves(tmp_path)


@pytest.mark.parametrize(
    "record", [b"\xff\xff", Event(meta_graph_def=b"\xff\xff").SerializeToString()]
)
def test_a_record_that_is_no_event_is_named_with_its_folder(tmp_path: Path, record: bytes) -> None:
    """Its checksums are right, so that tensorboard's reader hands it on."""
    with (tmp_path / "events.out.tfevents.1").open("wb") as file:
        RecordWriter(file).write(record)
    with pytest.raises(ConfigError, match=f"{tmp_path}: an event file there is damaged"):
        read_curves(tmp_path)


def test_a_length_beyond_all_memory_is_of_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(event_accumulator.EventAccumulator, "Reload", fail)
    with pytest.raises(ConfigError, match=r"an event file there is damaged .MemoryError"):
        read_curves(write_events(tmp_path, CURVES))


def test_steps_that_are_none_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_events(tmp_path, {"loss": {-(2**63): 4.0, 0: 3.0, 2**53 - 1: 2.0, 2**53: 1.0}})
    with (tmp_path / "events.out.tfevents.9999999999").open("wb") as file:
        log = SessionLog(status=SessionLog.START)
        RecordWriter(file).write(Event(step=5, session_log=log).SerializeToString())
    assert read_curves(tmp_path)["loss"].keys() <= {0, 2**53 - 1}
    assert not caplog.records
