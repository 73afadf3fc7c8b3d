"""Validation losses that no longer improve -> the end of a run."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer, callbacks

from lmtemplate.callbacks.early_stopping import EarlyStopping
from lmtemplate.errors import ConfigError
from tests.runs import load, steps, train

STUCK = ["--model.optimizer.lr=0", "--trainer.val_check_interval=2", "--trainer.max_steps=20"]


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def test_a_run_that_no_longer_improves_stops_after_its_patience(
    corpus: Path, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", corpus, *STUCK, "--early_stopping.patience=2")
    assert steps(run, "val/loss") == [0, 2, 4]  # the untrained model is the best so far
    assert load(run, 4)["global_step"] == 4


@pytest.mark.slow
def test_without_early_stopping_it_goes_on(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, *STUCK, "--early_stopping=null")
    assert steps(run, "val/loss")[-1] == 20


@pytest.mark.slow
def test_an_improvement_below_min_delta_does_not_count(corpus: Path, tmp_path: Path) -> None:
    flags = ["--early_stopping.patience=2", "--early_stopping.min_delta=1"]
    run = train(tmp_path / "run", corpus, "--trainer.val_check_interval=2", *flags)
    assert steps(run, "val/loss")[-1] == 4


@pytest.mark.slow
def test_another_metric_can_be_watched(corpus: Path, tmp_path: Path) -> None:
    flags = ["--early_stopping.monitor=val/accuracy", "--early_stopping.mode=max"]
    run = train(tmp_path / "run", corpus, *STUCK, *flags, "--early_stopping.patience=1")
    assert steps(run, "val/loss")[-1] == 2


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
    assert steps(run, "val/loss") == [0, 2, 4, 6]
    assert (summary(run)["stop_reason"], summary(run)["step"]) == ("early_stopping", 6)
    train(run, corpus, *flags)
    assert "is finished at step 6" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("change", ["--trainer.max_steps=22", "--early_stopping.min_delta=0.1"])
def test_a_run_that_stopped_early_goes_on_when_its_length_or_its_measure_changes(
    corpus: Path, tmp_path: Path, change: str
) -> None:
    flags = [*STUCK, "--early_stopping.patience=3", "--resume=auto"]
    run = train(tmp_path / "run", corpus, *flags)
    train(run, corpus, *flags, change)
    assert steps(run, "val/loss") == [0, 2, 4, 6, 8]


def test_a_patience_below_0_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"early_stopping\.patience=-1 has to be 0 or more"):
        EarlyStopping(patience=-1)


def test_lightning_s_own_early_stopping_may_stand_beside_it(tmp_path: Path) -> None:
    theirs = callbacks.EarlyStopping("val/loss", mode="min")
    trainer = Trainer(callbacks=[EarlyStopping(), theirs], logger=False, default_root_dir=tmp_path)
    keys = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
    assert {"early_stopping", theirs.state_key} <= keys
