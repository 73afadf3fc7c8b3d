"""The longest copy, against brute force, and against a model that knows a text by heart."""

from pathlib import Path

import numpy as np
import pytest

from lmtemplate.data.tokenizer import CharTokenizer
from lmtemplate.models import GPT2
from lmtemplate.study.diagnose.artifacts import Model
from lmtemplate.study.understand import memorisation as study
from tests.study.corpora import END, VOCABULARY, write_corpus

CHARACTERS = "".join(chr(ord("0") + n) for n in range(VOCABULARY - 2))


def longest_common(one: np.ndarray, other: np.ndarray) -> int:
    """Longest common substring, by the textbook's table."""
    table = np.zeros((len(one) + 1, len(other) + 1), dtype=int)
    for i, a in enumerate(one, start=1):
        for j, b in enumerate(other, start=1):
            table[i, j] = table[i - 1, j - 1] + 1 if a == b else 0
    return int(table.max())


@pytest.mark.parametrize("seed", range(3))
def test_the_longest_copy_is_the_longest_common_substring(seed: int) -> None:
    random = np.random.default_rng(seed)
    training, texts = random.integers(3, size=90), list(random.integers(3, size=(4, 30)))
    found = study.find_copies(texts, training, CharTokenizer(CHARACTERS))
    lengths = [longest_common(text, training) for text in texts]
    assert (found["longest_copy"], found["median_copy"]) == (max(lengths), np.median(lengths))
    assert (found["texts"], found["tokens"]) == (4, 120)
    spelled = "".join(CHARACTERS[n] for n in training)
    assert found["text"] in spelled
    assert found["characters"] == len(found["text"]) == found["longest_copy"]


def test_a_model_that_writes_its_training_text_stands_out_from_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    training, held_out = random.integers(END - 1, size=(2, 3000))
    corpus = write_corpus(tmp_path / "data", {"train": training, "val": held_out})
    model = Model(GPT2(VOCABULARY, 8, n_layer=1, n_head=1, n_embd=8), CharTokenizer(CHARACTERS), 1)
    by_heart = [training[100 * n : 100 * n + 60] for n in range(5)]
    monkeypatch.setattr(study, "write_samples", lambda *_: by_heart)
    samples, chance = study.memorisation(model, corpus)
    assert (samples["longest_copy"], samples["median_copy"]) == (60, 60)
    # log(300 x 3000) / log(48) = 3.5 tokens: what two random texts share
    assert 2 <= chance["longest_copy"] <= 6
    assert chance["tokens"] == samples["tokens"] == 300
