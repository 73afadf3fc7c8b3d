"""Token files -> (B, T) blocks, and the file format itself.

A shard is 256 little-endian int32 words (magic, version, number of tokens, zeros) and then the
tokens: llm.c's pair of formats, so that its readers take our files. `index.json` beside them is
written last (see shard_writer). It has a CRC-32 of every 32 KiB of a shard's tokens, compared when
they are first read, and a SHA-256 of the whole file, which `lmtemplate verify` compares.
"""

import hashlib
import json
import re
import zlib
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lmtemplate.data import IGNORED, LFS_POINTER, Ints
from lmtemplate.errors import DataError

Index = dict[str, Any]  # the content of index.json

FORMAT = "lmtemplate-shards-1"
BLOCK_BYTES = 2**15  # of a shard's tokens, under one CRC-32: a batch verifies each block it touches
MIB = 2**20  # was under one CRC-32 in corpora that an earlier version prepared
HEADER_BYTES = 1024  # 256 words of int32
MAGIC_AND_VERSION = {"uint16": (20240520, 1), "uint32": (20240801, 7)}


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_not_a_pointer(path: Path) -> None:
    """Raises DataError for a file that git-lfs has not downloaded yet."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{path} looks like a git-lfs pointer; run git lfs pull")


def dtype_for(vocab_size: int) -> str:
    """Smallest shard type that holds every id of the vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def header(dtype: str, tokens: int) -> bytes:
    """The first HEADER_BYTES of a shard with this number of tokens."""
    words = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    words[:3] = (*MAGIC_AND_VERSION[dtype], tokens)
    return words.tobytes()


