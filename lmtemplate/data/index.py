"""index.json: what a prepared corpus says of its shards -> fields that can be relied on.

It is the last file to be written. What it says may come from a stranger, so each field is checked
before anyone reads it.
"""

import hashlib
import json
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.errors import DataError

FORMAT = "lmtemplate-shards-1"
SPLITS = ("train", "val", "test")
BLOCK_BYTES = 2**20  # of a shard's tokens, under one CRC-32
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how such a file begins

# How a file begins that is no text in UTF-8 -> what it is, and what to do.
NOT_TEXT: dict[bytes | tuple[bytes, ...], str] = {
    LFS_POINTER: "a git-lfs pointer, not the text itself; type: git lfs pull",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"PK\x03\x04": "a zip file; unpack it first",
    b"%PDF-": "a PDF file; take the text out of it first",
    (
        b"\xff\xfe",
        b"\xfe\xff",
    ): "UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
}


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


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Add format and fingerprint to the index and write it: from now on the corpus is complete."""
    index = {"format": FORMAT, **index}
    index["fingerprint"] = fingerprint(index)
    with (folder / "index.json").open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


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
