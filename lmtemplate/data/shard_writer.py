"""Text with its splits -> ids in numbered shards, and index.json that says what is in them."""

import os
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
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
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.errors import DataError
from lmtemplate.run_dir import sync_folder, write_json

MOST_SOURCES = 64  # names of sources in an index, over all splits
CHARACTERS = 2_000_000  # tokenized at a time: enough for all cores, little enough for memory
# A split, the name of a source, and a piece of a document from there; None where the document ends.
Event = tuple[str, str, str | None]
Entry = dict[str, Any]  # what the index says of a split or a shard


class ShardWriter:
    """Appends token ids, 0 .. vocab_size - 1, to numbered shards of one split in a folder.

    A new file begins after `shard_tokens`, of which the header's count can hold 2^31.
    """

    def __init__(
        self, folder: Path, split: str, vocab_size: int, shard_tokens: int = 100_000_000
    ) -> None:
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.vocab_size, self.dtype = vocab_size, dtype_for(vocab_size)
        self.shards: list[Entry] = []
        self._open_next()

    def _open_next(self) -> None:
        self.shards.append({"file": f"{self.split}_{len(self.shards):06d}.bin", "tokens": 0})
        self._file = (self.folder / self.shards[-1]["file"]).open("w+b")
        self._file.write(bytes(HEADER_BYTES))

    def close(self) -> list[Entry]:
        """Finish the last shard; returns the index entries {file, tokens, crc32, sha256}."""
        shard = self.shards[-1]
        with self._file as file:
            file.seek(0)
            file.write(header(self.dtype, shard["tokens"]))
            file.flush()
            os.fsync(file.fileno())
            blocks = iter(partial(file.read, BLOCK_BYTES), b"")
            shard["crc32"] = " ".join(f"{zlib.crc32(block):08x}" for block in blocks)
        shard["sha256"] = file_sha256(self.folder / shard["file"])
        return self.shards

    def write(self, ids: npt.NDArray[np.integer[Any]]) -> None:
        """Append (N,) ids. Raises DataError for one outside the vocabulary: none is wrapped."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            says = f"but its vocabulary has {self.vocab_size}; its file is inconsistent"
            raise DataError(f"the tokenizer gave ids from {ids.min()} to {ids.max()}, {says}")
        while len(ids):
            if self.shards[-1]["tokens"] == self.shard_tokens:
                self.close()
                self._open_next()
            part = ids[: self.shard_tokens - self.shards[-1]["tokens"]]
            self._file.write(part.astype(f"<u{np.dtype(self.dtype).itemsize}").tobytes())
            self.shards[-1]["tokens"] += len(part)
            ids = ids[len(part) :]


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    batch, size = list[Event](), 0
    for event in events:
        batch.append(event)
        size += len(event[2] or "")
        if size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    yield batch


def name_sources(entries: dict[str, Entry], everything: str) -> None:
    """Counted `sources` of each split -> [name, documents] in the order of its shards.

    Of too many names, the first folder is kept; a file in none, and all files of too many folders,
    are `everything`. Documents of one name follow each other.
    """
    names = {name for entry in entries.values() for name in entry["sources"]}
    folders = {name: name.split("/")[0] if "/" in name else everything for name in names}
    kept = {name: name for name in names}
    if len(names) > MOST_SOURCES:
        kept = folders
    if len({*kept.values()}) > MOST_SOURCES:
        kept = dict.fromkeys(names, everything)
    for entry in entries.values():
        runs = groupby(entry["sources"].items(), key=lambda counted: kept[counted[0]])
        entry["sources"] = [[name, sum(count for _, count in run)] for name, run in runs]


def write_splits(
    folder: Path,
    events: Iterable[Event],
    splits: Sequence[str],
    tokenizer: Tokenizer,
    source: str,
    size: int | None = None,
) -> dict[str, Entry]:
    """Write the shards of all splits, end-of-text after each document; returns their entries.

    `source` is a name for the whole text, `size` its bytes, for a progress bar. Raises DataError
    for an empty split.
    """
    from tqdm import tqdm

    counts = ("documents", "bytes", "tokens", "unknown")
    entries: dict[str, Entry] = {
        split: {**dict.fromkeys(counts, 0), "sources": Counter[str]()} for split in splits
    }
    writers = {split: ShardWriter(folder, split, tokenizer.vocab_size) for split in splits}
    bar = tqdm(desc="shards", total=size, unit="B", unit_scale=True, disable=None, leave=False)
    end = np.array([tokenizer.eot_id])
    try:
        for batch in _batches(events):
            encoded = iter(tokenizer.encode([piece for *_, piece in batch if piece is not None]))
            for split, name, piece in batch:
                ids, entry = end if piece is None else next(encoded), entries[split]
                writers[split].write(ids)
                if piece is None:
                    entry["documents"] += 1
                    entry["sources"][name] += 1
                else:
                    length = len(piece.encode())
                    entry["bytes"] += length
                    entry["unknown"] += int(np.count_nonzero(ids == tokenizer.unknown_id))
                    bar.update(length)
                entry["tokens"] += len(ids)
    finally:
        bar.close()
        for split, writer in writers.items():
            entries[split]["shards"] = writer.close()
    for split, entry in entries.items():
        if not entry["bytes"]:
            raise DataError(f"the {split} split would be empty; give more text or another ratio")
    name_sources(entries, source)
    return entries


def write_index(folder: Path, index: Entry) -> None:
    """Add format and fingerprint to the index and write it: from now on the corpus is complete."""
    index = {"format": FORMAT, **index}
    write_json(folder / "index.json", {**index, "fingerprint": fingerprint(index)})


def recover(output: Path) -> tuple[Path, Path]:
    """Undo what was interrupted; returns where a new folder grows and where an old one waits."""
    output = Path(os.path.realpath(output))  # `resolve` raises for links that are a loop
    new, old = (output.with_name(f".{output.name}.{end}") for end in ("partial", "replaced"))
    for link in filter(Path.is_symlink, (new, old)):  # to a folder that is not ours
        link.unlink()
    if old.is_dir() and not output.exists():
        old.rename(output)
    for leftover in (new, old):
        if leftover.is_dir():  # a pipe would be waited for
            shutil.rmtree(leftover)
    return new, old


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A hidden folder to fill; it becomes `output` if all goes well, and vanishes otherwise."""
    output = Path(os.path.realpath(output))  # `resolve` raises for links that are a loop
    new, old = recover(output)
    new.mkdir(parents=True)
    try:
        yield new  # each file is synced where it is written
        sync_folder(new)
        if output.exists():
            output.rename(old)
        new.rename(output)
        sync_folder(output.parent)
    finally:
        recover(output)
