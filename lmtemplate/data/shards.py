"""Token files -> (B, T) blocks, and the file format itself.

A shard is 256 little-endian int32 words (magic, version, number of tokens, zeros) and then the
tokens: llm.c's pair of formats, so that its readers take our files. `index.json` beside them is
written last.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtemplate.errors import DataError

Ints = npt.NDArray[np.int64]

HEADER_WORDS = 256
HEADER_BYTES = HEADER_WORDS * 4
MAGIC_AND_VERSION = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
FORMAT = "lmtemplate-shards-1"
IGNORED = -100  # target that carries no loss: torch's own default for `ignore_index`


def dtype_for(vocab_size: int) -> str:
    """Smallest shard type that holds every id of the vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(index: dict[str, Any]) -> str:
    """SHA-256 of what an index says of tokens and tokenizer: equal corpora, equal fingerprints.

    Where the text came from is left out: the same text, moved or touched, is the same corpus.
    """
    content = {k: v for k, v in index.items() if k not in ("fingerprint", "source")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Add format and fingerprint to the index and write it: from now on the corpus is complete."""
    index = {"format": FORMAT, **index}
    index["fingerprint"] = fingerprint(index)
    with (folder / "index.json").open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def read_index(folder: Path) -> dict[str, Any]:
    """Raises DataError where there is no complete, untouched index."""
    path = folder / "index.json"
    if not path.is_file():
        raise DataError(
            f"no prepared corpus in {folder} (no index.json); type: lmtemplate prepare "
            f"--input TEXT --output {folder} (TEXT: a file, a folder, or a preset like sotu-tiny)"
        )
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sound = index["format"] == FORMAT and index["fingerprint"] == fingerprint(index)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not an index of shards ({error}); prepare the corpus again"
        ) from error
    if not sound:
        raise DataError(
            f"{path} was changed by hand or by another version; prepare the corpus again"
        )
    return index


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
        self._file = (self.folder / name).open("wb")
        self._file.write(bytes(HEADER_BYTES))

    def _finish_shard(self) -> None:
        shard = self.shards[-1]
        header = np.zeros(HEADER_WORDS, dtype="<i4")
        header[:3] = (*MAGIC_AND_VERSION[self.dtype], shard["tokens"])
        self._file.seek(0)
        self._file.write(header.tobytes())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        shard["sha256"] = file_sha256(self.folder / shard["file"])

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
            self._file.write(part.astype(f"<u{np.dtype(self.dtype).itemsize}").tobytes())
            self.shards[-1]["tokens"] += len(part)
            ids = ids[len(part) :]

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard; returns the index entries {file, tokens, sha256}."""
        self._finish_shard()
        return self.shards


def _open_shard(folder: Path, entry: dict[str, Any], dtype: str) -> npt.NDArray[Any]:
    """Memory-map the tokens of one shard. Raises DataError if it is not what the index says."""
    name, tokens = str(entry["file"]), int(entry["tokens"])
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise DataError(
            f"{folder / 'index.json'} names a shard {name!r} outside its folder; refused"
        )
    path = folder / name
    if not path.is_file():
        raise DataError(f"shard {path} is missing; prepare the corpus again")
    expected = HEADER_BYTES + tokens * np.dtype(dtype).itemsize
    if path.stat().st_size != expected:
        raise DataError(
            f"shard {path} has {path.stat().st_size:,} bytes, the index says {expected:,}: "
            "it was truncated or replaced; prepare the corpus again"
        )
    header = np.fromfile(path, dtype="<i4", count=3)
    if tuple(header) != (*MAGIC_AND_VERSION[dtype], tokens):
        raise DataError(f"shard {path} has a wrong header; prepare the corpus again")
    return np.memmap(path, dtype=f"<u{np.dtype(dtype).itemsize}", mode="r", offset=HEADER_BYTES)


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
        self.dtype = str(index["dtype"])
        self.entries: list[dict[str, Any]] = index["splits"][split]["shards"]
        self.files = [_open_shard(folder, entry, self.dtype) for entry in self.entries]
        self.ends = np.cumsum([len(file) for file in self.files])
        self.tokens = int(self.ends[-1])

    def __getstate__(self) -> tuple[Path, str]:
        return self.folder, self.split  # a worker process opens its own maps

    def __setstate__(self, state: tuple[Path, str]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def gather(self, positions: Ints) -> Ints:
        """Tokens at these positions of the stream, in the same shape."""
        if len(self.files) == 1:
            return self.files[0][positions].astype(np.int64)
        shard_of = np.searchsorted(self.ends, positions, side="right")
        tokens = np.empty(positions.shape, dtype=np.int64)
        for shard in np.unique(shard_of):
            here = shard_of == shard
            start = self.ends[shard] - len(self.files[shard])
            tokens[here] = self.files[shard][positions[here] - start]
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
