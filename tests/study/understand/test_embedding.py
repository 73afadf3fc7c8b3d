"""Word vectors: neighbours and analogies of a table in which they are known."""

from collections import Counter
from typing import Any

import pytest
import torch

from lmtemplate.data.tokenizer import ByteTokenizer, CharTokenizer
from lmtemplate.models.gpt import GPT
from lmtemplate.study.understand.embedding import (
    WordVectors,
    frequent_words,
    table_of,
    watched_words,
    words_in,
)

WORDS = ["k", "q", "m", "w", "c", "d"]  # king, queen, man, woman, cat, dog, a token each


@pytest.fixture
def net() -> Any:
    """Axes of the table: royal, female, animal; and small noise."""
    made: Any = GPT(CharTokenizer(" kqmwcd").vocab_size, 8, n_layer=1, n_head=2, n_embd=8)
    planted = {"k": (1, 0, 0), "q": (1, 1, 0), "m": (0, 0, 0), "w": (0, 1, 0), "c": (0, 0, 3)}
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.embedding.weight.normal_(std=0.01, generator=noise)
        for word, place in {**planted, "d": (0, 0.2, 3)}.items():
            made.embedding.weight[" kqmwcd".index(word), :3] += torch.tensor(place)
    return made


def test_planted_analogies_come_out_and_neighbours_are_near(net: Any) -> None:
    vectors = spaced(net)
    found = vectors.analogy("k", "m", "w", "q")
    assert (found["rank"], found["nearest"], found["among"]) == (1, "q", 3)
    assert vectors.analogy("k", "m", "w", "c")["rank"] > 1
    (first, cosine), *_ = vectors.neighbours("c")
    assert first == "d"
    assert cosine > 0.9


def spaced(net: Any) -> WordVectors:
    return WordVectors(net.embedding.weight.detach(), CharTokenizer(" kqmwcd"), WORDS)


def test_a_word_is_the_mean_of_its_tokens_less_the_mean_of_all(net: Any) -> None:
    vectors = spaced(net)
    rows = [net.embedding.weight[[0, 1 + n]].mean(0) for n in range(len(WORDS))]  # the space, it
    centred = torch.stack(rows) - torch.stack(rows).mean(0)
    expected = torch.nn.functional.normalize(centred, dim=-1)
    torch.testing.assert_close(vectors.vectors, expected.detach())


def test_a_net_without_a_table_of_its_vocabulary_has_none(net: Any) -> None:
    assert table_of(net) is not None
    assert table_of(torch.nn.Linear(3, 3)) is None
    net.vocab_size = ByteTokenizer().vocab_size
    assert table_of(net) is None


def test_words_are_frequent_and_in_lower_case() -> None:
    counts = Counter({"the": 50, "France": 40, "1812": 30, "happy": 20, "rare": 1})
    assert frequent_words(counts) == ["the", "happy"]
    assert watched_words(["the", "which", "cat", "their"], 2) == ["cat", "which"]


def test_only_analogies_of_known_words_are_asked(net: Any) -> None:
    words = ["king", "man", "woman", "queen", "prince", *"kqmwcd"]
    net.vocab_size = 257
    net.embedding = torch.nn.Embedding(257, 8)
    found = words_in(net, ByteTokenizer(), words)["analogies"]
    assert [row["analogy"] for row in found] == ["king - man + woman"]
    assert words_in(net, ByteTokenizer(), words[1:])["analogies"] == []
