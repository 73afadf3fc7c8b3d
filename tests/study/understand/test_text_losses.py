"""Losses by place and by document, of texts made by hand."""

import numpy as np
import pytest
import torch

from lmtemplate.data import IGNORED
from lmtemplate.data.tokenizer import ByteTokenizer
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT2
from lmtemplate.study.understand.text_losses import by_document, by_position, nats_of


def test_a_position_has_the_mean_over_the_sequences_that_reach_it() -> None:
    nats = np.array([[1.0, 2.0, 3.0], [3.0, 6.0, np.nan]])
    assert by_position(nats) == [2.0, 4.0, 3.0]
    assert by_position(nats[1:]) == [3.0, 6.0]


def test_a_document_has_its_own_tokens_and_the_end_that_follows_them() -> None:
    tokenizer = ByteTokenizer()
    end = tokenizer.eot_id
    text = np.array([*b"first", end, *b"second", end, *b"3"])
    stream = np.concatenate([text, [0] * (16 - len(text) + 1)])
    inputs, targets = (torch.from_numpy(part).view(4, 4) for part in (stream[:-1], stream[1:]))
    targets = targets.clone()
    targets.view(-1)[len(text) - 1 :] = IGNORED
    nats = np.where(targets == IGNORED, np.nan, np.arange(16).reshape(4, 4))
    found = by_document(nats, inputs, targets, tokenizer)
    assert [(one.beginning, one.tokens) for one in found] == [("first", 5), ("second", 7), ("3", 1)]
    # the target at place i is token i + 1: "irst" and its end are 0 .. 4, "second" and it 5 .. 11
    assert [one.loss for one in found] == [2.0, 8.0, 12.0]


def test_nats_have_their_place_and_add_up_to_the_loss() -> None:
    torch.manual_seed(0)
    net = GPT2(13, 6, n_layer=1, n_head=1, n_embd=8).eval()
    inputs, targets = torch.randint(13, (2, 3, 6))
    targets[2, 4:] = IGNORED
    nats = nats_of(net, inputs, targets)
    assert np.isnan(nats).sum() == 2
    assert np.isnan(nats[2, 4:]).all()
    assert np.nanmean(nats) == pytest.approx(cross_entropy(net(inputs), targets).objective.item())
