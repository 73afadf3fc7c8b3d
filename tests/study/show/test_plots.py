"""Records -> figures, whose axes and lines are looked at; files; text."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.metric_names import EPOCH, LEARNING_RATE, TRAIN_LOSS, VAL_LOSS
from lmtemplate.record import Record, from_lines
from lmtemplate.run_dir import folder_of
from lmtemplate.study.show.plots import (
    curves_of,
    data_in_terminal,
    draw_curves,
    draw_epochs,
    epoch_averages,
    in_terminal,
    plot,
    rate_in_terminal,
    thin,
)

Draw = Callable[[Record, str], Figure]

NAMES = ("training_curve.png", "loss_by_epoch.png")


def entries(rows: int = 40, passes: float = 3.5) -> list[dict[str, float]]:
    """Lines of a record: a row each 5 steps, a validation before step 1 and at each 10th row."""
    lines: list[dict[str, float]] = [{"step": 0, VAL_LOSS: 8.0}]
    for row in range(1, rows + 1):
        values = {TRAIN_LOSS: 2 + 5 / row, LEARNING_RATE: 1e-3 / row, EPOCH: passes * row / rows}
        lines.append({"step": 5 * row, **values})
        if row % 10 == 0:
            lines.append({"step": 5 * row, VAL_LOSS: 2.5 + 5 / row})
    return lines


def record(rows: int = 40, passes: float = 3.5) -> Record:
    return from_lines(entries(rows, passes))


def write(run: Path, rows: int = 40) -> Path:
    folder_of(run).mkdir(parents=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries(rows))
    (folder_of(run) / "training_metrics.jsonl").write_text(text)
    return run


def named(axes: Axes) -> dict[str, Line2D]:
    return {str(drawn.get_label()): drawn for drawn in axes.get_lines()}


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("panel", "name", "channel"),
    [(0, "train loss", 2), (0, "validation loss", 0), (1, "learning rate", 1)],
)
def test_train_is_blue_validation_red_and_the_rate_green(
    panel: int, name: str, channel: int
) -> None:
    drawn = named(draw_curves(record(), "run").axes[panel])[name]
    assert np.argmax(to_rgb(drawn.get_color())) == channel


def test_losses_stand_on_a_linear_axis_and_the_rate_on_a_log_axis() -> None:
    assert [axes.get_yscale() for axes in draw_curves(record(), "run").axes] == ["linear", "log"]


def test_the_train_line_goes_through_every_logged_point() -> None:
    drawn = named(draw_curves(record(), "run").axes[0])["train loss"]
    assert list(drawn.get_xdata()) == list(range(5, 205, 5))
    assert list(drawn.get_ydata()) == [2 + 5 / row for row in range(1, 41)]


def test_the_validation_before_step_1_stands_at_step_0() -> None:
    drawn = named(draw_curves(record(), "run").axes[0])["validation loss"]
    assert list(drawn.get_xdata()) == [0, 50, 100, 150, 200]
    assert list(drawn.get_ydata()) == [8.0, 3.0, 2.75, 2.5 + 5 / 30, 2.625]


def test_a_single_validation_is_a_visible_point() -> None:
    lone = replace(record(rows=200), val_loss=np.full(200, np.nan))
    drawn = named(draw_curves(lone, "run").axes[0])["validation loss"]
    assert (list(drawn.get_xdata()), drawn.get_marker()) == ([0], "o")


def test_a_run_without_validation_has_no_red_line() -> None:
    bare = replace(record(), val_loss=np.full(40, np.nan), initial_val_loss=None)
    assert list(named(draw_curves(bare, "run").axes[0])) == ["train loss"]


@pytest.mark.parametrize("draw", [draw_curves, draw_epochs])
def test_axes_have_labels_and_a_legend_and_the_title_is_the_run(draw: Draw) -> None:
    figure = draw(record(), "lr_$x_2$")
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(named(axes))
    assert figure.get_suptitle() == "lr_$x_2$"


@pytest.mark.slow
@pytest.mark.parametrize("draw", [draw_curves, draw_epochs])
def test_nothing_reaches_over_the_edge_of_the_picture(draw: Draw) -> None:
    figure = draw(replace(record(passes=0.5), nonfinite_steps=(7,)), "a_long_name_" * 12)
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


@pytest.mark.slow
def test_a_rate_of_0_is_left_out_and_said() -> None:
    rates = np.full(40, 1e-3)
    rates[[0, 39]] = 0
    figure = draw_curves(replace(record(), learning_rate=rates), "run")
    drawn = np.asarray(named(figure.axes[1])["learning rate"].get_ydata())
    assert list(np.flatnonzero(np.isnan(drawn))) == [0, 39]
    assert "rate 0, not on a log axis: first at step 5, 2 in all" in words(figure)


@pytest.mark.slow
def test_a_run_whose_rate_is_always_0_is_drawn() -> None:
    figure = draw_curves(replace(record(), learning_rate=np.zeros(40)), "run")
    figure.draw_without_rendering()
    assert not named(figure.axes[1])
    assert "40 in all" in words(figure)


@pytest.mark.slow
def test_a_constant_rate_has_a_labelled_tick() -> None:
    figure = draw_curves(replace(record(), learning_rate=np.full(40, 3e-4)), "run")
    figure.draw_without_rendering()
    low, high = figure.axes[1].get_ylim()
    assert low < 1e-4 < 3e-4 < 1e-3 < high


@pytest.mark.slow
def test_points_that_were_not_finite_are_mentioned() -> None:
    figure = draw_curves(replace(record(), nonfinite_steps=(35, 40)), "run")
    assert "loss not finite, not drawn: first at step 35, 2 in all" in words(figure)


def test_thinning_keeps_ends_and_spikes_and_invents_nothing() -> None:
    steps = np.arange(1, 100_002) * 5
    values = np.random.default_rng(0).normal(size=100_001)
    values[70_001], values[30_000] = 50.0, -50.0
    few_steps, few = thin(steps, values)
    assert 1000 < len(few) <= 2002
    assert (few_steps[0], few_steps[-1], few.max(), few.min()) == (5, 500_005, 50.0, -50.0)
    assert np.all(np.diff(few_steps) > 0)
    assert np.array_equal(values[few_steps // 5 - 1], few)


def test_a_long_stretch_without_a_rate_stays_a_gap() -> None:
    values = np.ones(100_000)
    values[20_000:30_000] = np.nan
    steps, few = thin(np.arange(100_000), values)
    assert np.isnan(few[(steps > 20_100) & (steps < 29_900)]).all()
    assert not np.isnan(few[(steps < 20_000) | (steps >= 30_000)]).any()


def test_a_short_curve_is_not_thinned() -> None:
    steps, values = np.arange(2000), np.random.default_rng(0).normal(size=2000)
    assert thin(steps, values)[1] is values


def test_the_average_of_a_pass_is_the_mean_over_its_steps() -> None:
    lines = [
        {"step": step, TRAIN_LOSS: loss, EPOCH: passes}
        for step, loss, passes in [(5, 6.0, 0.4), (7, 5.0, 0.6), (12, 4.0, 1.0), (20, 3.0, 1.6)]
    ]
    each_step = [6.0] * 5 + [5.0] * 2 + [4.0] * 5
    first, second = epoch_averages(from_lines(lines))
    assert first == (0, pytest.approx(np.mean(each_step)), True)
    assert second == (1, 3.0, False)


@pytest.mark.parametrize(
    ("passes", "complete"), [(3.5, [True] * 3 + [False]), (4.0, [True] * 4), (0.9, [False])]
)
def test_only_a_last_pass_that_ended_early_is_incomplete(
    passes: float, complete: list[bool]
) -> None:
    assert [complete for *_, complete in epoch_averages(record(passes=passes))] == complete


def test_an_empty_record_has_no_averages() -> None:
    assert epoch_averages(from_lines([])) == []


@pytest.mark.parametrize("passes", [1.0, 3.5, 4.0])
def test_the_epoch_picture_has_one_point_for_each_pass(passes: float) -> None:
    epochs, losses, _ = zip(*epoch_averages(record(passes=passes)), strict=True)
    drawn = named(draw_epochs(record(passes=passes), "run").axes[0])["average train loss"]
    assert list(drawn.get_xdata()) == list(epochs) == list(range(int(np.ceil(passes))))
    assert list(drawn.get_ydata()) == list(losses)


def test_only_a_partial_pass_is_hollow() -> None:
    partial = draw_epochs(record(passes=3.5), "run").axes[0].get_lines()
    assert list(partial[1].get_xdata()) == [3]
    assert to_rgb(partial[1].get_markerfacecolor()) == to_rgb("white")
    assert to_rgb(partial[0].get_markerfacecolor()) == to_rgb(partial[1].get_markeredgecolor())
    assert len(draw_epochs(record(passes=4.0), "run").axes[0].get_lines()) == 1


def test_a_run_shorter_than_one_pass_says_so() -> None:
    said = "shorter than one pass over the data: 0.46 of it"
    assert said in words(draw_epochs(record(passes=0.46), "run"))
    assert "shorter" not in words(draw_epochs(record(passes=1.0), "run"))


@pytest.mark.slow
def test_passes_between_two_points_are_mentioned() -> None:
    assert "between two logging points" in words(draw_epochs(record(passes=100), "run"))
    assert "between two logging points" not in words(draw_epochs(record(), "run"))


def test_passes_that_were_not_logged_are_not_guessed() -> None:
    said = words(draw_epochs(replace(record(), values={}, epochs=np.zeros(40, np.int64)), "run"))
    assert "were not logged" in said
    assert "shorter" not in said


@pytest.mark.slow
def test_both_pictures_are_png_files_1000_pixels_wide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot(write(tmp_path / "run"))
    for name, printed in zip(NAMES, capsys.readouterr().out.splitlines(), strict=True):
        content = (tmp_path / "run" / "checkpoints" / name).read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">2I", content[16:24]) == (1000, 750)
        assert printed == str(tmp_path / "run" / "checkpoints" / name)


def test_a_picture_that_cannot_be_drawn_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(figure: Figure, file: object, **settings: object) -> None:
        file.write(b"half a picture")  # type: ignore[attr-defined]
        raise RuntimeError

    folder = folder_of(write(tmp_path))
    (folder / NAMES[0]).write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", torn)
    with pytest.raises(RuntimeError):
        plot(tmp_path)
    assert (folder / NAMES[0]).read_bytes() == b"old"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.slow
def test_a_picture_that_cannot_be_written_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    folder = folder_of(write(tmp_path))
    (folder / NAMES[0]).write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiskError, match=r"training_curve\.png: No space left on device"):
        plot(tmp_path)
    assert (folder / NAMES[0]).read_bytes() == b"old"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("rows", [None, 0, 1])
def test_too_little_to_draw_is_an_error_only_for_a_person(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows: int | None,
) -> None:
    monkeypatch.setattr(os, "nice", lambda by: by, raising=False)
    run = tmp_path if rows is None else write(tmp_path, rows)
    plot(run, quiet=True)
    assert capsys.readouterr() == ("", "")
    with pytest.raises(CheckpointError, match="no record of two points"):
        plot(run)


def test_only_a_quiet_call_lowers_its_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered: list[int] = []
    monkeypatch.setattr(os, "nice", lowered.append, raising=False)
    monkeypatch.setattr("lmtemplate.study.show.plots.save", lambda figure, path: None)
    run = write(tmp_path)
    plot(run)
    assert lowered == []
    plot(run, quiet=True)
    assert lowered == [19]


@pytest.mark.slow
def test_drawing_needs_neither_torch_nor_pyplot_and_quietly_prints_nothing(tmp_path: Path) -> None:
    run = write(tmp_path / "日本")  # for which matplotlib has no glyphs
    code = (
        "import sys, pathlib; from lmtemplate.study.show.plots import plot;"
        f"plot(pathlib.Path({str(run)!r}), True);"
        "print({'torch', 'lightning', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")
    assert all((run / "checkpoints" / name).is_file() for name in NAMES)


@pytest.mark.parametrize("width", [30, 72, 100])
@pytest.mark.parametrize("rows", [1, 2, 40, 5000])
def test_terminal_curves_fit_their_width_in_plain_ascii(width: int, rows: int) -> None:
    text = in_terminal(record(rows), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.isascii()
    assert text.replace("\n", "").isprintable()  # no escape codes


def test_terminal_curves_say_first_and_last_values_and_steps() -> None:
    heading, *_, axis = in_terminal(record()).splitlines()
    assert heading == "200 steps: * train loss 7 -> 2.125, o validation loss 8 -> 2.625"
    assert axis.split() == ["0", "100", "200"]
    assert "learning rate 0.001 -> 2.5e-05, highest 0.001" in in_terminal(record())


def test_a_falling_loss_falls_in_the_terminal() -> None:
    lines = in_terminal(record(), height=10).splitlines()[2:12]
    falling = [row.find("*") for row in lines if "*" in row]
    assert falling == sorted(falling)
    assert lines[0][1] == "o"  # the validation at step 0, the highest of all
    assert "*" in lines[-1]


def test_a_rate_of_0_is_said_in_the_terminal() -> None:
    rates = np.full(40, 1e-3)
    rates[-1] = 0
    text = in_terminal(replace(record(), learning_rate=rates))
    assert "learning rate 0.001 -> 0, highest 0.001" in text
    assert "first at step 200, 1 in all" in text
    assert "#" not in in_terminal(replace(record(), learning_rate=np.zeros(40)))


def test_numbers_that_no_terminal_could_draw_are_drawn_at_its_edge() -> None:
    one = record()
    losses, rates = one.train_loss.copy(), one.learning_rate.copy()
    losses[5], losses[6], rates[7] = 1e149, -1e149, 1e149
    text = in_terminal(replace(one, train_loss=losses, learning_rate=rates))
    assert "highest 1e+149" in text


@pytest.mark.parametrize("loss", [-1e149, 0.0, 5e-324, 1e149])
def test_a_single_loss_of_any_size_is_drawn(loss: float) -> None:
    one = from_lines([{"step": 1, TRAIN_LOSS: loss, LEARNING_RATE: 5e-324}])
    assert "*" in in_terminal(one)
    draw_curves(one, "run")


def test_drawing_in_the_terminal_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    in_terminal(record())
    assert capsys.readouterr() == ("", "")


def test_a_cosine_and_a_linear_decay_differ_in_the_terminal() -> None:
    steps, height = np.arange(1, 301), 8
    straight = 1e-2 * (1 - steps / 300)
    cosine = 1e-2 * (1 + np.cos(np.pi * steps / 300)) / 2

    def rows_of(rates: np.ndarray) -> list[int]:
        """The row, from 0 at the top, that each tenth of the run's rates is drawn in."""
        lines = rate_in_terminal(steps, rates, height=height).splitlines()[1 : 1 + height]
        columns = range(4, 60, 6)
        return [next(n for n, row in enumerate(lines) if row[column] == "#") for column in columns]

    for rates in (straight, cosine):
        near = 1 - rates[(np.arange(4, 60, 6) - 1) * 5] / 1e-2  # 0 at the peak
        assert rows_of(rates) == pytest.approx(near * (height - 1), abs=1.01)
    assert rows_of(straight) != rows_of(cosine)


