"""Text with its splits -> ids in numbered shards, and index.json that says what is in them."""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmtemplate.data.shards import (
    BLOCK_BYTES,
    FORMAT,
    HEADER_BYTES,
    Ints,
    dtype_for,
    file_sha256,
    fingerprint,
    header,
)
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.errors import DataError
from lmtemplate.run_dir import sync_folder

BATCH = 2_000_000  # characters tokenized at a time: enough for all cores, little enough for memory
Event = tuple[str, str | None]  # (split, piece of text); (split, None) where a document ends
Entry = dict[str, Any]  # what the index says of a split


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

    def _open_next(self) -> None:
        name = f"{self.split}_{len(self.shards):06d}.bin"
        self.shards.append({"file": name, "tokens": 0})
        self._crcs: list[int] = []  # CRC-32 of each block, the last one still growing
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
        shard["crc32"] = " ".join(f"{crc:08x}" for crc in self._crcs)

    def _append(self, content: bytes) -> None:
        at = self._file.tell() - HEADER_BYTES
        self._file.write(content)
        rest = memoryview(content)
        while rest:
            if at % BLOCK_BYTES == 0:
                self._crcs.append(0)
            part = rest[: BLOCK_BYTES - at % BLOCK_BYTES]
            self._crcs[-1] = zlib.crc32(part, self._crcs[-1])
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


def with_progress_bar(events: Iterable[Event], title: str, size: Any) -> Iterator[Event]:
    """The events, under a progress bar of `size` bytes (None: unknown) if there is a terminal."""
    from tqdm import tqdm

    with tqdm(desc=title, total=size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for split, piece in events:
            yield split, piece
            bar.update(len((piece or "").encode()))


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    batch: list[Event] = []
    size = 0
    for event in events:
        batch.append(event)
        size += len(event[1] or "")
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _encode(batch: list[Event], tokenizer: Tokenizer, entries: dict[str, Entry]) -> dict[str, Ints]:
    """Ids of a batch by split, end-of-text after each document; counted in the splits' entries."""
    encoded = iter(tokenizer.encode([piece for _, piece in batch if piece is not None]))
    streams: dict[str, list[Ints]] = {}
    for split, piece in batch:
        if piece is None:
            ids = np.array([tokenizer.eot_id])
            entries[split]["documents"] += 1
        else:
            ids = next(encoded)
            entries[split]["bytes"] += len(piece.encode())
            if tokenizer.unknown_id is not None:
                entries[split]["unknown"] += int(np.count_nonzero(ids == tokenizer.unknown_id))
        entries[split]["tokens"] += len(ids)
        streams.setdefault(split, []).append(ids)
    return {split: np.concatenate(arrays) for split, arrays in streams.items()}


def write_splits(
    folder: Path, events: Iterable[Event], splits: Sequence[str], tokenizer: Tokenizer
) -> dict[str, Entry]:
    """Write the shards of all splits; returns what the index says of each.

    Raises DataError for a split without text.
    """
    counts = dict.fromkeys(("documents", "bytes", "tokens", "unknown"), 0)
    entries: dict[str, Entry] = {split: dict(counts) for split in splits}
    writers = {split: ShardWriter(folder, split, tokenizer.vocab_size) for split in splits}
    try:
        for batch in _batches(events):
            for split, ids in _encode(batch, tokenizer, entries).items():
                writers[split].write(ids)
    finally:
        for split, writer in writers.items():
            entries[split]["shards"] = writer.close()
    for split, entry in entries.items():
        if not entry["bytes"]:
            raise DataError(f"the {split} split would be empty; give more text or another ratio")
    return entries


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Add format and fingerprint to the index and write it: from now on the corpus is complete."""
    index = {"format": FORMAT, **index}
    index["fingerprint"] = fingerprint(index)
    with (folder / "index.json").open("w", encoding="utf-8") as file:
        json.dump(index, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def recover(output: Path) -> tuple[Path, Path]:
    """Undo what was interrupted; returns where a new folder grows and where an old one waits."""
    output = output.resolve()
    new, old = (output.with_name(f".{output.name}.{end}") for end in ("partial", "replaced"))
    if old.exists() and not output.exists():
        old.rename(output)
    for leftover in (new, old):
        if leftover.exists():
            shutil.rmtree(leftover)
    return new, old


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A hidden folder to fill; it becomes `output` if all goes well, and vanishes otherwise."""
    output = output.resolve()
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