def block_bytes(entry: dict[str, Any], dtype: str) -> int:
    """Bytes under one CRC-32 in a shard with this entry in the index; 0 where none would fit."""
    size, sums = entry["tokens"] * np.dtype(dtype).itemsize, len(entry["crc32"].split(" "))
    return next((each for each in (BLOCK_BYTES, MIB) if -(-size // each) == sums), 0)


def fingerprint(index: Index) -> str:
    """SHA-256 of what an index says of tokens and tokenizer: equal corpora, equal fingerprints.

    The sources of the text do not count: the same text, moved or touched, is the same corpus. Nor
    do the CRC-32 sums, which say less than the SHA-256 that counts.
    """
    ignored = ("fingerprint", "source", "sources", "crc32")
    content = json.loads(
        json.dumps(index),
        object_hook=lambda fields: {k: v for k, v in fields.items() if k not in ignored},
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_index(index: Index) -> None:
    """Raises ValueError where files could lie outside the folder or sizes contradict each other."""
    if {type(index["tokenizer"][name]) for name in ("kind", "sha256")} != {str}:
        raise ValueError("kind or sha256 of the tokenizer is not a text")
    if type(index["vocab_size"]) is not int:
        raise ValueError(f"vocab_size is {index['vocab_size']!r:.60}")
    if index["dtype"] != dtype_for(index["vocab_size"]):
        raise ValueError(f"dtype is {index['dtype']!r:.60} for {index['vocab_size']:,} ids")
    if not 0 <= index["eot_id"] < index["vocab_size"]:
        raise ValueError(f"eot_id is {index['eot_id']!r:.60}")
    names = [*index["splits"], index["tokenizer"]["file"]]
    for split, entry in index["splits"].items():
        if type(entry["bytes"]) is not int or not 0 < entry["bytes"] < 2**63:
            raise ValueError(f"bytes of {split!r:.60} is {entry['bytes']!r:.60}")
        sources = entry.get("sources", [])
        if any((type(name), type(count)) != (str, int) or count < 1 for name, count in sources):
            raise ValueError(f"sources of {split!r:.60} are not names with counts")
        if sources and sum(count for _, count in sources) != entry["documents"]:
            raise ValueError(f"the documents of {split!r:.60} are not those of its sources")
        for shard in entry["shards"]:
            names.append(shard["file"])
            if not isinstance(shard["sha256"], str):
                raise ValueError(f"sha256 of {shard['file']!r:.60} is {shard['sha256']!r:.60}")
            tokens = shard["tokens"]  # the header's count is an int32
            if type(tokens) is not int or not 0 < tokens < 2**31:
                raise ValueError(f"tokens of {shard['file']!r:.60} is {tokens!r:.60}")
            if not block_bytes(shard, index["dtype"]):
                raise ValueError(f"crc32 of {shard['file']!r:.60} is not one sum for each block")
        if not entry["shards"] or entry["tokens"] != sum(s["tokens"] for s in entry["shards"]):
            raise ValueError(f"the tokens of {split!r:.60} are not those of its shards")
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name):
            raise ValueError(f"a file or split is named {name!r:.60}")


def _not_prepared(folder: Path) -> DataError:
    """What to type where there is no corpus: the name of the right one, or how to make it."""
    others = [path.parent.name for path in folder.parent.glob("*/index.json")]
    close = get_close_matches(folder.name, others, n=1, cutoff=0.8)  # not another preset
    advice = f"type: lmtemplate prepare --input TEXT --output {quote(str(folder))}"
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):  # it may be the text
        advice = f"type: lmtemplate prepare --input {quote(str(folder))} --output data/mine"
    elif close:
        advice = f"did you mean {folder.with_name(close[0])}?"
    return DataError(f"no prepared corpus in {folder} (no index.json); {advice}")


def read_index(folder: Path) -> Index:
    """Raises DataError where index.json is missing, incomplete or changed."""
    path = folder / "index.json"
    try:
        for place in (folder, path):
            if place.is_file():
                check_not_a_pointer(place)
        if not path.is_file():
            raise _not_prepared(folder)
        index: Index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT or index["fingerprint"] != fingerprint(index):
            raise ValueError("it was changed by hand or by another version")
        _check_index(index)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is not an index of shards ({error}); prepare the corpus again"
        ) from error
    return index


class Shard:
    """One token file, memory-mapped. A block of it is verified when it is first read.

    `entry` is the shard's own in the index. Raises DataError if the file is missing, or its size or
    header are not what the index says.
    """

    def __init__(self, folder: Path, index: Index, entry: dict[str, Any]) -> None:
        self.path = folder / entry["file"]
        self.vocab_size: int = index["vocab_size"]
        width = np.dtype(index["dtype"]).itemsize
        expected = HEADER_BYTES + entry["tokens"] * width
        if not self.path.is_file():  # a pipe would be waited for without end
            raise self._error(" is missing")
        if self.path.resolve().parent != folder.resolve():
            raise DataError(f"shard {self.path} is a link that leaves its folder; refused")
        try:
            check_not_a_pointer(self.path)
            if (size := self.path.stat().st_size) != expected:
                raise self._error(f" was truncated: {size:,} bytes, the index says {expected:,}")
            with self.path.open("rb") as file:
                if file.read(HEADER_BYTES) != header(index["dtype"], entry["tokens"]):
                    raise self._error(" has a wrong header")
            mapped = np.memmap(self.path, f"<u{width}", mode="r", offset=HEADER_BYTES)
        except OSError as error:
            raise self._error(f" cannot be read ({error.strerror})") from error
        self.tokens = np.asarray(mapped)  # the same memory, without what memmap does at each read
        self.block_tokens = block_bytes(entry, index["dtype"]) // width
        self.crcs: list[str] = entry["crc32"].split(" ")
        self.unread, self.is_verified = np.ones(len(self.crcs), dtype=bool), False

    def _error(self, problem: str) -> DataError:
        return DataError(f"shard {self.path}{problem}; restore it or prepare the corpus again")

    def verify(self, block: int) -> None:
        """Compare one block with its CRC-32, and its ids with the vocabulary. Raises DataError."""
        tokens = self.tokens[block * self.block_tokens : (block + 1) * self.block_tokens]
        if f"{zlib.crc32(tokens.data):08x}" != self.crcs[block]:
            offset = HEADER_BYTES + block * self.block_tokens * tokens.itemsize
            raise self._error(f": block at byte offset {offset:,} fails its CRC-32")
        if (largest := int(tokens.max())) >= self.vocab_size:
            ids = f"the vocabulary of {self.vocab_size:,} ids"
            raise self._error(f": token id {largest:,} is outside {ids}")
        self.unread[block] = False

    def verify_all(self) -> None:
        """Verify every block, also those that were read before. Raises DataError at the first."""
        for block in range(len(self.unread)):
            self.verify(block)

    def take(self, positions: Ints) -> npt.NDArray[Any]:
        """The tokens at these positions, in the same shape. Raises DataError."""
        if not self.is_verified:
            blocks = positions // self.block_tokens
            if (new := self.unread[blocks]).any():
                for block in np.flatnonzero(np.bincount(blocks[new])):
                    self.verify(int(block))
                self.is_verified = not self.unread.any()
        return self.tokens[positions]


class TokenStream(Protocol):
    """What Blocks reads: any sequence of token ids that can be read at any positions."""

    name: str  # for messages: "the val split of data/mine"
    tokens: int  # how many

    def gather(self, positions: Ints) -> Ints:
        """Tokens at these positions of the stream, in the same shape."""
        ...


class Shards:
    """One split of a prepared corpus, read as a single stream of tokens.

    Args:
        folder: the corpus.
        split: "train", "val" or "test".
        index: what `read_index(folder)` returned, if it was read before.

    Raises DataError where the split, a shard or the index is missing or damaged.
    """

    def __init__(self, folder: Path, split: str, index: Index | None = None) -> None:
        index = index or read_index(folder)
        if split not in index["splits"]:
            raise DataError(
                f"{folder} has no {split} split (it has: {', '.join(index['splits'])}); prepare it "
                f"again with --{split}_ratio above 0"
            )
        self.opened_with = (folder, split, index)
        self.name = f"the {split} split of {folder}"
        entries = index["splits"][split]["shards"]
        # Where its documents come from, in order: (name, documents); empty in older corpora.
        self.sources = [
            (str(name), int(n)) for name, n in index["splits"][split].get("sources", [])
        ]
        self.shards = [Shard(folder, index, entry) for entry in entries]
        self.ends = np.cumsum([len(shard.tokens) for shard in self.shards])
        self.tokens = int(self.ends[-1])

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path, str, Index]]:
        return Shards, self.opened_with  # a worker process opens its own maps

    def gather(self, positions: Ints) -> Ints:
        """Tokens at these positions. Raises DataError where a block read first is damaged."""
        if len(self.shards) == 1:
            return self.shards[0].take(positions).astype(np.int64)
        if positions.ndim > 1:  # most rows lie in one shard
            return np.stack([self.gather(row) for row in positions])
        first, last = self.ends.searchsorted([positions.min(), positions.max()], side="right")
        tokens = np.empty(positions.shape, dtype=np.int64)
        for shard, end in zip(self.shards[first : last + 1], self.ends[first:], strict=False):
            start = end - len(shard.tokens)
            here = (start <= positions) & (positions < end) if first < last else ...
            tokens[here] = shard.take(positions[here] - start)
        return tokens


