"""A net's table of embeddings and the words of a text -> neighbours, and analogies with their rank.

A word's vector is the mean of those of its tokens, less the mean of all words; nearness is the
cosine. Words are encoded with a space before them, as inside a sentence.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.models.base import LanguageModel

MOST_WORDS, FEWEST = 400, 5  # the most frequent words, each so many times in the text
NEAREST = 5
# a - b + c is d: the words of the lesson, others of its kind, and forms of frequent words
ANALOGIES = (
    ("king", "man", "woman", "queen"),
    ("prince", "boy", "girl", "princess"),
    ("king", "queen", "princess", "prince"),
    ("man", "boy", "girl", "woman"),
    ("cats", "cat", "dog", "dogs"),
    ("years", "year", "nation", "nations"),
    ("laws", "law", "treaty", "treaties"),
    ("their", "they", "he", "his"),
    ("were", "are", "is", "was"),
    ("had", "have", "are", "were"),
    ("these", "this", "that", "those"),
    ("our", "we", "they", "their"),
)
LESSON = ("cat", "king", "man", "happy")  # whose neighbours are shown, where the text has them


def frequent_words(text: Counter[str]) -> list[str]:
    """The most frequent words, in lower case as the text has them, the most frequent first."""
    known = (
        word
        for word, count in text.most_common()
        if count >= FEWEST and word.isalpha() and word == word.lower()
    )
    return [word for word, _ in zip(known, range(MOST_WORDS), strict=False)]


def watched_words(words: list[str], count: int = 6) -> list[str]:
    """Words whose neighbours are shown: of the lesson, then frequent ones that are not short."""
    lesson = [word for word in LESSON if word in words]
    long = [word for word in words if len(word) > 4 and word not in lesson]
    return [*lesson, *long][:count]


class WordVectors:
    """Unit vectors of words.

    Args:
        net: whose first nn.Embedding over the vocabulary is the table.
        tokenizer: of the net.
        words: distinct.
    """

    def __init__(self, net: LanguageModel, tokenizer: Tokenizer, words: list[str]) -> None:
        table = table_of(net)
        assert table is not None
        ids = tokenizer.encode([f" {word}" for word in words])
        vectors = torch.stack([table[torch.as_tensor(one)].mean(0) for one in ids])  # (N, C)
        centred = vectors - vectors.mean(0)
        self.vectors = centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        self.words, self.place = words, {word: n for n, word in enumerate(words)}

    def neighbours(self, word: str) -> list[list[Any]]:
        """The NEAREST other words, each with its cosine."""
        cosines = self.vectors @ self.vectors[self.place[word]]
        cosines[self.place[word]] = -torch.inf
        nearest = cosines.topk(min(NEAREST, len(self.words) - 1))
        pairs = zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
        return [[self.words[n], cosine] for n, cosine in pairs]

    def analogy(self, a: str, b: str, c: str, d: str) -> dict[str, Any]:
        """Where d comes among the words nearest to a - b + c, the three given ones left out."""
        given = [self.place[word] for word in (a, b, c)]
        first, second, third = self.vectors[given]
        cosines = self.vectors @ (first - second + third)
        cosines[given] = -torch.inf
        rank = int((cosines > cosines[self.place[d]]).sum()) + 1
        nearest = self.words[int(cosines.argmax())]
        row = {"analogy": f"{a} - {b} + {c}", "expected": d, "rank": rank}
        return {**row, "among": len(self.words) - 3, "nearest": nearest}


def table_of(net: nn.Module) -> Tensor | None:
    """(V, C) vectors of the tokens; None where a net has no such table."""
    size = getattr(net, "vocab_size", None)
    tables = (m.weight.detach() for m in net.modules() if isinstance(m, nn.Embedding))
    return next((table for table in tables if len(table) == size), None)


def known_analogies(words: list[str]) -> list[tuple[str, str, str, str]]:
    """Those whose words are all there."""
    return [four for four in ANALOGIES if {*four} <= {*words}]
