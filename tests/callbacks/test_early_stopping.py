"""Validation losses, steps and the clock -> the end of a run."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer, callbacks

from lmtemplate.callbacks import early_stopping as stopping
from lmtemplate.callbacks.early_stopping import EarlyStopping, RunEnd
from lmtemplate.errors import ConfigError
from lmtemplate.module import LitLanguageModel
from tests.runs import load, steps, train

STUCK = ["--model.optimizer.lr=0", "--trainer.val_check_interval=2", "--trainer.max_steps=20"]


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only tests move, and a step that is said to take 1 ms."""
    fake = SimpleNamespace(now=0.0)
    fake.monotonic = lambda: fake.now
    monkeypatch.setattr(stopping, "time", fake)
    monkeypatch.setattr("lmtemplate.fit.measure_step", lambda *_, **__: 1e-3)
    return fake


def test_a_run_that_no_longer_improves_stops_after_its_patience(
    corpus: Path, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", corpus, *STUCK, "--early_stopping.patience=3")
    assert steps(run, "val/loss") == [0, 2, 4, 6, 8]  # the first counts as the best so far
    assert load(run, 8)["global_step"] == 8


@pytest.mark.slow
def test_without_early_stopping_it_goes_on(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, *STUCK, "--early_stopping=null")
    assert steps(run, "val/loss")[-1] == 20


@pytest.mark.slow
def test_an_improvement_below_min_delta_does_not_count(corpus: Path, tmp_path: Path) -> None:
    flags = ["--early_stopping.patience=2", "--early_stopping.min_delta=1"]
    run = train(tmp_path / "run", corpus, "--trainer.val_check_interval=2", *flags)
    assert steps(run, "val/loss")[-1] == 6


@pytest.mark.slow
def test_another_metric_can_be_watched(corpus: Path, tmp_path: Path) -> None:
    flags = ["--early_stopping.monitor=val/accuracy", "--early_stopping.mode=max"]
    run = train(tmp_path / "run", corpus, *STUCK, *flags, "--early_stopping.patience=1")
    assert steps(run, "val/loss")[-1] == 4


def test_a_patience_from_before_does_not_beat_the_one_given_now() -> None:
    before = EarlyStopping(patience=2)
    before.wait_count = 1
    now = EarlyStopping(patience=7)
    now.load_state_dict(before.state_dict())
    assert (now.patience, now.wait_count) == (7, 1)


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_summary_ends_where_it_had_stopped(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*STUCK, "--early_stopping.patience=3", "--resume=auto"]
    run = train(tmp_path / "run", corpus, *flags)
    (run / "summary.json").unlink()
    train(run, corpus, *flags)
    assert steps(run, "val/loss") == [0, 2, 4, 6, 8]
    assert (summary(run)["stop_reason"], summary(run)["step"]) == ("early_stopping", 8)
    train(run, corpus, *flags)
    assert "is finished at step 8" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("change", ["--trainer.max_steps=22", "--early_stopping.min_delta=0.1"])
def test_a_run_that_stopped_early_goes_on_when_its_length_or_its_measure_changes(
    corpus: Path, tmp_path: Path, change: str
) -> None:
    flags = [*STUCK, "--early_stopping.patience=3", "--resume=auto"]
    run = train(tmp_path / "run", corpus, *flags)
    train(run, corpus, *flags, change)
    assert steps(run, "val/loss") == [0, 2, 4, 6, 8, 10]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_final_weights_are_validated_though_the_interval_does_not_divide_the_run(
    corpus: Path, tmp_path: Path, accumulate: int
) -> None:
    flags = ["--trainer.max_steps=10", f"--trainer.accumulate_grad_batches={accumulate}"]
    run = train(tmp_path / "run", corpus, *flags)
    assert steps(run, "val/loss") == [0, 4, 8, 10]
    assert load(run, 10)["TokenData"] == {"sequences": 10 * 4 * accumulate}


@pytest.mark.slow
def test_the_final_weights_are_validated_once(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=8")
    assert steps(run, "val/loss") == [0, 4, 8]


def tick(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> None:
    """From now on each optimizer step takes a second."""
    before = RunEnd.on_train_batch_end

    def second(self: RunEnd, *words: Any) -> None:
        clock.now += 1
        before(self, *words)

    monkeypatch.setattr(RunEnd, "on_train_batch_end", second)


@pytest.mark.slow
def test_max_seconds_ends_a_run_that_is_slower_than_measured(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    tick(monkeypatch, clock)
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=-1", "--max_seconds=7")
    assert summary(run)["stop_reason"] == "max_seconds"
    assert summary(run)["step"] == 7
    assert summary(run)["max_steps"] > 1000
    assert steps(run, "val/loss") == [0, 4, 7]  # the final weights too
    assert load(run, 7)["global_step"] == 7


@pytest.mark.slow
def test_max_seconds_counts_over_all_restarts(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace
) -> None:
    def killed(module: LitLanguageModel, *_: object) -> None:
        if module.global_step == 5:
            raise RuntimeError("killed")

    tick(monkeypatch, clock)
    words = ["--trainer.max_steps=-1", "--max_seconds=7"]
    with monkeypatch.context() as patch:
        patch.setattr(LitLanguageModel, "on_train_batch_start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(tmp_path / "run", corpus, *words)
    planned = load(tmp_path / "run", 4)["length"]["steps"]
    monkeypatch.setattr("lmtemplate.fit.measure_step", lambda *_, **__: 1e-2)
    run = train(tmp_path / "run", corpus, *words, "--resume=must")
    assert summary(run)["step"] == 7  # 4 seconds before, 3 now
    assert summary(run)["max_steps"] == planned  # the schedule depends on it


@pytest.mark.parametrize(
    ("setting", "says"),
    [({"patience": -1}, "patience=-1 has to be 0 or more"), ({"mode": "up"}, "mode=up has to be")],
)
def test_a_setting_that_makes_no_sense_is_refused(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"early_stopping\.{says}"):
        EarlyStopping(**setting)


def test_lightning_s_own_early_stopping_may_stand_beside_it(tmp_path: Path) -> None:
    theirs = callbacks.EarlyStopping("val/loss", mode="min")
    trainer = Trainer(callbacks=[EarlyStopping(), theirs], logger=False, default_root_dir=tmp_path)
    keys = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
    assert {"early_stopping", theirs.state_key} <= keys
