"""Token files -> (B, T) blocks, and the file format itself.

A shard is 256 little-endian int32 words (magic, version, number of tokens, zeros) and then the
tokens: llm.c's pair of formats, so that its readers take our files. `index.json` beside them is
written last. It has a CRC-32 of every MiB of a shard's tokens, compared when that is first read,
and a SHA-256 of the whole file, which `lmtemplate verify` compares.
"""

import hashlib
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtemplate.data.index import (
    BLOCK_BYTES,
    block_sums,
    check_not_a_pointer,
    dtype_for,
    read_index,
)
from lmtemplate.errors import DataError

Ints = npt.NDArray[np.int64]

HEADER_WORDS = 256
HEADER_BYTES = HEADER_WORDS * 4
MAGIC_AND_VERSION = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
IGNORED = -100  # target that carries no loss: torch's own default for `ignore_index`


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(dtype: str, tokens: int) -> bytes:
    words = np.zeros(HEADER_WORDS, dtype="<i4")
    words[:3] = (*MAGIC_AND_VERSION[dtype], tokens)
    return words.tobytes()


class ShardWriter:
    """Appends token ids to numbered shards of one split.

    Args:
        folder: where the files go.
        split: "train", "val" or "test".
        vocab_size: ids are 0 .. vocab_size - 1; decides between uint16 and uint32.
        shard_tokens: tokens after which a new file begins (the header's count is an int32).
    """

    def __init__(
        self, folder: Path, split: str, vocab_size: int, shard_tokens: int = 100_000_000
    ) -> None:
        self.folder = folder
        self.split = split
        self.vocab_size = vocab_size
        self.dtype = dtype_for(vocab_size)
        self.shard_tokens = shard_tokens
        self.shards: list[dict[str, Any]] = []
        self._open_next()

    @property
    def tokens(self) -> int:
        return sum(shard["tokens"] for shard in self.shards)

    def _open_next(self) -> None:
        name = f"{self.split}_{len(self.shards):06d}.bin"
        self.shards.append({"file": name, "tokens": 0})
        self._sums: list[int] = []  # CRC-32 of each block, the last one as far as it has come
        self._file = (self.folder / name).open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def _finish_shard(self) -> None:
        shard = self.shards[-1]
        self._file.seek(0)
        self._file.write(_header(self.dtype, shard["tokens"]))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        shard["sha256"] = file_sha256(self.folder / shard["file"])
        shard["crc32"] = " ".join(f"{one:08x}" for one in self._sums)

    def _append(self, content: bytes) -> None:
        at = self._file.tell() - HEADER_BYTES
        self._file.write(content)
        rest = memoryview(content)
        while rest:
            if at % BLOCK_BYTES == 0:
                self._sums.append(0)
            part = rest[: BLOCK_BYTES - at % BLOCK_BYTES]
            self._sums[-1] = zlib.crc32(part, self._sums[-1])
            at, rest = at + len(part), rest[len(part) :]

    def write(self, ids: npt.NDArray[np.integer[Any]]) -> None:
        """Append (N,) ids. Raises DataError for one outside the vocabulary: none is wrapped."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise DataError(
                f"the tokenizer gave ids from {ids.min()} to {ids.max()}, but its vocabulary has "
                f"{self.vocab_size}; its file is inconsistent"
            )
        while len(ids):
            if self.shards[-1]["tokens"] == self.shard_tokens:
                self._finish_shard()
                self._open_next()
            part = ids[: self.shard_tokens - self.shards[-1]["tokens"]]
            self._append(part.astype(f"<u{np.dtype(self.dtype).itemsize}").tobytes())
            self.shards[-1]["tokens"] += len(part)
            ids = ids[len(part) :]

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard; returns the index entries {file, tokens, sha256, crc32}."""
        self._finish_shard()
        return self.shards


