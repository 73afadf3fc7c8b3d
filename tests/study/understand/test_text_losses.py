"""Losses of texts made by hand, predictors of known calibration, and torch's own cross-entropy."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmtemplate.data import IGNORED
from lmtemplate.data.shards import Shards
from lmtemplate.data.tokenizer import ByteTokenizer
from lmtemplate.errors import NumbersError
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT2
from lmtemplate.study.understand import text_losses as study
from lmtemplate.study.understand.text_losses import (
    by_document,
    by_position,
    calibrate,
    document_starts,
    predict_text,
    text_nats,
)
from tests.study.corpora import write_corpus

END = ByteTokenizer().eot_id


def test_a_position_has_the_mean_over_the_sequences_that_reach_it() -> None:
    nats = np.array([[1.0, 2.0, 3.0], [3.0, 6.0, np.nan]])
    assert by_position(nats) == [2.0, 4.0, 3.0]
    assert by_position(nats[1:]) == [3.0, 6.0]


TEXT = [*b"first", END, *b"second", END, *b"3", END, *b"fourth", END]


@pytest.fixture
def held_out(tmp_path: Path) -> Shards:
    """Four documents in shards of five tokens."""
    ids = np.array(TEXT)
    splits = {"train": ids, "val": ids}
    corpus = write_corpus(tmp_path / "data", splits, shard_tokens=5, vocab_size=257)
    return Shards(corpus.folder, "val", corpus.index)


def test_documents_begin_behind_each_end_of_text(
    held_out: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert document_starts(held_out, END).tolist() == [0, 6, 13, 15, 22]
    monkeypatch.setattr(study, "READ_AT_ONCE", 4)
    assert document_starts(held_out, END).tolist() == [0, 6, 13, 15, 22]


def test_a_document_has_its_own_tokens_and_the_end_that_follows_them() -> None:
    stream = np.array(TEXT[:16])
    targets = stream[1:].reshape(3, 5)
    targets[-1, -1] = IGNORED  # of "3" and its end, the first alone counts
    numbers = np.array([0] * 5 + [1] * 7 + [2] * 3).reshape(3, 5)
    nats = np.where(targets == IGNORED, np.nan, np.arange(15).reshape(3, 5))
    sizes = ByteTokenizer().token_bytes()
    of_files = [("a", 1), ("b", 1), ("a", 1)]
    found, sources = by_document(nats, targets, numbers, sizes, of_files)
    assert [(one["document"], one["tokens"]) for one in found] == [(0, 5), (1, 7), (2, 2)]
    assert [one["loss"] for one in found] == [2.0, 8.0, 12.5]
    # an end of text is no text: "irst" has 4 bytes, "second" 6, "3" 1
    bits = [10 / 4 / np.log(2), 56 / 6 / np.log(2), 25 / np.log(2)]
    assert [one["bits_per_byte"] for one in found] == pytest.approx(bits)
    assert [(one["source"], one["documents"], one["tokens"]) for one in sources] == [
        ("a", 2, 7),
        ("b", 1, 7),
    ]
    assert [one["loss"] for one in sources] == pytest.approx([(10 + 25) / 7, 8.0])
    assert sources[0]["bits_per_byte"] == pytest.approx((10 + 25) / 5 / np.log(2))


def test_nats_have_their_place_and_add_up_to_the_loss() -> None:
    torch.manual_seed(0)
    net = GPT2(13, 6, n_layer=1, n_head=1, n_embd=8).eval()
    inputs, targets = torch.randint(13, (2, 3, 6))
    targets[2, 4:] = IGNORED
    nats = text_nats(net, inputs, targets)
    assert np.isnan(nats).sum() == 2
    assert np.isnan(nats[2, 4:]).all()
    assert np.nanmean(nats) == pytest.approx(cross_entropy(net(inputs), targets).objective.item())


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_a_made_up_predictor_is_as_wrong_as_it_was_made(share: float) -> None:
    random = np.random.default_rng(0)
    confidence = random.random(200_000)
    found = calibrate(confidence, random.random(200_000) < share * confidence)
    assert found["calibration_error"] == pytest.approx(
        (1 - share) / 2, abs=0.005
    )  # the mean confidence is 1/2
    assert found["confidence"] == pytest.approx(0.5, abs=0.005)
    assert found["accuracy"] == pytest.approx(share / 2, abs=0.005)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_give_no_probabilities_are_named(value: float) -> None:
    class Broken(GPT2):
        def forward(self, tokens: torch.Tensor, caches: object = None) -> torch.Tensor:
            return torch.full((*tokens.shape, 5), value)

    tokens = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(NumbersError, match="logits are not finite"):
        predict_text(Broken(5, 4, n_layer=1, n_head=1, n_embd=4), tokens, tokens, (1.0,))


def test_each_bin_holds_its_predictions() -> None:
    found = calibrate(np.array([0.05, 0.91, 0.99, 1.0]), np.array([True, True, False, True]))
    assert found["bins"][0] == (1, 0.05, 1.0)
    assert found["bins"][-1] == (3, pytest.approx(2.9 / 3), pytest.approx(2 / 3))
    assert {one[0] for one in found["bins"][1:-1]} == {0}
    assert found["calibration_error"] == pytest.approx(
        (0.95 + 0.9) / 4
    )  # by hand: |1 - 0.05| and |2 - 2.9|


def test_predictions_are_torchs_own_and_targets_without_loss_are_left_out() -> None:
    torch.manual_seed(0)
    net = GPT2(19, 8, n_layer=1, n_head=1, n_embd=16).eval()
    torch.nn.init.normal_(net.embedding.weight)  # sharp
    inputs, targets = torch.randint(19, (2, 3, 8))
    targets[1, 5:] = IGNORED
    nats, confidence, correct = predict_text(net, inputs, targets, (1.0, 2.0))
    assert len(correct) == 3 * 8 - 3
    logits = net(inputs).detach()
    for row, temperature in enumerate((1.0, 2.0)):
        loss = F.cross_entropy((logits / temperature).flatten(0, 1), targets.flatten())
        assert nats[row].mean() == pytest.approx(loss.item(), rel=1e-5)
        likeliest = (logits / temperature).softmax(-1).max(-1)
        counted = targets != IGNORED
        np.testing.assert_allclose(confidence[row], likeliest.values[counted], rtol=1e-5)
        assert (correct == (likeliest.indices == targets)[counted].numpy()).all()
