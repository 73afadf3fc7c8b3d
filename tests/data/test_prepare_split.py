"""Documents -> train, val, test: the shares are exact, and nothing is in two splits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lmtemplate.data.corpus import Corpus, Document
from lmtemplate.data.prepare import SplitCorpus
from lmtemplate.errors import ConfigError, DataError


def in_memory(*texts: str, every_fifth: bool = False) -> Corpus:
    def walk() -> Iterator[Document]:
        return (Document(str(number), [text]) for number, text in enumerate(texts))

    return Corpus(walk, {}, documents=len(texts), every_fifth=every_fifth)


def splits_of(source: Corpus, **settings: Any) -> list[str]:
    """The split of each document, in order."""
    events = SplitCorpus(source, **{"val_ratio": 0.2, "test_ratio": 0.0, "seed": 0} | settings)
    return [split for split, piece in events if piece is None]


def test_a_prescribed_split_has_every_fifth_document_in_val() -> None:
    fives = in_memory(*"abcdefghijkl", every_fifth=True)
    assert splits_of(fives) == (["train"] * 4 + ["val"]) * 2 + ["train"] * 2


@pytest.mark.parametrize("settings", [{"val_ratio": 0.25}, {"test_ratio": 0.2}])
def test_other_shares_override_a_prescribed_split(settings: dict[str, float]) -> None:
    names = in_memory(*"abcdefghijkl", every_fifth=True)
    plain = in_memory(*"abcdefghijkl")
    assert splits_of(names, **settings) == splits_of(plain, **settings)


@pytest.mark.parametrize(
    ("documents", "val_ratio", "test_ratio", "val", "test"),
    [
        (2, 0.2, 0.0, 1, 0),
        (3, 0.01, 0.01, 1, 1),
        (103, 0.2, 0.1, 21, 10),
        (9000, 0.15, 0.0, 1350, 0),
    ],
)
def test_a_split_has_exactly_its_share_of_documents(
    documents: int, val_ratio: float, test_ratio: float, val: int, test: int
) -> None:
    splits = splits_of(in_memory(*["x"] * documents), val_ratio=val_ratio, test_ratio=test_ratio)
    assert (len(splits), splits.count("val"), splits.count("test")) == (documents, val, test)


def test_the_seed_alone_decides_which_documents_are_validation() -> None:
    source = in_memory(*["x"] * 100)
    assert splits_of(source, seed=1) == splits_of(source, seed=1) != splits_of(source, seed=2)


def test_validation_documents_are_spread_over_the_corpus() -> None:
    splits = np.array(splits_of(in_memory(*["x"] * 10_000)))
    per_tenth = (splits == "val").reshape(10, 1000).sum(axis=1)
    assert per_tenth.sum() == 2000
    assert np.all(abs(per_tenth - 200) < 4 * np.sqrt(160))  # 4 standard deviations of a binomial


def test_too_few_documents_for_the_splits_are_refused() -> None:
    with pytest.raises(DataError, match="2 documents are too few for train and val and test"):
        splits_of(in_memory("a", "b"), test_ratio=0.2)


@pytest.mark.parametrize("pieces", [["äbc" * 50], ["ä", "bc"] * 50, list("äbc" * 50)])
def test_one_document_is_cut_into_contiguous_parts(pieces: list[str]) -> None:
    def walk() -> Iterator[Document]:
        return iter([Document("one", pieces)])

    parts = dict.fromkeys(("train", "val", "test"), "")
    for split, piece in SplitCorpus(Corpus(walk, {}), val_ratio=0.2, test_ratio=0.1, seed=0):
        parts[split] += piece or ""
    assert list(map(len, (part.encode() for part in parts.values()))) == [140, 40, 20]
    assert "".join(parts.values()) == "äbc" * 50


def test_parts_end_where_a_character_ends() -> None:
    events = list(SplitCorpus(in_memory("€" * 10), val_ratio=0.3, test_ratio=0.15, seed=0))
    assert events == [
        ("train", "€" * 6),  # 30 - 9 - 4 = 17 bytes, moved on to 18
        ("train", None),
        ("val", "€" * 3),
        ("val", None),
        ("test", "€"),
        ("test", None),
    ]


@pytest.mark.parametrize("source", [["a"], list("abc"), list("abcdefghij")], ids=len)
def test_a_split_is_the_same_each_time_it_is_walked(source: list[str]) -> None:
    split = SplitCorpus(in_memory(*source), val_ratio=0.3, test_ratio=0.0, seed=1)
    assert list(split) == list(split)


@pytest.mark.parametrize(
    ("documents", "every_fifth", "said"),
    [(1, False, "cut into contiguous parts"), (9, True, "every 5th"), (9, False, "seed 4")],
)
def test_the_rule_is_said_in_words(documents: int, every_fifth: bool, said: str) -> None:
    source = in_memory(*["x"] * documents, every_fifth=every_fifth)
    assert said in SplitCorpus(source, val_ratio=0.2, test_ratio=0, seed=4).rule()


@pytest.mark.parametrize(
    ("settings", "flag"), [({"val_ratio": 0.0}, "--val_ratio 0.0"), ({"seed": -1}, "--seed -1")]
)
def test_impossible_settings_are_refused_by_their_flag(settings: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        splits_of(in_memory("a", "b", "c"), **settings)
