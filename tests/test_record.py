"""Logging points -> lines, arrays, and back."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtemplate import record as record_file
from lmtemplate.errors import CheckpointError
from lmtemplate.record import (
    ARRAYS,
    LINES,
    Writer,
    from_lines,
    last_lines,
    read_lines,
    read_record,
)
from lmtemplate.run_dir import folder_of


def strict(text: str) -> Any:
    """Parse JSON as it is specified: NaN and Infinity are no numbers."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


def write_run(run: Path, first_step: int = 0) -> Writer:
    """A run of 3 logging points with 2 validations."""
    writer = Writer(run, first_step)
    writer.append(0, {"val/loss": 4.2, "val/bits_per_byte": 2.0})
    for step in (5, 10, 15):
        rates = {"optim/lr": 0.1 / step, "data/epoch": step / 10}
        writer.append(step, {"train/loss": 4.0 - step / 10, **rates})
        if step == 10:
            writer.append(10, {"val/loss": 3.3, "val/bits_per_byte": 1.6})
    writer.write_arrays()
    return writer


def arrays(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = strict((folder_of(run) / ARRAYS).read_text())
    return content


def test_values_that_are_not_finite_are_named_and_left_out(tmp_path: Path) -> None:
    values = {"train/loss": math.nan, "optim/lr": 0.5, "optim/grad_norm": math.inf}
    Writer(tmp_path, 0).append(7, values)
    written = strict((folder_of(tmp_path) / LINES).read_text())
    assert written == {"step": 7, "optim/lr": 0.5, "nonfinite": ["train/loss", "optim/grad_norm"]}


def test_every_array_has_a_value_for_every_row(tmp_path: Path) -> None:
    write_run(tmp_path)
    content = arrays(tmp_path)
    assert content["steps"] == [5, 10, 15]
    for name in ("train_loss", "val_loss", "learning_rate", "epochs"):
        assert len(content[name]) == 3


def test_a_validation_stands_in_its_step_s_row_and_null_elsewhere(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 0)
    for step in (5, 10):
        writer.append(step, {"train/loss": 3.0})
        writer.append(step, {"val/loss": 3.0 + step})
    writer.append(15, {"train/loss": 2.0})
    writer.write_arrays()
    assert arrays(tmp_path)["val_loss"] == [8.0, 13.0, None]


def test_the_validation_before_step_1_has_a_field_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert arrays(tmp_path)["initial_val_loss"] == 4.2
    assert read_record(tmp_path).initial == {"val/loss": 4.2, "val/bits_per_byte": 2.0}


@pytest.mark.parametrize(("passes", "epoch"), [(0.1, 0), (1.0, 0), (1.01, 1), (2.0, 1), (3.5, 3)])
def test_epochs_count_from_0_and_end_with_the_pass(
    tmp_path: Path, passes: float, epoch: int
) -> None:
    writer = Writer(tmp_path, 0)
    writer.append(5, {"train/loss": 3.0, "data/epoch": passes})
    writer.write_arrays()
    assert arrays(tmp_path)["epochs"] == [epoch]


def test_a_loss_that_is_not_finite_has_no_row_but_is_listed(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 0)
    writer.append(5, {"train/loss": 3.0})
    writer.append(10, {"train/loss": math.nan})
    writer.append(10, {"val/loss": math.inf})
    writer.append(15, {"train/loss": 2.0, "optim/grad_norm": math.nan})
    writer.write_arrays()
    content = arrays(tmp_path)
    assert (content["steps"], content["nonfinite_steps"]) == ([5, 15], [10])


def test_a_line_is_on_disk_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 0)
    writer.append(5, {"train/loss": 3.0})
    assert strict((folder_of(tmp_path) / LINES).read_text()) == {"step": 5, "train/loss": 3.0}


def test_a_line_that_a_kill_cut_short_is_ignored_and_then_replaced(tmp_path: Path) -> None:
    write_run(tmp_path)
    with (folder_of(tmp_path) / LINES).open("a") as file:
        file.write('{"step": 20, "train/lo')
    assert read_record(tmp_path).steps.tolist() == [5, 10, 15]
    writer = Writer(tmp_path, first_step=16)
    writer.append(20, {"train/loss": 2.5})
    assert read_record(tmp_path).steps.tolist() == [5, 10, 15, 20]


