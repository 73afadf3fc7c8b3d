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
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lmtemplate.data import IGNORED, LFS_POINTER, Ints
from lmtemplate.errors import DataError
from lmtemplate.plain_file import read_plain

Index = dict[str, Any]  # the content of index.json

FORMAT = "lmtemplate-shards-1"
BLOCK_BYTES = 2**15  # of a shard's tokens, under one CRC-32: a batch verifies each block it touches
HEADER_BYTES = 1024  # 256 words of int32
MAGIC_AND_VERSION = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
POINTER = "is a git-lfs pointer: run git lfs pull"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dtype_for(vocab_size: int) -> str:
    """Smallest shard type that holds every id of the vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def header(dtype: str, tokens: int) -> bytes:
    """The first HEADER_BYTES of a shard with this number of tokens."""
    words = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    words[:3] = (*MAGIC_AND_VERSION[dtype], tokens)
    return words.tobytes()


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


def _claims(index: Index) -> Iterator[tuple[str, object, bool]]:
    """What an index says, each value, and whether it can be: no file elsewhere, sums that add up."""
    vocab_size, tokenizer = index["vocab_size"], index["tokenizer"]
    names = [*index["splits"], tokenizer["file"]]
    for key in ("kind", "sha256"):
        yield f"{key} of the tokenizer is", tokenizer[key], isinstance(tokenizer[key], str)
    yield "vocab_size is", vocab_size, type(vocab_size) is int
    yield "source is", index.get("source"), isinstance(index.get("source", {}), dict)
    yield "dtype is", index["dtype"], index["dtype"] == dtype_for(vocab_size)
    per_block = BLOCK_BYTES // np.dtype(index["dtype"]).itemsize
    yield "eot_id is", index["eot_id"], 0 <= index["eot_id"] < vocab_size
    for split, entry in index["splits"].items():
        size, sources = entry["bytes"], entry["sources"]
        yield f"bytes of {split!r:.60} is", size, type(size) is int and 0 < size < 2**63
        total = 0
        for shard in entry["shards"]:
            name, tokens, sha256 = f"{shard['file']!r:.60}", shard["tokens"], shard["sha256"]
            names.append(shard["file"])
            total += tokens
            yield f"sha256 of {name} is", sha256, isinstance(sha256, str)
            # the header's count is an int32
            yield f"tokens of {name} is", tokens, type(tokens) is int and 0 < tokens < 2**31
            says = f"crc32 of {name} is not one sum for each block, but"
            yield says, shard["crc32"], len(shard["crc32"].split(" ")) == -(-tokens // per_block)
        says = f"tokens of {split!r:.60} are not those of its shards, but"
        yield says, entry["tokens"], entry["tokens"] == total > 0
        documents = entry["documents"]
        yield f"documents of {split!r:.60} are", documents, 0 < documents <= total
        yield f"sources of {split!r:.60} are", sources, isinstance(sources, list)
        counts = [n for name, n in sources if (type(name), type(n)) == (str, int) and n > 0]
        is_whole = len(counts) == len(sources) and sum(counts) == documents
        yield f"sources of {split!r:.60} are not those of its documents, but", sources, is_whole
    yield "a file is named twice among", names, len({*names}) == len(names)
    for name in names:
        is_plain = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", name) is not None
        yield "a file or split is named", name, is_plain


def _not_prepared(folder: Path) -> DataError:
    """What to type where there is no corpus: the name of the right one, or how to make it."""
    others = [path.parent.name for path in folder.parent.glob("*/index.json")]
    close = get_close_matches(folder.name, others, n=1, cutoff=0.8)  # not another preset
    is_text = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))  # it may be
    text, output = (folder, "data/mine") if is_text else ("TEXT", folder)
    advice = f"type: lmtemplate prepare --input {quote(str(text))} --output {quote(str(output))}"
    if close and not is_text:
        advice = f"did you mean {folder.with_name(close[0])}?"
    return DataError(f"no prepared corpus in {folder} (no index.json); {advice}")


def read_index(folder: Path) -> Index:
    """Raises DataError where index.json is missing, incomplete or changed."""
    path = folder / "index.json"
    try:
        if not path.is_file():
            raise _not_prepared(folder)
        content = read_plain(path)
        if content.startswith(LFS_POINTER.decode()):
            raise ValueError(f"it {POINTER}")
        index: Index = json.loads(content)
        if index["format"] != FORMAT or index["fingerprint"] != fingerprint(index):
            raise ValueError("it was changed by hand or by another version")
        for says, value, is_sound in _claims(index):
            if not is_sound:
                raise ValueError(f"{says} {value!r:.60}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        says = "is not an index of shards"
        raise DataError(f"{path} {says} ({error}); prepare the corpus again") from error
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
            with self.path.open("rb") as file:
                start, size = file.read(HEADER_BYTES), self.path.stat().st_size
            if start.startswith(LFS_POINTER):
                raise self._error(f" {POINTER}")
            if size != expected:
                raise self._error(f" was truncated: {size:,} bytes, the index says {expected:,}")
            if start != header(index["dtype"], entry["tokens"]):
                raise self._error(" has a wrong header")
            mapped = np.memmap(self.path, f"<u{width}", mode="r", offset=HEADER_BYTES)
        except OSError as error:
            raise self._error(f" cannot be read ({error.strerror})") from error
        self.tokens = np.asarray(mapped)  # the same memory, without what memmap does at each read
        self.block_tokens = BLOCK_BYTES // width
        self.crcs: list[str] = entry["crc32"].split(" ")
        self.unread = np.ones(len(self.crcs), dtype=bool)

    def _error(self, problem: str) -> DataError:
        return DataError(f"shard {self.path}{problem}; restore it or prepare the corpus again")

    def verify(self, block: int) -> None:
        """Compare one block with its CRC-32, and its ids with the vocabulary. Raises DataError."""
        start = block * self.block_tokens
        tokens = self.tokens[start : start + self.block_tokens]
        if f"{zlib.crc32(tokens.data):08x}" != self.crcs[block]:
            offset = HEADER_BYTES + start * tokens.itemsize
            raise self._error(f": block at byte offset {offset:,} fails its CRC-32")
        if (largest := int(tokens.max())) >= self.vocab_size:
            says = f"is outside the vocabulary of {self.vocab_size:,} ids"
            raise self._error(f": token id {largest:,} {says}")
        self.unread[block] = False

    def verify_all(self) -> None:
        """Verify every block, also those that were read before. Raises DataError at the first."""
        for block in range(len(self.unread)):
            self.verify(block)

    def take(self, positions: Ints) -> npt.NDArray[Any]:
        """The tokens at these positions, in the same shape. Raises DataError."""
        if self.unread.any():
            blocks = positions // self.block_tokens
            for block in np.unique(blocks[self.unread[blocks]]):
                self.verify(int(block))
        return self.tokens[positions]


class TokenStream(Protocol):
    """What Blocks reads: any sequence of token ids that can be read at any positions."""

    name: str  # for messages: "the val split of data/mine"
    tokens: int  # how many

    def gather(self, positions: Ints) -> Ints: ...  # the tokens at these, in the same shape


class Shards:
    """One split ("train", "val", "test") of a prepared corpus, read as a single stream of tokens.

    `index` is what `read_index(folder)` returned, if it was read before. Raises DataError where the
    split, a shard or the index is missing or damaged.
    """

    def __init__(self, folder: Path, split: str, index: Index | None = None) -> None:
        index = index or read_index(folder)
        if split not in index["splits"]:
            says = (
                f"(it has: {', '.join(index['splits'])}); prepare it with --{split}_ratio above 0"
            )
            raise DataError(f"{folder} has no {split} split {says}")
        self.opened_with = (folder, split, index)
        self.name = f"the {split} split of {folder}"
        entry = index["splits"][split]
        # Where its documents come from, in order: (name, documents).
        self.sources: list[tuple[str, int]] = [(name, count) for name, count in entry["sources"]]
        self.shards = [Shard(folder, index, shard) for shard in entry["shards"]]
        self.ends = np.cumsum([len(shard.tokens) for shard in self.shards])
        self.tokens = int(self.ends[-1])

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path, str, Index]]:
        return Shards, self.opened_with  # a worker process opens its own maps

    def gather(self, positions: Ints) -> Ints:
        """Tokens at these positions. Raises DataError where a block read first is damaged."""
        if len(self.shards) == 1:
            return self.shards[0].take(positions).astype(np.int64)
        numbers = self.ends.searchsorted(positions, side="right")  # of the shards
        tokens = np.empty(positions.shape, dtype=np.int64)
        for number in np.flatnonzero(np.bincount(numbers.ravel())):
            shard, here = self.shards[number], numbers == number
            tokens[here] = shard.take(positions[here] - self.ends[number] + len(shard.tokens))
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
            says = f"one block needs {block_size + 1:,}; give more text or lower data.block_size"
            raise DataError(f"{stream.name} has {stream.tokens:,} tokens, but {says}")
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
