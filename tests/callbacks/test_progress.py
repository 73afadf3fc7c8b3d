"""Running values -> a bar on a terminal; elsewhere a line per validation and minute."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmtemplate.callbacks import progress
from lmtemplate.callbacks.progress import SHOWN, ProgressBar, shown
from lmtemplate.cli import TrainingCLI
from tests.conftest import Command
from tests.runs import events


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "between", "steps"),
    [(1e9, 1e9, [0, 4, 8, 12]), (0, 1e9, [0, 2, 4, 8, 12]), (0, 0, [0, *range(2, 13)])],
)
def test_without_a_terminal_each_validation_is_one_line_and_each_minute_another(
    fit: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: float,
    between: float,
    steps: list[int],
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", first)
    monkeypatch.setattr(progress, "LINE_SECONDS", between)
    lines = fit(tmp_path / "run").out.splitlines()
    told = [line.split()[1] for line in lines if line.startswith("step ")]
    assert list(dict.fromkeys(told)) == [f"{step}/12" for step in steps]


@pytest.mark.slow
def test_a_line_tells_loss_validation_loss_and_speed(fit: Command, tmp_path: Path) -> None:
    (last,) = (line for line in fit(tmp_path / "run").out.splitlines() if "step 12/12" in line)
    number = r"[\d.,]+"
    pattern = rf"step 12/12  loss {number}  val {number}  bits/byte {number}  tokens/s {number}"
    assert re.fullmatch(pattern, last)


@pytest.mark.slow
def test_values_stand_under_their_names_with_few_digits(corpus: Path) -> None:
    module = TrainingCLI(["--data.path", str(corpus)], []).model
    module.latest = {"train/loss": 2.34567, "speed/tokens_per_second": 12345.6, "optim/lr": 1.0}
    assert shown(module) == {"loss": "2.346", "tokens/s": "12,346"}


@pytest.mark.slow
def test_every_value_that_is_shown_is_one_that_is_logged(fit: Command, tmp_path: Path) -> None:
    fit(tmp_path / "run")
    assert set(SHOWN) <= set(events(tmp_path / "run").Tags()["scalars"])


def test_the_bar_is_refreshed_rarely_and_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ProgressBar().refresh_rate == 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert ProgressBar().refresh_rate >= 20


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_on_a_terminal_a_resumed_bar_goes_on_where_it_was(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    bars = []

    class Noted(ProgressBar):
        def __init__(self) -> None:
            super().__init__()
            self._refresh_rate, self.on_terminal = 20, True

        def on_train_start(self, *words: object) -> None:
            super().on_train_start(*words)  # type: ignore[arg-type]
            bars.append((self.train_progress_bar.n, self.train_progress_bar.total))

    monkeypatch.setattr("lmtemplate.fit.ProgressBar", Noted)
    flag = f"--trainer.accumulate_grad_batches={accumulate}"
    fit(tmp_path / "run", flag, "--trainer.max_steps=6")
    milestones = tmp_path / "run" / "checkpoints" / "milestones"
    shutil.rmtree(milestones)
    milestones.touch()  # in the way of the next ones, which is told above the bar
    result = fit(tmp_path / "run", flag, "--resume=must")
    assert "milestone not saved" in result.out
    assert bars == [(0, 6 * accumulate), (6 * accumulate, 12 * accumulate)]


@pytest.mark.slow
def test_on_a_terminal_no_line_stands_between_validations(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bar, module = progress.ProgressBar(), SimpleNamespace(latest={"train/loss": 1.0})
    bar.on_terminal, bar.next_line = True, 0.0
    bar.on_train_batch_start(SimpleNamespace(), module)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_the_bar_can_be_turned_off(fit: Command, tmp_path: Path) -> None:
    result = fit(tmp_path / "run", "--trainer.enable_progress_bar=false")
    assert result.code == 0
    assert "step 12/12" not in result.out
