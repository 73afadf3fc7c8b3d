"""A sweep -> the same trials whether or not it was killed; its table, page and best config."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lmtemplate.record import read_record
from lmtemplate.study.experiments.sweep import Runner, SweepPlan, check_same, read_plan
from lmtemplate.study.experiments.trials import Book, Trial
from tests.conftest import TINY, Command

ROOT = Path(__file__).parents[3]


def plan_of(folder: Path, *words: str) -> SweepPlan:
    overs = ["--over=lr=1,2,3", "--over=seed=1,2"]
    return read_plan([*overs, f"--run_dir={folder}", *words], [])[0]


class Faked(Runner):
    """Trials that only write the record that a fit would leave; `codes`: number -> exit code."""

    codes: dict[int, int] = {}  # noqa: RUF012

    def attempt(self, trial, slot):  # type: ignore[no-untyped-def]
        code = self.codes.get(trial.number, 0)
        folder = self.plan.folder / f"trial-{trial.number:03d}" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        loss = float(trial.settings["lr"]) + float(trial.settings["seed"]) / 10
        line = {"step": 10, "train/loss": loss, "val/loss": loss}
        (folder / "training_metrics.jsonl").write_text(json.dumps(line) + "\n")
        return code, f"error: code {code}" if code else "", False


def test_every_trial_is_trained_once_and_the_file_of_trials_remembers_them(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    Faked(plan, Book(tmp_path)).run()
    trials = Book(tmp_path).trials
    assert [trial.settings for trial in trials] == [
        {"lr": lr, "seed": seed} for lr in "123" for seed in "12"
    ]
    assert [trial.loss for trial in trials] == pytest.approx([1.1, 1.2, 2.1, 2.2, 3.1, 3.2])
    assert {trial.state for trial in trials} == {"complete"}
    before = (tmp_path / "trials.jsonl").read_bytes()
    Faked(plan, Book(tmp_path)).run()
    assert (tmp_path / "trials.jsonl").read_bytes() == before


def test_a_sweep_killed_anywhere_ends_with_the_same_trials(tmp_path: Path) -> None:
    """The file of trials, cut at every line and in the middle of lines."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    Faked(plan_of(whole), Book(whole)).run()
    lines = (whole / "trials.jsonl").read_bytes()
    for end in range(0, len(lines), 97):
        (cut / "trials.jsonl").write_bytes(lines[:end])
        Faked(plan_of(cut), Book(cut)).run()
        assert Book(cut).trials == Book(whole).trials


def test_failed_and_diverged_trials_stay_and_stopped_ones_are_tried_again(tmp_path: Path) -> None:
    runner = Faked(plan_of(tmp_path), Book(tmp_path))
    runner.codes = {0: 4, 1: 2, 2: 143, 3: -9}
    runner.run()
    states = [trial.state for trial in Book(tmp_path).trials]
    assert states == ["failed", "failed", None, None, "complete", "complete"]
    Faked(plan_of(tmp_path), Book(tmp_path)).run()
    states = [trial.state for trial in Book(tmp_path).trials]
    assert states == ["failed", "failed", *["complete"] * 4]


def test_a_trial_that_ends_without_a_word_is_told_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Runner, "attempt", lambda *_: (1, "", False))
    Runner(plan_of(tmp_path), Book(tmp_path)).run()
    assert "failed, exit code 1\n" in capsys.readouterr().err


def test_a_folder_that_holds_another_sweep_is_refused_and_more_trials_are_not(
    tmp_path: Path,
) -> None:
    plan = plan_of(tmp_path, "--sampler=random", "--trials=3")
    check_same(plan)
    check_same(replace(plan, trials=9, jobs=2))
    with pytest.raises(Exception, match="another space; name another folder"):
        check_same(read_plan(["--over=lr=1,2", f"--run_dir={tmp_path}", "--sampler=random"], [])[0])


def test_a_trial_that_would_start_after_the_end_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", start)
    runner = Runner(plan_of(tmp_path), Book(tmp_path))
    runner.stop()
    trial = Trial(0, {"lr": "1", "seed": "1"})
    runner.train(trial, 0)
    assert trial.state is None  # it goes on the next time


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--over=lr=1,2"], "needs --run_dir"),
        (["--run_dir=x"], "needs --over"),
        (["--over=lr=1,2", "--run_dir=x", "--jobs=0"], "--jobs from 1 to 1,000"),
        (["--over=lr=1,2", "--run_dir=x", "--jobs=9999999999999999"], "--jobs from 1 to 1,000"),
        (["--over=lr=1,2", "--run_dir=x", "--jobs=many"], "invalid int value"),
        (["--over=lr=1,2", "--run_dir=x", "--sampler=best"], "none of grid, random, tpe"),
    ],
)
def test_a_mistake_is_one_line(command: Command, words: list[str], says: str) -> None:
    result = command("sweep", *words)
    assert result.code == 2
    assert says in result.error


def test_a_wrong_setting_is_told_before_the_first_trial(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    over = "--over=model.optimizer.lrr=0.1,0.2"
    folder = tmp_path / "sweep"
    result = command("sweep", over, "--data.path", corpus, *TINY, "--run_dir", folder)
    assert result.code == 2
    assert "model.optimizer.lr" in result.error
    assert not folder.exists()


@pytest.mark.slow
def test_a_sweep_killed_twice_goes_on_and_names_the_best(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ["sweep", "--over=model.optimizer.lr=1e-5,1e-2", "--over=seed_everything=1,2"]
    words += ["--data.path", str(corpus), *TINY, "--run_dir", str(folder), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "lmtemplate", *words]
    for trial in (0, 2):
        child = subprocess.Popen(start, env=environment, stdout=subprocess.DEVNULL)
        while not (folder / f"trial-{trial:03d}" / "config.yaml").exists():
            assert child.poll() is None
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = subprocess.run(start, env=environment, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert len(result["trials"]) == 4
    assert {trial["state"] for trial in result["trials"]} == {"complete"}
    assert result["best"]["settings"]["model.optimizer.lr"] == "1e-2"
    assert result["importance"]["model.optimizer.lr"] > 0.9
    best = Path(result["best"]["run"])
    assert read_record(best).validations[1].min() == result["best"]["val_loss"]
    page = (folder / "sweep.html").read_text()
    assert all(f'"name":"trial {number}"' in page for number in range(4))
    again = [sys.executable, "-m", "lmtemplate", "fit", "--config", str(folder / "best.yaml")]
    subprocess.run(again, env=environment, capture_output=True, check=True)
    losses = [read_record(run).val_loss.tolist() for run in (best, folder / "best")]
    assert str(losses[0]) == str(losses[1])  # NaN where nothing was validated