class HalfFull:
    """A file of a disk that takes 10 bytes more."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "HalfFull":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        return int(self.file.write(content[:10]))


@pytest.mark.parametrize("first_step", [1, 6, 11, 16])
def test_a_resumed_record_equals_the_uninterrupted_one(tmp_path: Path, first_step: int) -> None:
    points: list[tuple[int, dict[str, float]]] = [(0, {"val/loss": 4.2})]
    for step in (5, 10, 15):
        points += [(step, {"train/loss": 4.0 / step}), (step, {"val/loss": 5.0 / step})]
    for name, start in (("whole", None), ("resumed", first_step)):
        writer = Writer(tmp_path / name, 0)
        for step, values in points:
            writer.append(step, values)
        if start is not None:
            writer = Writer(tmp_path / name, start)
            for step, values in points:
                if step >= start:
                    writer.append(step, values)
        writer.write_arrays()
    for file in (LINES, ARRAYS):
        texts = [(folder_of(tmp_path / name) / file).read_bytes() for name in ("whole", "resumed")]
        assert texts[0] == texts[1]


def test_a_step_of_too_many_digits_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = folder_of(tmp_path) / LINES
    whole = path.read_text()
    path.write_text(f'{{"step": {"9" * 5_000}, "train/loss": 1.0}}\n{whole}')
    Writer(tmp_path, first_step=16)
    assert path.read_text() == whole


def test_the_arrays_and_the_record_say_the_same(tmp_path: Path) -> None:
    write_run(tmp_path)
    content, record = arrays(tmp_path), read_record(tmp_path)
    assert record.train_loss.tolist() == content["train_loss"]
    assert record.learning_rate.tolist() == content["learning_rate"]
    assert record.epochs.tolist() == content["epochs"]
    assert np.isnan(record.val_loss).tolist() == [v is None for v in content["val_loss"]]


def test_other_values_are_arrays_of_the_same_length() -> None:
    record = from_lines(
        [
            {"step": 5, "train/loss": 3.0, "optim/grad_norm": 0.5},
            {"step": 10, "train/loss": 2.0},
            {"step": 10, "val/loss": 2.5, "val/accuracy": 0.25},
        ]
    )
    np.testing.assert_array_equal(record.values["optim/grad_norm"], [0.5, math.nan])
    np.testing.assert_array_equal(record.values["val/accuracy"], [math.nan, 0.25])
    steps, losses = record.validations
    assert (steps.tolist(), losses.tolist()) == ([10], [2.5])


@pytest.mark.parametrize(("count", "before"), [(1, 2**53), (60, 2**53), (7, 502), (9999, 300)])
def test_the_last_lines_are_found_from_the_end(
    count: int, before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_file, "TAIL_BYTES", 200)
    writer = Writer(tmp_path, 0)
    for step in range(5, 1000, 5):
        writer.append(step, {"train/loss": 1.0 / step})
        if step % 50 == 0:
            writer.append(step, {"samples": {"": "x" * step}})
    lines = [one for one in read_lines(tmp_path) if "train/loss" in one and one["step"] <= before]
    assert last_lines(tmp_path, "train/loss", count, before) == lines[-count:]


def test_samples_are_kept_by_step() -> None:
    texts = {"": "once", "The": " end"}
    record = from_lines([{"step": 0, "samples": {"": "x"}}, {"step": 9, "samples": texts}])
    assert record.samples == {0: {"": "x"}, 9: texts}
    assert len(record) == 0


def test_a_folder_without_a_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no record .*training_metrics\.jsonl"):
        read_record(tmp_path)


def test_a_validation_after_nothing_but_bad_losses_has_a_row(tmp_path: Path) -> None:
    writer = Writer(tmp_path, 0)
    writer.append(5, {"train/loss": 3.0, "data/epoch": 1.5, "optim/lr": 0.1})
    writer.append(8, {"train/loss": math.nan})
    writer.append(8, {"val/loss": 2.5})
    writer.write_arrays()
    content = arrays(tmp_path)
    assert (content["steps"], content["val_loss"]) == ([5, 8], [None, 2.5])
    assert (content["train_loss"], content["epochs"]) == ([3.0, 3.0], [1, 1])


def test_a_full_disk_costs_neither_the_run_nor_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(tmp_path, 0)
    writer.append(5, {"train/loss": 3.0})
    open_file = Path.open

    def full(path: Path, mode: str = "r", **words: Any) -> Any:
        file = open_file(path, mode, **words)
        return HalfFull(file) if "a" in mode else file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        for step in (10, 15):
            writer.append(step, {"train/loss": 3.0})
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert read_record(tmp_path).steps.tolist() == [5]
    writer.append(20, {"train/loss": 3.0})
    assert read_record(tmp_path).steps.tolist() == [5, 10, 15, 20]


def test_a_folder_that_cannot_be_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    Writer(tmp_path, 0).append(5, {"train/loss": 3.0})
    assert "the record waits in memory" in capsys.readouterr().out


def test_a_record_that_was_deleted_is_told_when_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Writer(tmp_path, 0).append(1, {"train/loss": 2.0})
    Writer(tmp_path, 2).append(2, {"train/loss": 1.0})
    assert capsys.readouterr().out == ""
    (tmp_path / "checkpoints" / LINES).unlink()
    Writer(tmp_path, 3).append(3, {"train/loss": 1.0})
    assert f"{LINES} is gone: it begins anew at step 3" in capsys.readouterr().out


def test_a_run_directory_that_was_removed_is_not_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    writer = Writer(run, 0)
    writer.append(1, {"train/loss": 2.0})
    shutil.rmtree(run)
    writer.append(2, {"train/loss": 2.0})
    writer.write_arrays()
    assert not run.exists()
    assert capsys.readouterr().out == ""  # RunEnd tells


def test_a_record_whose_names_and_steps_multiply_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtemplate.record.MOST_CELLS", 1000)
    lines = [{"step": step, "train/loss": 5.0} for step in range(30)]
    names = {f"a{number}": 1.0 for number in range(40)}
    assert len(from_lines(lines)) == 30
    with pytest.raises(CheckpointError, match="41 names x 30 steps: no record has these"):
        from_lines([*lines, {"step": 1, **names}])
