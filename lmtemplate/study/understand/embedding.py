"""A net's table of embeddings and the words of a text -> neighbours, and analogies with their rank.

A word's vector is the mean of those of its tokens, less the mean of all words; nearness is the
cosine. Words are encoded with a space before them, as inside a sentence.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from lmtemplate.data.tokenizer import Tokenizer

MOST_WORDS, LEAST_COUNT = 400, 5  # the most frequent words, each so many times in the text
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
    often = (word for word, count in text.most_common() if count >= LEAST_COUNT)
    return [word for word in often if word.isalpha() and word == word.lower()][:MOST_WORDS]


def watched_words(words: list[str], count: int = 6) -> list[str]:
    """Words whose neighbours are shown: of the lesson, then frequent ones that are not short."""
    lesson = [word for word in LESSON if word in words]
    return [*dict.fromkeys([*lesson, *(word for word in words if len(word) > 4)])][:count]


class WordVectors:
    """Unit vectors of distinct words, from the (V, C) vectors of the tokens."""

    def __init__(self, table: Tensor, tokenizer: Tokenizer, words: list[str]) -> None:
        ids = tokenizer.encode([f" {word}" for word in words])
        vectors = torch.stack([table[torch.as_tensor(one)].mean(0) for one in ids])  # (N, C)
        centred = vectors - vectors.mean(0)
        self.vectors = centred / centred.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        self.words, self.place = words, {word: n for n, word in enumerate(words)}

    def neighbours(self, word: str) -> list[list[Any]]:
        """The NEAREST other words, each with its cosine."""
        cosines = self.vectors @ self.vectors[self.place[word]]
        cosines[self.place[word]] = -torch.inf
        nearest = cosines.topk(min(NEAREST, len(self.words) - 1)).indices.tolist()
        return [[self.words[n], cosines[n].item()] for n in nearest]

    def analogy(self, a: str, b: str, c: str, d: str) -> dict[str, Any]:
        """Where d comes among the words nearest to a - b + c, the three given ones left out."""
        given = [self.place[word] for word in (a, b, c)]
        first, second, third = self.vectors[given]
        cosines = self.vectors @ (first - second + third)
        cosines[given] = -torch.inf
        return {
            "analogy": f"{a} - {b} + {c}",
            "expected": d,
            "rank": int((cosines > cosines[self.place[d]]).sum()) + 1,
            "among": len(self.words) - 3,
            "nearest": self.words[int(cosines.argmax())],
        }


def table_of(net: nn.Module) -> Tensor | None:
    """(V, C) vectors of the tokens; None where a net has no such table."""
    size = getattr(net, "vocab_size", None)
    tables = (m.weight.detach() for m in net.modules() if isinstance(m, nn.Embedding))
    return next((table for table in tables if len(table) == size), None)


def words_in(net: nn.Module, tokenizer: Tokenizer, words: list[str]) -> dict[str, Any]:
    """Neighbours and analogies in a net's table of embeddings; neither where it has none."""
    table = table_of(net)
    if table is None or len(words) < 2 * NEAREST:
        return {"neighbours": {}, "analogies": []}
    vectors = WordVectors(table, tokenizer, words)
    return {
        "neighbours": {word: vectors.neighbours(word) for word in watched_words(words)},
        "analogies": [vectors.analogy(*four) for four in ANALOGIES if {*four} <= {*words}],
    }