class Shard:
    """One token file, memory-mapped. A block of it is verified when it is first read.

    Args:
        folder: the corpus.
        index: what `read_index` returns.
        entry: the shard's own entry in it.

    Raises DataError if it is missing, or its size or header are not what the index says.
    """

    def __init__(self, folder: Path, index: dict[str, Any], entry: dict[str, Any]) -> None:
        self.path = folder / entry["file"]
        self.vocab_size: int = index["vocab_size"]
        width = np.dtype(index["dtype"]).itemsize
        if not self.path.is_file():  # nor a pipe, which would wait for ever
            raise DataError(f"shard {self.path} is missing; prepare the corpus again")
        if self.path.resolve().parent != folder.resolve():
            raise DataError(f"shard {self.path} is a link that leaves its folder; refused")
        try:
            self._check_file(HEADER_BYTES + entry["tokens"] * width)
            with self.path.open("rb") as file:
                sound = file.read(HEADER_BYTES) == _header(index["dtype"], entry["tokens"])
            self.tokens = np.memmap(self.path, f"<u{width}", mode="r", offset=HEADER_BYTES)
        except OSError as error:
            raise DataError(f"shard {self.path} cannot be read: {error.strerror}") from error
        if not sound:
            raise DataError(f"shard {self.path} has a wrong header; prepare the corpus again")
        self.block_tokens = BLOCK_BYTES // width
        self.sums = block_sums(entry, index["dtype"])
        self.unread = np.ones(-(-len(self.tokens) // self.block_tokens), dtype=bool)

    def _check_file(self, expected: int) -> None:
        check_not_a_pointer(self.path)
        if (size := self.path.stat().st_size) != expected:
            raise DataError(
                f"shard {self.path} has {size:,} bytes, the index says {expected:,}: "
                "it was truncated or replaced; prepare the corpus again"
            )

    def verify(self, block: int) -> None:
        """Compare one block with its CRC-32, and its ids with the vocabulary. Raises DataError."""
        tokens = self.tokens[block * self.block_tokens : (block + 1) * self.block_tokens]
        found = f"{zlib.crc32(tokens.data):08x}"
        if found != (expected := self.sums[block]):
            raise DataError(
                f"shard {self.path}: block at byte offset {HEADER_BYTES + block * BLOCK_BYTES:,} "
                f"fails its CRC-32 (expected {expected}, got {found}): prepare the corpus again, "
                "or restore the file"
            )
        if (largest := int(tokens.max())) >= self.vocab_size:
            raise DataError(
                f"shard {self.path}: token id {largest:,} is outside the vocabulary of "
                f"{self.vocab_size:,} ids; prepare the corpus again"
            )
        self.unread[block] = False

    def verify_all(self) -> None:
        """Verify every block, those that were read before too. Raises DataError at the first."""
        for block in range(len(self.unread)):
            self.verify(block)

    def take(self, positions: Ints) -> npt.NDArray[Any]:
        """The tokens at these positions, in the same shape. Raises DataError."""
        if self.unread.any():
            blocks = positions // self.block_tokens
            for block in np.unique(blocks[self.unread[blocks]]):
                self.verify(int(block))
        return self.tokens[positions]


class Shards:
    """One split of a prepared corpus, read as a single stream of tokens.

    Raises DataError where the split, a shard or the index is missing or damaged.
    """

    def __init__(self, folder: Path, split: str) -> None:
        index = read_index(folder)
        if split not in index["splits"]:
            raise DataError(
                f"{folder} has no {split} split (it has: {', '.join(index['splits'])}); prepare it "
                f"again with --{split}_ratio above 0"
            )
        self.folder = folder
        self.split = split
        entries = index["splits"][split]["shards"]
        self.shards = [Shard(folder, index, entry) for entry in entries]
        self.files = [shard.tokens for shard in self.shards]
        self.ends = np.cumsum([len(file) for file in self.files])
        self.tokens = int(self.ends[-1])

    def __getstate__(self) -> tuple[Path, str]:
        return self.folder, self.split  # a worker process opens its own maps

    def __setstate__(self, state: tuple[Path, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def gather(self, positions: Ints) -> Ints:
        """Tokens at these positions of the stream, in the same shape.

        Raises DataError where what is read for the first time is damaged.
        """
        if len(self.shards) == 1:
            return self.shards[0].take(positions).astype(np.int64)
        shard_of = np.searchsorted(self.ends, positions, side="right")
        tokens = np.empty(positions.shape, dtype=np.int64)
        for number in np.unique(shard_of):
            here = shard_of == number
            start = self.ends[number] - len(self.files[number])
            tokens[here] = self.shards[number].take(positions[here] - start)
        return tokens


class Blocks:
    """Map-style dataset over a split: an array of block numbers -> one batch, in one gather.

    Block i predicts the tokens i * T + 1 .. (i + 1) * T, so over all blocks every token but the
    first is predicted exactly once. Where the split ends inside a block, and in blocks that are
    numbered past the last one, inputs are 0 and targets are IGNORED.

    Args:
        shards: the split.
        block_size: T.
        whole: leave out the last, incomplete block (training) instead of padding it (evaluation).
    """

    def __init__(self, shards: Shards, block_size: int, *, whole: bool) -> None:
        predicted = shards.tokens - 1
        if predicted < block_size:
            raise DataError(
                f"the {shards.split} split of {shards.folder} has {shards.tokens:,} tokens, but "
                f"one block needs {block_size + 1:,}; give more text or lower data.block_size"
            )
        self.shards = shards
        self.block_size = block_size
        self.blocks = predicted // block_size if whole else -(-predicted // block_size)

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, blocks: Ints) -> tuple[Ints, Ints]:
        """(B,) block numbers -> inputs (B, T) and targets (B, T)."""
        positions = blocks[:, None] * self.block_size + np.arange(self.block_size + 1)
        past_end = positions >= self.shards.tokens
        past_end[blocks >= self.blocks] = True
        tokens = self.shards.gather(np.minimum(positions, self.shards.tokens - 1))  # (B, T+1)
        inputs = np.where(past_end[:, :-1], 0, tokens[:, :-1])
        targets = np.where(past_end[:, 1:], IGNORED, tokens[:, 1:])
        return inputs, targets
