"""Ids -> numbered shards of a split, and the index.json that says what is in them."""

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtemplate.data.shards import (
    BLOCK_BYTES,
    FORMAT,
    HEADER_BYTES,
    dtype_for,
    file_sha256,
    fingerprint,
    header,
)
from lmtemplate.errors import DataError


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
        self._file.write(header(self.dtype, shard["tokens"]))
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


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Add format and fingerprint to the index and write it: from now on the corpus is complete."""
    index = {"format": FORMAT, **index}
    index["fingerprint"] = fingerprint(index)
    with (folder / "index.json").open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
