"""Batches and steps made by hand -> the figures that are logged of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lmtemplate.data import IGNORED
from lmtemplate.data.datamodule import TokenData
from lmtemplate.record import read_record
from lmtemplate.study.diagnose import evidence, vitals
from lmtemplate.study.diagnose.early_warning import surprises
from lmtemplate.study.diagnose.evidence import gather

TEXT = torch.arange(40).view(4, 10) % 17


def figures(inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    return vitals.batch_figures((inputs, targets), np.full(17, 2.5))


def test_a_sound_batch_has_targets_that_follow_and_no_sequence_twice() -> None:
    assert figures(TEXT[:, :-1], TEXT[:, 1:]) == {
        vitals.NEXT: 1.0,
        vitals.UNCOUNTED: 0.0,
        vitals.TWICE: 0.0,
        vitals.LONGEST_RUN: pytest.approx(1 / 9),
        vitals.UNIGRAM: 2.5,
    }


def test_each_fault_of_a_batch_moves_its_figure() -> None:
    inputs, targets = TEXT[:, :-1].clone(), TEXT[:, 1:].clone()
    assert figures(inputs, inputs)[vitals.NEXT] == 0.0
    assert figures(inputs[[0, 0, 0, 1]], targets)[vitals.TWICE] == 0.5
    targets[:, 3:] = IGNORED
    assert figures(inputs, targets)[vitals.UNCOUNTED] == pytest.approx(2 / 3)
    assert figures(inputs, targets)[vitals.NEXT] == 1.0  # what is not counted need not follow
    inputs[:, 3:] = 0
    assert figures(inputs, targets)[vitals.LONGEST_RUN] == pytest.approx(6 / 9)


def test_a_token_costs_what_its_frequency_in_the_corpus_says(corpus: Path) -> None:
    data = TokenData(corpus, block_size=16, batch_size=4)
    data.setup("fit")
    _, targets = data.blocks("train")[np.arange(len(data.blocks("train")))]
    counts = np.bincount(targets.ravel(), minlength=data.vocab_size)
    common = counts.argmax()
    nats = surprises(data)
    assert nats is not None
    assert nats[common] == pytest.approx(-np.log(counts[common] / counts.sum()), abs=0.05)


def test_the_size_of_a_step_stands_beside_that_of_the_weights() -> None:
    weights = [torch.full((1000,), 2.0), torch.full((3,), 2.0)]
    before = vitals.sample_weights(weights)
    assert len(before) == vitals.SAMPLED + 3
    assert vitals.update_size(before, vitals.sample_weights([w + 0.02 for w in weights])) == (
        pytest.approx(0.01)
    )
    assert vitals.update_size(np.zeros(3), np.ones(3)) == 0.0


def test_a_run_logs_its_batches_and_steps_and_its_checkpoint_agrees(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "ALL_SAMPLES_TOKENS", 100)
    monkeypatch.setattr(evidence, "FEWEST_SAMPLES", 2)
    record, facts = read_record(finished), gather(finished)
    assert set(record.values[vitals.NEXT]) == {1.0}
    assert (record.values[vitals.UPDATE] > 0).all()
    assert vitals.LEFT not in record.values
    recorded = record.val_loss[record.steps == facts.checkpoint_step]
    assert facts.val_measured == pytest.approx(recorded[0], abs=1e-3)
    assert facts.ahead is not None
    assert facts.ahead < 1e-5
    assert (facts.still_tensors, facts.is_random, facts.is_probability) == ((), False, False)
