"""Documents -> documents with a split: train, val or test for each piece of text."""

from collections.abc import Iterator
from itertools import cycle, islice

import numpy as np

from lmtemplate.data.corpus import Corpus
from lmtemplate.data.sampler import permute
from lmtemplate.errors import ConfigError, DataError

FIVE = ("train", "train", "train", "train", "val")
Event = tuple[str, str | None]  # (split, piece of text); (split, None) where a document ends


class SplitCorpus:
    """The text of a corpus, each piece with its split; iterates over events, in constant memory.

    A single document is cut into parts: train, val, test. A corpus that prescribes its split has
    every 5th document in val, unless other shares than 0.2 and 0 are asked for. All others are
    split by document, by lot.

    Args:
        corpus: the text.
        val_ratio: share of the documents, or of the bytes of a single one.
        test_ratio: the same for test; 0 makes no such split.
        seed: of the lot.
    """

    def __init__(self, corpus: Corpus, val_ratio: float, test_ratio: float, seed: int) -> None:
        if not (val_ratio > 0 and test_ratio >= 0 and val_ratio + test_ratio < 1):
            raise ConfigError(
                f"--val_ratio {val_ratio} --test_ratio {test_ratio}: the first has to be above 0, "
                "the second 0 or more, and both together below 1"
            )
        if seed < 0:
            raise ConfigError(f"--seed {seed} has to be 0 or more")
        self.corpus = corpus
        self.val_ratio = val_ratio
        self.test_ratio = test_ratio
        self.seed = seed
        self.splits = ("train", "val", "test") if test_ratio else ("train", "val")
        self.by_fives = corpus.every_fifth and (val_ratio, test_ratio) == (0.2, 0)

    def rule(self) -> str:
        if len(self.corpus) == 1:
            return "the only document is cut into contiguous parts"
        return (
            "val is every 5th document" if self.by_fives else f"documents by lot, seed {self.seed}"
        )

    def _split_of_each_document(self) -> Iterator[str]:
        """Exactly as many documents in each split as the ratios say, but 1 at least."""
        documents = len(self.corpus)
        if self.by_fives:
            yield from islice(cycle(FIVE), documents)
            return
        val = max(1, round(self.val_ratio * documents))
        test = max(1, round(self.test_ratio * documents)) if self.test_ratio else 0
        if val + test >= documents:
            raise DataError(
                f"{documents} documents are too few for {' and '.join(self.splits)}; give more "
                "text, or join it in one file, which is then cut into parts"
            )
        for start in range(0, documents, 4096):
            places = np.arange(start, min(start + 4096, documents))
            for rank in permute(places, documents, self.seed).tolist():
                yield "val" if rank < val else "test" if rank < val + test else "train"

    def _parts(self) -> Iterator[Event]:
        """Parts with as many bytes as the ratios say, each moved on to the end of a character."""
        total = sum(len(piece.encode()) for document in self.corpus for piece in document.pieces)
        val_end = total - round(total * self.test_ratio)
        ends = {"train": val_end - round(total * self.val_ratio), "val": val_end, "test": total}
        done, last = 0, "train"
        for piece in (piece for document in self.corpus for piece in document.pieces):
            data = piece.encode()
            while data:
                split = next(split for split, end in ends.items() if done < end)
                size = min(ends[split] - done, len(data))
                while size < len(data) and data[size] & 0xC0 == 0x80:
                    size += 1
                if split != last:
                    yield last, None
                yield split, data[:size].decode()
                done, last, data = done + size, split, data[size:]
        yield last, None

    def __iter__(self) -> Iterator[Event]:
        if len(self.corpus) == 1:
            yield from self._parts()
            return
        for split, document in zip(self._split_of_each_document(), self.corpus, strict=True):
            piece = None
            for piece in document.pieces:
                yield split, piece
            if piece is not None:  # an empty document leaves no trace
                yield split, None