def test_validation_loss_is_drawn_against_the_tokens_read() -> None:
    rows = record()
    tokens = 64.0 * rows.steps
    text = data_in_terminal(replace(rows, values={"data/tokens": tokens}))
    steps, losses = rows.validations
    assert f"{64 * steps[0]:,} tokens: {losses[0]:.3f} -> {64 * steps[-1]:,} tokens" in text
    assert data_in_terminal(rows) == ""
    assert data_in_terminal(replace(rows, values={"data/tokens": tokens[::-1]}))  # of a stranger


def test_early_estimates_join_the_validation_curve_and_do_not_replace_it() -> None:
    rows = record()
    early = np.where(rows.steps < 30, 5.0, np.nan)
    early[~np.isnan(rows.val_loss)] = 9.0  # never drawn: there is a whole validation
    steps, losses = curves_of(replace(rows, values={"val/early_loss": early}))["validation loss"]
    assert dict(zip(steps.tolist(), losses.tolist(), strict=True)) == {
        0: rows.initial_val_loss,
        **dict.fromkeys((5, 10, 15, 20, 25), 5.0),
        **dict(zip(*(part.tolist() for part in rows.validations), strict=True)),
    }


def test_a_planned_rate_of_0_is_drawn() -> None:
    steps = np.arange(1, 301)
    assert "#" in rate_in_terminal(steps, np.where(steps < 250, 1e-3, 0.0))


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("text")
    for path in (tmp_path / "none", tmp_path / "text.txt"):
        with pytest.raises(CheckpointError, match=f"no run {path}; a run directory is what"):
            plot(path)


@pytest.mark.parametrize("content", [b"text.usetex: True\n", b"\xff\xfe"])
def test_a_matplotlibrc_in_the_working_directory_is_not_read(
    content: bytes, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    folder_of(run).mkdir(parents=True)
    lines = [json.dumps({"step": step, TRAIN_LOSS: 2.0}) for step in (1, 2)]
    (folder_of(run) / "training_metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "matplotlibrc").write_bytes(content)
    words = [sys.executable, "-m", "lmtemplate", "plot", "run"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
