"""A checkpoint -> a run that goes on as if it had never stopped."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lmtemplate.callbacks.exact_resume import random_states, set_random_states
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
