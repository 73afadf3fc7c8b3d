"""An optimizer's groups -> learning rates in the log, each at the step that was made with it."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lmtemplate.callbacks import lr_monitor
from lmtemplate.module import LitLanguageModel
from tests.runs import curve, events, train

STEPS = 12


def cosine(step: int) -> float:
    """Factor of the update number `step` (from 1): 2 of warm-up, then half a cosine to 0.1."""
    if step <= 2:
        return step / 2
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 1 - 2) / (STEPS - 2)))


def linear(step: int) -> float:
    return step / 2 if step <= 2 else 1 - (step - 1 - 2) / (STEPS - 2)


def stable_decay(step: int) -> float:
    """The last half of the 10 steps after warm-up falls."""
    return step / 2 if step <= 2 else min(1.0, (1 - (step - 3) / 10) / 0.5)


FORMULAS = {
    "WarmupCosine": (cosine, ["--model.schedule.floor_ratio=0.1"]),
    "WarmupLinear": (linear, ["--model.schedule.floor_ratio=0"]),
    "WarmupStableDecay": (
        stable_decay,
        ["--model.schedule.decay_ratio=0.5", "--model.schedule.floor_ratio=0"],
    ),
    "Constant": (lambda step: min(1.0, step / 2), []),
}


def test_a_rate_is_logged_at_the_step_that_was_made_with_it(finished: Path) -> None:
    steps = range(2, STEPS + 1, 2)
    assert curve(finished, "optim/lr") == [
        (step, pytest.approx(0.001 * cosine(step), rel=1e-6)) for step in steps
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMULAS)
def test_the_logged_rate_is_the_schedule_s_formula(corpus: Path, tmp_path: Path, name: str) -> None:
    formula: Callable[[int], float] = FORMULAS[name][0]
    flags = [f"--model.schedule=lmtemplate.schedules.{name}", *FORMULAS[name][1]]
    flags += ["--model.schedule.warmup_steps=2", "--model.optimizer.lr=0.01"]
    run = train(tmp_path / "run", corpus, *flags, "--trainer.log_every_n_steps=1")
    points = curve(run, "optim/lr")
    assert [step for step, _ in points] == list(range(1, STEPS + 1))
    expected = [0.01 * formula(step) for step in range(1, STEPS + 1)]
    assert [value for _, value in points] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_rates_are_logged_with_every_other_value_of_the_step(corpus: Path, tmp_path: Path) -> None:
    flags = ["--trainer.accumulate_grad_batches=3", "--trainer.log_every_n_steps=5"]
    run = train(tmp_path / "run", corpus, *flags)
    # validations, every 4 steps, have their rates and training losses, too
    assert [step for step, _ in curve(run, "optim/lr")] == [4, 5, 8, 10, 12]
    assert [step for step, _ in curve(run, "train/loss")] == [4, 5, 8, 10, 12]


@pytest.mark.slow
def test_each_group_has_a_curve_of_its_own(corpus: Path, tmp_path: Path) -> None:
    flags = ["--model.optimizer=lmtemplate.optimizers.MuonAdamW", "--model.optimizer.lr=0.02"]
    flags += ["--model.optimizer.adamw_lr=0.003", "--model.schedule.warmup_steps=0"]
    run = train(tmp_path / "run", corpus, *flags, "--trainer.log_every_n_steps=1")
    assert curve(run, "optim/lr")[0] == (1, pytest.approx(0.02))
    assert curve(run, "optim/lr/decay")[0] == (1, pytest.approx(0.003))


def test_groups_without_a_name_are_numbered_from_1(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (0.1, 0.2, 0.3), strict=True)]
    trainer = SimpleNamespace(optimizers=[torch.optim.SGD(groups)], accumulate_grad_batches=1)
    logged: dict[str, float] = {}
    monkeypatch.setattr(lr_monitor, "is_log_step", lambda *_: True)
    monkeypatch.setattr(lr_monitor, "log_values", lambda _, values: logged.update(values))
    monitor, net = lr_monitor.LRMonitor(), LitLanguageModel.__new__(LitLanguageModel)
    monitor.on_train_batch_start(trainer, net, None, 0)  # type: ignore[arg-type]
    monitor.on_train_batch_end(trainer, net, None, None, 0)  # type: ignore[arg-type]
    assert logged == {"optim/lr": 0.1, "optim/lr/2": 0.2, "optim/lr/3": 0.3}


@pytest.mark.slow
def test_the_learning_rate_can_be_monitored(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics: dict[str, float] = {}

    def look(module: LitLanguageModel) -> None:
        metrics.update({k: float(v) for k, v in module.trainer.callback_metrics.items()})

    monkeypatch.setattr(LitLanguageModel, "on_train_end", look, raising=False)
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=4")
    assert metrics["optim/lr"] == pytest.approx(dict(curve(run, "optim/lr"))[4])


@pytest.mark.slow
def test_null_turns_it_off(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--lr_monitor=null", "--trainer.max_steps=4")
    assert "optim/lr" not in events(run).Tags()["scalars"]
