"""Steps and the clock -> the end of a run, after a last validation."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmtemplate.callbacks import run_end
from lmtemplate.callbacks.run_end import RunEnd
from lmtemplate.module import LitLanguageModel
from tests.conftest import Command
from tests.runs import load, steps, train


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only tests move, and a step that is said to take 1 ms."""
    fake = SimpleNamespace(now=1000.0)  # not the start of the run
    fake.monotonic = lambda: fake.now
    monkeypatch.setattr(run_end, "time", fake)
    monkeypatch.setattr("lmtemplate.fit.measure_step", lambda *_, **__: 1e-3)
    return fake


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


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 11])
def test_a_run_directory_that_is_removed_ends_the_run_at_once_with_a_line_and_5(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    begin = LitLanguageModel.on_train_batch_start

    def on_train_batch_start(module: LitLanguageModel, *words: Any) -> None:
        if module.global_step == step:
            shutil.rmtree(tmp_path / "run")
        begin(module, *words)

    monkeypatch.setattr(LitLanguageModel, "on_train_batch_start", on_train_batch_start)
    shown = fit(tmp_path / "run", "--samples=null")
    assert shown.code == 5
    assert f"run was removed or renamed at step {step + 1}; put it back" in shown.error
    assert "\n" not in shown.error.strip()
    assert "cannot" not in shown.out
    assert not (tmp_path / "run").exists()
