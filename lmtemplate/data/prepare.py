"""Text -> shards, tokenizer.json and index.json in one folder, split by document."""

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lmtemplate.data import shards
from lmtemplate.data.corpus import PRESETS, SOTU, open_corpus
from lmtemplate.data.shard_writer import ShardWriter, write_index
from lmtemplate.data.shards import dtype_for, read_index
from lmtemplate.data.split import Event, SplitCorpus
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.data.train_tokenizer import train_tokenizer
from lmtemplate.errors import ConfigError, DataError, DiskError
from lmtemplate.run_dir import Lock, parse_yaml, sync_folder, write_text

BATCH = 2_000_000  # characters tokenized at a time: enough for all cores, little enough for memory
MOST_NOTICES = 10  # a folder may hold many files
TOKENIZER = "tokenizer.json"
Entry = dict[str, Any]  # what the index says of a split


def _watched(text: SplitCorpus, title: str) -> Iterator[Event]:
    """The events of the text, under a progress bar if there is a terminal."""
    from tqdm import tqdm

    total = text.corpus.signature.get("bytes")
    with tqdm(desc=title, total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for split, piece in text:
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
    if batch:
        yield batch


def _encode(
    batch: list[Event], tokenizer: Tokenizer, entries: dict[str, Entry]
) -> dict[str, shards.Ints]:
    """Ids of a batch by split, end-of-text after each document; counted in the splits' entries."""
    encoded = iter(tokenizer.encode([piece for _, piece in batch if piece is not None]))
    streams: dict[str, list[shards.Ints]] = {}
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


def _write_shards(folder: Path, text: SplitCorpus, tokenizer: Tokenizer) -> dict[str, Entry]:
    """Fill the folder; returns what the index says of each split, none of which may be empty."""
    counts = dict.fromkeys(("documents", "bytes", "tokens", "unknown"), 0)
    entries: dict[str, Entry] = {split: dict(counts) for split in text.splits}
    vocab_size = tokenizer.vocab_size
    writers = {split: ShardWriter(folder, split, vocab_size) for split in text.splits}
    try:
        for batch in _batches(_watched(text, "shards")):
            for split, ids in _encode(batch, tokenizer, entries).items():
                writers[split].write(ids)
    finally:
        for split, writer in writers.items():
            entries[split]["shards"] = writer.close()
    for split, entry in entries.items():
        if not entry["bytes"]:
            raise DataError(f"the {split} split would be empty; give more text or another ratio")
    return entries


def _clear(output: Path) -> tuple[Path, Path]:
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
def _new_folder(output: Path) -> Iterator[Path]:
    """A hidden folder to fill; it becomes `output` if all goes well, and vanishes otherwise."""
    output = output.resolve()
    new, old = _clear(output)
    new.mkdir(parents=True)
    try:
        yield new  # each file is synced where it is written
        sync_folder(new)
        if output.exists():
            output.rename(old)
        new.rename(output)
        sync_folder(output.parent)
    finally:
        _clear(output)


def _read_whole(output: Path, every_block: bool) -> dict[str, Any]:
    """The index of a prepared corpus; raises DataError if that is damaged."""
    try:
        index = read_index(output)
        for split in index["splits"]:
            for shard in shards.Shards(output, split).shards:
                if every_block:
                    shard.verify_all()
    except DataError as error:
        raise DataError(f"{error} (remove {output}, or give --overwrite true)") from error
    return index


def _source(
    input: str, text: SplitCorpus, tokenizer: str, vocab_size: int | None, text_field: str
) -> dict[str, Any]:
    """What a corpus is made from, as its index keeps it."""
    if vocab_size is None and tokenizer == "bpe" and input in SOTU:
        vocab_size = SOTU[input].vocab_size
    source: dict[str, Any] = {
        "input": input,
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "val_ratio": text.val_ratio,
        "test_ratio": text.test_ratio,
        "seed": text.seed,
        "text_field": text_field,
        "signature": text.corpus.signature,
    }
    if Path(tokenizer).is_file():
        source["tokenizer_sha256"] = shards.file_sha256(Path(tokenizer))
    return source


def _is_done(output: Path, source: dict[str, Any], overwrite: bool) -> bool:
    """Whether `output` holds this very corpus. Raises an error for what should not be lost."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / "index.json").is_file():
        raise ConfigError(f"{output} is there, and not made by prepare; choose another --output")
    if overwrite and any(output.glob("*_000000.bin")):  # shards, whatever is wrong with them
        return False
    before = _read_whole(output, every_block=True).get("source", {})
    changes = [
        f"{key} {before.get(key)}, now {value}"
        for key, value in source.items()
        if key not in ("input", "signature") and before.get(key) != value
    ]
    if before.get("signature") != source["signature"]:
        changes.append(f"the text of {before.get('input')}, now other text of {source['input']}")
    if changes:
        raise ConfigError(
            f"{output} was prepared from {'; '.join(changes)}; replace it by --overwrite true, or "
            "choose another --output"
        )
    return True


def _read_data_path(config: Path) -> Path:
    try:
        return Path(parse_yaml(config.read_text(encoding="utf-8"))["data"]["path"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{config} has no data.path; give --input and --output") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the config {config} cannot be read: {reason}") from error


def _preset_of(folder: Path, config: Path) -> str:
    """The preset that a folder is named after; raises DataError, with what to type, without one."""
    if folder.name in PRESETS:
        return folder.name
    tokenizer = "char" if folder.name.endswith("char") else "bpe"
    raise DataError(
        f"{config} reads {folder}, which is not prepared; its text is yours to give: "
        f"make data INPUT=your.txt NAME={folder.name} TOKENIZER={tokenizer}"
    )


def _report(index: dict[str, Any], text: SplitCorpus, seconds: float) -> None:
    notices = sorted(text.corpus.notices)
    for notice in notices[:MOST_NOTICES]:
        print(f"note: {notice}")
    if len(notices) > MOST_NOTICES:
        print(f"note: and {len(notices) - MOST_NOTICES:,} more of this kind")
    print("split   documents           bytes          tokens  bytes/token  unknown")
    for split, entry in index["splits"].items():
        print(
            f"{split:<6}{entry['documents']:>11,}{entry['bytes']:>16,}{entry['tokens']:>16,}"
            f"{entry['bytes'] / entry['tokens']:>13.2f}{entry['unknown']:>9,}"
        )
    rate = sum(entry["tokens"] for entry in index["splits"].values()) / seconds
    print(
        f"{text.rule()}; {index['tokenizer']['kind']} tokenizer of {index['vocab_size']:,} ids, "
        f"{rate:,.0f} tokens/s"
    )


def _say_next(output: Path, config: Path | None) -> None:
    own = f'ARGS="--data.path {output} --run_dir runs/{output.name}"'
    print(f"{output} is ready; next: make train", f"CONFIG={config}" if config else own)


def _build(output: Path, text: SplitCorpus, source: dict[str, Any]) -> None:
    """Train the tokenizer, write the folder, report."""
    events = _watched(text, "tokenizer")
    train = (piece for split, piece in events if split == "train" and piece is not None)
    tokenizer = train_tokenizer(source["tokenizer"], train, source["vocab_size"])
    start = time.perf_counter()
    with _new_folder(output) as folder:
        write_text(folder / TOKENIZER, tokenizer.to_json())
        index = {
            "dtype": dtype_for(tokenizer.vocab_size),
            "vocab_size": tokenizer.vocab_size,
            "eot_id": tokenizer.eot_id,
            "tokenizer": {"kind": tokenizer.kind, "file": TOKENIZER, "sha256": tokenizer.digest},
            "source": source,
            "splits": _write_shards(folder, text, tokenizer),
        }
        write_index(folder, index)
    _report(index, text, time.perf_counter() - start)


def _fill(output: Path, text: SplitCorpus, source: dict[str, Any], overwrite: bool) -> bool:
    """Make the folder, and let nobody else do so meanwhile; False if it is made already."""
    path = output.resolve().with_name(f".{output.name}.lock")
    try:
        with Lock(output, path, "--output"):
            _clear(output)
            if _is_done(output, source, overwrite):
                return False
            _build(output, text, source)
            return True
    except OSError as error:
        raise DiskError(f"cannot write {output}: {error}") from error


def prepare(
    input: str | None = None,
    output: Path | None = None,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    val_ratio: float = 0.2,
    test_ratio: float = 0.0,
    seed: int = 1337,
    text_field: str = "text",
    for_config: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Turn text into token files that training reads.

    Args:
        input: sotu-tiny, sotu-medium, grammar or grammar:N (N documents); or a text file, a .jsonl
            file, a folder of such, or a quoted pattern such as 'books/*.txt'.
        output: the folder to make, for example data/mine.
        tokenizer: char, byte, bpe (trained on the train split), or a tokenizer.json.
        vocab_size: number of ids of a bpe; if not given, chosen by the amount of text.
        val_ratio: share of the documents for validation; of the bytes, if there is one document.
        test_ratio: share for a test split; 0 makes none.
        seed: of the choice of documents, and of the grammar.
        text_field: the field of a JSON line that holds its text.
        for_config: instead of input and output: prepare what this config's data.path needs.
        overwrite: replace a folder that was prepared before.
    """
    if for_config is not None:
        output = _read_data_path(for_config)
        if (output / "index.json").exists() and not overwrite:
            _read_whole(output, every_block=False)  # `make train` comes by here each time
            print(f"{output} is prepared already")
            return
        input = _preset_of(output, for_config)
    if not input or output is None:
        raise ConfigError("prepare needs --input TEXT and --output FOLDER (or --for_config FILE)")
    text = SplitCorpus(open_corpus(input, seed, text_field), val_ratio, test_ratio, seed)
    source = _source(input, text, tokenizer, vocab_size, text_field)
    if _fill(output, text, source, overwrite):
        _say_next(output, for_config)
    else:
        print(f"{output} is prepared already")
