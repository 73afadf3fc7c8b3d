"""Token files -> (B, T) blocks, and the file format itself.

A shard is 256 little-endian int32 words (magic, version, number of tokens, zeros) and then the
tokens: llm.c's pair of formats, so that its readers take our files. `index.json` beside them is
written last. It has a CRC-32 of every MiB of a shard's tokens, compared when that is first read,
and a SHA-256 of the whole file, which `lmtemplate verify` compares.
"""

import hashlib
import json
import re
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtemplate.errors import DataError

Ints = npt.NDArray[np.int64]

FORMAT = "lmtemplate-shards-1"
SPLITS = ("train", "val", "test")
BLOCK_BYTES = 2**20  # of a shard's tokens, under one CRC-32
HEADER_WORDS = 256
HEADER_BYTES = HEADER_WORDS * 4
MAGIC_AND_VERSION = {"uint16": (20240520, 1), "uint32": (20240801, 7)}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how such a file begins
IGNORED = -100  # target that carries no loss: torch's own default for `ignore_index`


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dtype_for(vocab_size: int) -> str:
    """Smallest shard type that holds every id of the vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def fingerprint(index: dict[str, Any]) -> str:
    """SHA-256 of what an index says of tokens and tokenizer: equal corpora, equal fingerprints.

    Where the text came from is left out: the same text, moved or touched, is the same corpus. So
    are the CRC-32 sums, which say less than the SHA-256 that counts.
    """
    left_out = ("fingerprint", "source", "crc32")
    content = json.loads(
        json.dumps(index),
        object_hook=lambda fields: {k: v for k, v in fields.items() if k not in left_out},
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def header(dtype: str, tokens: int) -> bytes:
    words = np.zeros(HEADER_WORDS, dtype="<i4")
    words[:3] = (*MAGIC_AND_VERSION[dtype], tokens)
    return words.tobytes()


def _field(fields: Any, name: str, kind: type, within: range | None = None) -> Any:
    """fields[name]. Raises ValueError if that is not of this type and range."""
    value = fields.get(name) if isinstance(fields, dict) else None
    if type(value) is not kind or (within is not None and value not in within):
        raise ValueError(f"{name} is {value!r:.60}")
    return value


def block_sums(entry: dict[str, Any], dtype: str) -> list[str]:
    """CRC-32 of each block of a shard. Raises ValueError where they are not so many."""
    sums: list[str] = _field(entry, "crc32", str).split(" ")
    blocks = -(-entry["tokens"] * np.dtype(dtype).itemsize // BLOCK_BYTES)
    if len(sums) != blocks or not all(re.fullmatch("[0-9a-f]{8}", one) for one in sums):
        raise ValueError(f"crc32 of {entry['file']} is not {blocks} sums")
    return sums


def _check_split(split: Any, name: str, dtype: str) -> None:
    tokens = _field(split, "tokens", int)
    shards = _field(split, "shards", list)
    for number, entry in enumerate(shards):
        wanted = f"{name}_{number:06d}.bin"  # so no name leaves the folder, or comes twice
        if _field(entry, "file", str) != wanted:
            raise ValueError(f"a shard is named {entry['file']!r:.60} instead of {wanted}")
        _field(entry, "tokens", int, range(1, 2**31))
        if not re.fullmatch("[0-9a-f]{64}", _field(entry, "sha256", str)):
            raise ValueError(f"sha256 of {wanted} is {entry['sha256']!r:.60}")
        block_sums(entry, dtype)
    if not shards or tokens != sum(entry["tokens"] for entry in shards):
        raise ValueError(f"{name} has {tokens:,} tokens, and its {len(shards)} shards do not")
    _field(split, "bytes", int, range(2**63))
    for count in {"documents", "unknown"} & split.keys():  # no more of them than of tokens
        _field(split, count, int, range(tokens + 1))


def _check_index(index: dict[str, Any]) -> None:
    """Raises ValueError, with the field that is not as `lmtemplate prepare` writes it."""
    vocab_size = _field(index, "vocab_size", int, range(1, 2**32 + 1))
    if _field(index, "dtype", str) != dtype_for(vocab_size):
        raise ValueError(f"dtype is {index['dtype']!r:.60} for {vocab_size:,} ids")
    _field(index, "eot_id", int, range(vocab_size))
    tokenizer = _field(index, "tokenizer", dict)
    _field(tokenizer, "sha256", str)
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", _field(tokenizer, "file", str)):
        raise ValueError(f"the tokenizer's file is named {tokenizer['file']!r:.60}")
    if "source" in index:
        _field(index, "source", dict)
    for name, split in _field(index, "splits", dict).items():
        if name not in SPLITS:
            raise ValueError(f"a split is named {name!r:.60}")
        _check_split(split, name, index["dtype"])


def check_not_a_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{path} looks like a git-lfs pointer; run git lfs pull")


def _not_prepared(folder: Path) -> DataError:
    """What to do where there is no corpus: name the right one, or make it from text."""
    problem = f"no prepared corpus in {folder} (no index.json)"
    is_text = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    others = [] if is_text else [path.parent.name for path in folder.parent.glob("*/index.json")]
    if close := get_close_matches(folder.name, others, n=1, cutoff=0.8):  # not another preset
        return DataError(f"{problem}; did you mean {folder.with_name(close[0])}?")
    source: str | Path = folder if is_text and folder.name else "TEXT"
    output = folder
    if is_text or not folder.name:
        output = Path("data", folder.stem)
        output = Path("data/mine") if folder in (output, Path("data"), Path()) else output
    kinds = " (TEXT: a file, a folder, or a preset like sotu-tiny)" if source == "TEXT" else ""
    return DataError(
        f"{problem}; type: lmtemplate prepare --input {source} --output {output}{kinds}"
    )


def read_index(folder: Path) -> dict[str, Any]:
    """Raises DataError where there is no complete, untouched index, or one that makes no sense."""
    path = folder / "index.json"
    try:
        for place in (folder, path):
            if place.is_file():
                check_not_a_pointer(place)
        if not path.is_file():
            raise _not_prepared(folder)
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        sound = index["format"] == FORMAT and index["fingerprint"] == fingerprint(index)
        if sound:
            _check_index(index)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is not an index of shards ({error}); prepare the corpus again"
        ) from error
    if not sound:
        raise DataError(
            f"{path} was changed by hand or by another version; prepare the corpus again"
        )
    return index


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
                sound = file.read(HEADER_BYTES) == header(index["dtype"], entry["tokens"])
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