class Blocks:
    """Map-style dataset over a stream: an array of block numbers -> one batch, in one gather.

    Block i predicts the tokens i * T + 1 .. (i + 1) * T, so over all blocks every token but the
    first is predicted exactly once. Where the stream ends inside a block, and in blocks that are
    numbered past the last one, inputs are 0 and targets are IGNORED.

    Args:
        stream: the tokens, for example `Shards`.
        block_size: T.
        whole: drop the last, incomplete block (training) instead of padding it (evaluation).
        most: blocks to use at most, the first ones; None uses all.

    Raises DataError where the stream is shorter than one block.
    """

    def __init__(
        self, stream: TokenStream, block_size: int, *, whole: bool, most: int | None = None
    ) -> None:
        predicted = stream.tokens - 1
        if predicted < block_size:
            raise DataError(
                f"{stream.name} has {stream.tokens:,} tokens, but one block needs "
                f"{block_size + 1:,}; give more text or lower data.block_size"
            )
        self.stream, self.block_size, self.window = stream, block_size, np.arange(block_size + 1)
        self.blocks = predicted // block_size if whole else -(-predicted // block_size)
        self.blocks = min(self.blocks, most or self.blocks)
        self.whole = whole

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, blocks: Ints) -> tuple[Ints, Ints]:
        """(B,) block numbers -> inputs (B, T) and targets (B, T)."""
        positions = np.add.outer(blocks * self.block_size, self.window)  # (B, T+1)
        if self.whole:
            tokens = self.stream.gather(positions)
            return tokens[:, :-1].copy(), tokens[:, 1:].copy()
        past_end = positions >= self.stream.tokens
        past_end[blocks >= self.blocks] = True
        tokens = self.stream.gather(np.minimum(positions, self.stream.tokens - 1))
        inputs = np.where(past_end[:, :-1], 0, tokens[:, :-1])
        return inputs, np.where(past_end[:, 1:], IGNORED, tokens[:, 1:])
