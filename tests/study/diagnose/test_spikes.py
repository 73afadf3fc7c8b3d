"""Which sequences a spike has read, and whether the data or chance is to blame."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmtemplate.data.sampler import TrainOrder
from lmtemplate.data.tokenizer import ByteTokenizer, Tokenizer
from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.record import Record
from lmtemplate.study.diagnose import spikes
from lmtemplate.study.diagnose.artifacts import Corpus, Model, Sources
from lmtemplate.study.diagnose.spikes import compare, look, sequence_losses, sequences_between
from tests.study.corpora import END, VOCABULARY, write_corpus

T = 8
BATCH = 4
LENGTH = END + 1  # tokens of a document


class Counter(LanguageModel):
    """Expects each token to be one more than the last."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY, T)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        expected = torch.nn.functional.one_hot((tokens + 1) % VOCABULARY, VOCABULARY)
        return 3.0 * expected + self.weight


def make_record(losses: list[float], sequences: list[int]) -> Record:
    """Rows at steps 5, 10, 15 ..., after so many sequences."""
    rows = len(losses)
    empty = np.full(rows, np.nan)
    return Record(
        steps=np.arange(5, 5 * rows + 1, 5),
        train_loss=np.array(losses),
        val_loss=empty,
        learning_rate=empty,
        epochs=np.zeros(rows, dtype=np.int64),
        values={"data/tokens": np.array(sequences, dtype=np.float64) * T},
    )


def test_the_sequences_of_a_row_reach_back_to_the_row_before() -> None:
    record = make_record([3.0, 3.0, 3.0], [20, 40, 60])
    for steps, expected in (((5, 5), (0, 20)), ((10, 10), (20, 40)), ((7, 15), (20, 60))):
        found = sequences_between(record, T, *steps)
        assert found is not None
        np.testing.assert_array_equal(found, np.arange(*expected))


def test_a_batch_that_grew_at_a_resume_is_counted_as_it_was() -> None:
    record = make_record([3.0, 3.0, 3.0], [20, 60, 140])
    found = sequences_between(record, T, 15, 15)
    assert found is not None
    np.testing.assert_array_equal(found, np.arange(60, 140))


def test_without_a_count_of_tokens_sequences_are_unknown() -> None:
    record = make_record([3.0, 3.0], [20, 40])
    assert sequences_between(Record(**{**vars(record), "values": {}}), T, 5, 10) is None
    assert sequences_between(record, T, 6, 9) is None


@pytest.mark.parametrize("most_logits", [1, 3 * T * VOCABULARY, 2**25])
def test_losses_of_sequences_are_those_of_training(
    monkeypatch: pytest.MonkeyPatch, most_logits: int
) -> None:
    monkeypatch.setattr(spikes, "BATCH_LOGITS", most_logits)
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=(7, T + 1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    net = Counter()
    expected = [
        cross_entropy(net(torch.from_numpy(x[None])), torch.from_numpy(y[None])).objective.item()
        for x, y in zip(inputs, targets, strict=True)
    ]
    np.testing.assert_allclose(sequence_losses(net, inputs, targets), expected, rtol=1e-6)


def test_losses_drawn_alike_are_usual() -> None:
    random = np.random.default_rng(0)
    found = [compare(random.normal(4, 0.3, 80), random.normal(4, 0.3, 64))[0] for _ in range(200)]
    assert not any(found)


def test_losses_that_are_higher_together_are_unusual() -> None:
    random = np.random.default_rng(0)
    unusual, words = compare(random.normal(5.5, 0.3, 20), random.normal(4, 0.3, 64))
    assert unusual
    assert words.startswith("these sequences are unusual (loss 5.")


def test_many_sequences_that_are_slightly_less_familiar_are_usual() -> None:
    random = np.random.default_rng(0)
    losses, others = random.normal(4.2, 0.3, 1000), random.normal(4, 0.3, 1000)
    assert losses.mean() - others.mean() > 8 * 0.3 / np.sqrt(1000)  # and yet it is no chance
    assert not compare(losses, others)[0]


def test_one_broken_sequence_stands_out_of_many() -> None:
    random = np.random.default_rng(0)
    losses = np.append(random.normal(4, 0.3, 79), 9.0)
    unusual, words = compare(losses, random.normal(4, 0.3, 64))
    assert unusual
    assert words.startswith("1 of them stands out (loss 9.00;")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Ten documents that count up to END; in the seventh the numbers are in disorder."""
    monkeypatch.setattr(Corpus, "tokenizer", ByteTokenizer())
    documents = [np.arange(LENGTH) for _ in range(10)]
    documents[6][:-1] = np.random.default_rng(0).permutation(END)
    return write_corpus(tmp_path / "data", {"train": np.concatenate(documents)}, block_size=T)


def sources_of(corpus: Corpus, tokenizer: Tokenizer, with_model: bool = True) -> Sources:
    model = Model(Counter(), tokenizer, 300, None) if with_model else None
    return Sources(corpus.folder, corpus, model, ())


def row_that_reads(corpus: Corpus, disorder: bool) -> int:
    """The first row of one batch each that does, or does not, read the seventh document."""
    order = TrainOrder(len(corpus.train), BATCH, corpus.seed, batches=15)
    for row, blocks in enumerate(order):
        touched = [b * T < 7 * LENGTH and b * T + T > 6 * LENGTH for b in blocks]
        inside = [b * T >= 6 * LENGTH and b * T + T <= 7 * LENGTH for b in blocks]
        if any(inside) if disorder else not any(touched):
            return row
    raise AssertionError("no such row")


@pytest.mark.parametrize("disorder", [True, False])
def test_a_spike_names_its_documents_and_whether_they_are_to_blame(
    corpus: Corpus, disorder: bool
) -> None:
    row = row_that_reads(corpus, disorder)
    losses = [3.0] * 15
    losses[row] = 5.0
    record = make_record(losses, [BATCH * (i + 1) for i in range(15)])
    step = 5 * (row + 1)
    spike = look(sources_of(corpus, ByteTokenizer()), record, step, 75)
    assert spike is not None
    assert spike.unusual is disorder
    assert spike.steps == (step - 4, step)
    assert spike.sequences == (BATCH * row, BATCH * row + BATCH - 1)
    assert (spike.passages[0].documents == (7, 7)) is disorder
    assert "under the weights of step 300" in spike.says
    assert ("the data is not the reason" in spike.says) is not disorder


def test_a_spike_without_a_model_still_names_its_documents(corpus: Corpus) -> None:
    record = make_record([3.0, 5.0, 3.0], [4, 8, 12])
    spike = look(sources_of(corpus, ByteTokenizer(), with_model=False), record, 10, 15)
    assert spike is not None
    assert spike.unusual is None
    order = list(TrainOrder(len(corpus.train), BATCH, corpus.seed, batches=2))[1]
    for passage, block in zip(spike.passages, order, strict=False):
        assert passage.documents == (block * T // LENGTH + 1, (block * T + T - 1) // LENGTH + 1)
        assert passage.loss is None


def test_without_its_corpus_a_spike_stays_unexplained(corpus: Corpus) -> None:
    record = make_record([3.0, 5.0, 3.0], [4, 8, 12])
    assert look(Sources(corpus.folder, None, None, ()), record, 10, 15) is None
    assert look(sources_of(corpus, ByteTokenizer()), record, 11, 14) is None
