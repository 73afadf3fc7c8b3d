"""A checkpoint -> a run that goes on as if it had never stopped."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric

from lmtemplate.callbacks.early_stopping import EarlyStopping
from lmtemplate.callbacks.exact_resume import ExactResume, random_states, set_random_states
from lmtemplate.callbacks.weight_averaging import WeightAveraging
from lmtemplate.errors import CheckpointError
from lmtemplate.record import read_record
from tests.runs import train


@pytest.mark.parametrize("seed", [0, 1])
def test_random_states_come_back_exactly(seed: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.normal(), float(torch.rand(()))

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    np.random.normal()  # leaves a second Gaussian for the next call
    states = random_states()
    expected = draw(), draw()
    set_random_states(states)
    assert (draw(), draw()) == expected


def test_random_states_are_plain_enough_for_weights_only(tmp_path: Path) -> None:
    torch.save(random_states(), tmp_path / "states")
    set_random_states(torch.load(tmp_path / "states", weights_only=True))


@pytest.mark.slow
def test_a_resume_that_saves_nothing_is_as_exact_as_one_that_saves(
    corpus: Path, tmp_path: Path
) -> None:
    """Dropout draws other numbers where the random states are lost, and so do the losses."""
    flags = ["--model.net.dropout=0.5", "--trainer.log_every_n_steps=1", "--samples=null"]
    flags += ["--model.schedule=Constant", "--trainer.num_sanity_val_steps=0"]
    whole = train(tmp_path / "whole", corpus, *flags, "--trainer.max_steps=8")
    run = train(tmp_path / "run", corpus, *flags, "--trainer.max_steps=4")
    train(run, corpus, *flags, "--trainer.max_steps=8", "--resume=must", "--checkpoint=null")
    assert read_record(run).train_loss.tolist() == read_record(whole).train_loss.tolist()
    assert read_record(run).validations[1].tolist() == read_record(whole).validations[1].tolist()


@pytest.mark.slow
def test_the_manifest_keeps_on_how_many_threads_a_run_went_on(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=4")
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        train(run, corpus, "--trainer.max_steps=6", "--resume=must")
    finally:
        torch.set_num_threads(threads)
    (start,) = json.loads((run / "manifest.json").read_text())["resumed"]
    assert start["environment"] == {"hardware.threads": [threads, threads + 1]}


def plateau() -> ReduceLROnPlateau:
    return ReduceLROnPlateau(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1))


CALLBACKS: list[tuple[Any, str, Any]] = [
    (WeightAveraging(), "latest_update_step", "x"),
    (EarlyStopping(), "wait_count", [1]),
    (EarlyStopping(), "best_score", torch.zeros(2)),
    (ModelCheckpoint(monitor="val/loss"), "kth_value", "x"),
]


@pytest.mark.parametrize(("callback", "key", "value"), CALLBACKS)
def test_a_callback_gets_no_state_of_another_kind(callback: Callback, key: str, value: Any) -> None:
    states = {callback.state_key: {**callback.state_dict(), key: value}}
    loaded = {"random_states": [], "lr_schedulers": [], "callbacks": states}
    trainer = SimpleNamespace(callbacks=[callback])
    with pytest.raises(CheckpointError, match="is not of the kind of"):
        ExactResume().on_load_checkpoint(trainer, torch.nn.Module(), loaded)  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value"), [("patience", "x"), ("best", []), ("min_lrs", ["x"])])
def test_a_schedule_gets_no_state_of_another_kind(key: str, value: Any) -> None:
    """Lightning asks this one at a validation, long after the resume."""
    resume = ExactResume()
    resume._schedules = [{**plateau().state_dict(), key: value}]
    trainer = SimpleNamespace(lr_scheduler_configs=[SimpleNamespace(scheduler=plateau())])
    with pytest.raises(CheckpointError, match="ReduceLROnPlateau"):
        resume.on_fit_start(trainer, torch.nn.Module())  # type: ignore[arg-type]


class Accurate(torch.nn.Module):
    """A module of the user's own that measures by a metric of torchmetrics."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()


def test_a_metric_gets_no_state_of_another_shape() -> None:
    """Its state comes with the weights, where torch compares no shapes of it."""
    module = Accurate()
    module.load_state_dict({"mean.mean_value": torch.zeros(3), "mean.weight": torch.zeros(3)})
    loaded: dict[str, Any] = {"random_states": [], "lr_schedulers": [], "callbacks": {}}
    with pytest.raises(CheckpointError, match="MeanMetric"):
        ExactResume().on_load_checkpoint(SimpleNamespace(callbacks=[]), module, loaded)  # type: ignore[arg-type]


class Late(Callback):
    """A callback of the user's own, whose state is there once training has begun."""

    def state_dict(self) -> dict[str, Any]:
        raise AssertionError("asked before it has a state")


def test_a_callback_of_ones_own_is_asked_for_no_state_before_it_has_one() -> None:
    loaded: dict[str, Any] = {
        "random_states": [],
        "lr_schedulers": [],
        "callbacks": {"Late": {1: 2}},
    }
    trainer = SimpleNamespace(callbacks=[Late()])
    with pytest.raises(KeyError, match="global_step"):  # the next thing that it looks for
        ExactResume().on_load_checkpoint(trainer, Accurate(), {**loaded, "loops": {}})  # type: ignore[arg-type]
