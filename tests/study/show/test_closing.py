"""A run that has ended -> verdict, figures, pictures, page, TensorBoard; no crash of its own."""

import contextlib
import io
import json
from pathlib import Path

import pytest

from lmtemplate.study.show import closing
from tests.conftest import Command
from tests.runs import events, train
from tests.study.show.test_page import write_run


@pytest.fixture(scope="module")
def explained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run made with `--report true`, and what it printed."""
    run, printed = tmp_path_factory.mktemp("closing") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        train(run, corpus, "--report=true", '--samples.prompts=["The "]')
    return run, printed.getvalue()


@pytest.mark.slow
def test_the_run_ends_with_all_that_was_promised(explained: tuple[Path, str]) -> None:
    text = explained[1].partition("\ndone\n")[2]
    order = [
        "learning rate",
        "=== Training Summary ===",
        '"The ", continued',
        "before",
        "after",
        "time ",
        "cost ",
        "verdict: ",
        "checks",
        "report.html",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.slow
def test_all_files_are_there_and_are_what_they_say(explained: tuple[Path, str]) -> None:
    run, _ = explained
    for name in ("training_curve.png", "loss_by_epoch.png"):
        assert (run / "checkpoints" / name).read_bytes().startswith(b"\x89PNG")
    for name in ("summary.json", "manifest.json", "checkpoints/training_metrics.json"):
        json.loads((run / name).read_text())
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.slow
def test_the_verdict_is_in_tensorboard(explained: tuple[Path, str]) -> None:
    run, _ = explained
    board = events(run)
    text = board.Tensors("verdict/text_summary")[-1]
    assert text.step == 12
    assert b"verdict: " in text.tensor_proto.string_val[0]
    # the curves are untouched by the second writer
    assert [event.step for event in board.Scalars("val/loss")] == [0, 4, 8, 12]


@pytest.mark.slow
def test_what_goes_wrong_in_explaining_does_not_spoil_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(closing, "examine", fail)
    closing.explain_run(write_run(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "the run is safe, but cannot be explained" in printed
    assert "a bug" in printed


@pytest.mark.slow
def test_without_a_report_nothing_is_explained(fit: Command, tmp_path: Path) -> None:
    shown = fit(tmp_path / "run", "--trainer.max_steps=4")
    assert "verdict" not in shown.out
    assert not (tmp_path / "run" / "report.html").exists()
