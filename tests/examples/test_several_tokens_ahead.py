"""A second head for the token after the next."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from examples.several_tokens_ahead import GPTAhead
from lmtemplate.record import read_record
from tests.examples.conftest import Train


def test_the_second_head_is_asked_for_the_token_after_the_next() -> None:
    torch.manual_seed(0)
    model = GPTAhead(11, 8, n_layer=1, n_head=2, n_embd=16, ahead_weight=0.5)
    torch.nn.init.normal_(model.second_head.weight)
    text = torch.randint(11, (3, 9))
    model(text[:, :-1])
    term = model.extra_objectives(text[:, 1:])["ahead"]
    logits = model.second_head(model.seen[:, :7]).flatten(0, 1)
    expected = 0.5 * F.cross_entropy(logits, text[:, 2:].flatten())
    assert term.item() == pytest.approx(expected.item())
    term.backward()
    assert model.embedding.weight.grad is not None


@pytest.mark.slow
def test_its_loss_begins_at_ln_v_and_falls(train: Train, tmp_path: Path) -> None:
    train(tmp_path / "run", "several_tokens_ahead", "--trainer.log_every_n_steps=1")
    ahead = read_record(tmp_path / "run").values["train/ahead"]
    assert ahead[0] == pytest.approx(0.3 * math.log(257), rel=1e-3)
    assert ahead[-1] < ahead[0]
