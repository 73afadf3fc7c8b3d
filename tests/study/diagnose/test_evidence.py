"""What is known of a run beyond its curves, against corpora and models made to show it."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmtemplate.data.tokenizer import ByteTokenizer
from lmtemplate.models.base import LanguageModel
from lmtemplate.run_dir import read_json
from lmtemplate.study.diagnose import evidence as facts_module
from lmtemplate.study.diagnose.artifacts import Artifacts, Model, RunCorpus, open_model
from lmtemplate.study.diagnose.evidence import (
    facts_of,
    gather,
    window_length,
    write_samples,
)
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.ngrams import longest_copy, ngram_losses
from tests.study.corpora import VOCABULARY, write_corpus


class Parrot(LanguageModel):
    """Knows a text by heart: says what follows the last three tokens there."""

    def __init__(self, text: np.ndarray, vocab_size: int) -> None:
        super().__init__(vocab_size, block_size=256)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.after = {tuple(text[i : i + 3]): text[i + 3] for i in range(len(text) - 3)}

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        logits = torch.zeros(*tokens.shape, self.vocab_size)
        for row, last in enumerate(tokens[:, -3:].tolist()):
            logits[row, -1, int(self.after.get(tuple(last), 0))] = 1000.0
        return logits


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "ALL_SAMPLES_TOKENS", 100)
    monkeypatch.setattr(facts_module, "FEWEST_SAMPLES", 2)


def of_corpus(corpus: RunCorpus) -> Facts:
    return facts_of(Artifacts(corpus.folder, corpus, None, ()))


@pytest.mark.slow
def test_a_run_and_its_corpus_tell_everything(finished: Path) -> None:
    facts = gather(finished)
    assert [field.name for field in fields(facts) if getattr(facts, field.name) is None] == []
    assert (facts.max_steps, facts.warmup_steps, facts.vocab_size) == (12, 2, 257)
    assert facts.optimizer == "AdamW"
    summary = read_json(finished / "summary.json") or {}
    assert facts.parameters == summary["parameters"]
    assert facts.tokens == 12 * 4 * 16
    assert facts.passes == pytest.approx(summary["passes"])


@pytest.mark.slow
def test_a_run_that_was_killed_is_known_from_its_record_and_checkpoint(
    finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "summary.json").unlink()
    assert gather(run) == gather(finished)


def test_a_quick_look_asks_no_model(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "write_samples", None)
    facts = gather(finished, deep=False)
    assert (facts.copied_tokens, facts.copied_text) == (None, None)
    assert facts.bigram_loss is not None


@pytest.mark.slow
def test_without_its_corpus_a_run_still_tells_its_own_size(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("grammar", "nowhere"))
    facts = gather(run)
    assert (facts.unigram_loss, facts.overlap_share, facts.copied_tokens) == (None, None, None)
    assert (facts.parameters, facts.vocab_size) == (gather(finished).parameters, 257)


def test_an_empty_folder_tells_nothing(tmp_path: Path) -> None:
    assert gather(tmp_path) == Facts()


def test_baselines_are_those_of_the_tokens_that_a_validation_reads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    training, held_out = random.integers(40, size=4000), random.integers(40, size=400)
    whole = write_corpus(tmp_path / "data", {"train": training, "val": held_out})
    short = RunCorpus(whole.folder, whole.index, validated=41)
    for corpus, read in ((whole, 400), (short, 41)):
        facts = of_corpus(corpus)
        expected = ngram_losses(training, held_out[:read], VOCABULARY)
        assert (facts.unigram_loss, facts.bigram_loss) == expected


def test_text_without_repeats_has_no_share_of_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    splits = {"train": random.integers(40, size=4000), "val": random.integers(40, size=400)}
    facts = of_corpus(write_corpus(tmp_path / "data", splits))
    assert (facts.repeated_share, facts.overlap_share) == (0, 0)


def test_documents_that_stand_there_twice_are_found(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    once, twice, val = (random.integers(40, size=size) for size in (2000, 1000, 400))
    splits = {"train": np.concatenate([twice, once, twice]), "val": val}
    facts = of_corpus(write_corpus(tmp_path / "data", splits))
    assert facts.repeated_share == pytest.approx(0.5, abs=0.02)
    assert facts.overlap_share == 0


def test_validation_text_that_was_trained_on_is_found(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    training, unseen = random.integers(40, size=4000), random.integers(40, size=500)
    splits = {"train": training, "val": np.concatenate([unseen, training[1000:1500]])}
    facts = of_corpus(write_corpus(tmp_path / "data", splits))
    assert facts.overlap_share == pytest.approx(0.5, abs=0.04)
    assert facts.repeated_share == 0


def test_text_shorter_than_a_window_has_no_shares(tmp_path: Path) -> None:
    splits = {"train": np.arange(40), "val": np.arange(20)}
    facts = of_corpus(write_corpus(tmp_path / "data", splits))
    assert (facts.repeated_share, facts.overlap_share) == (None, None)
    assert facts.unigram_loss is not None


@pytest.mark.parametrize(("bytes_per_token", "tokens"), [(0.97, 128), (2.5, 64), (4.7, 32)])
def test_a_window_has_120_bytes_and_32_tokens_at_least(bytes_per_token: float, tokens: int) -> None:
    assert window_length(bytes_per_token) == tokens


def test_a_window_is_bounded_whatever_an_index_says_of_its_bytes() -> None:
    assert window_length(1e-9) == 4096


def test_a_model_that_knows_the_text_by_heart_is_caught_at_full_length() -> None:
    text = np.random.default_rng(0).integers(256, size=3000)
    model = Model(Parrot(text, 257), ByteTokenizer(), None)
    written = write_samples(model, text, 60)
    assert [len(ids) for ids in written] == [60] * 2
    assert len(longest_copy(written, text)) == 60


def test_an_untrained_model_copies_next_to_nothing() -> None:
    text = np.random.default_rng(0).integers(256, size=3000)
    model = Model(Parrot(text[::-1], 257), ByteTokenizer(), None)
    assert len(longest_copy(write_samples(model, text, 60), text)) < 5


@pytest.mark.slow
def test_samples_are_the_same_each_time(finished: Path) -> None:
    model, text = open_model(finished), np.arange(3000) % 250
    for one, other in zip(*(write_samples(model, text, 50) for _ in range(2)), strict=True):
        np.testing.assert_array_equal(one, other)
