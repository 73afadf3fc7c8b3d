"""Text -> shards, tokenizer.json and index.json in one folder, split by document."""

import os
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from shlex import quote
from typing import Any

from lmtemplate.data.corpus import Corpus, open_corpus
from lmtemplate.data.formats import PRESETS
from lmtemplate.data.sampler import permute
from lmtemplate.data.shard_writer import Event, new_folder, recover, write_index, write_splits
from lmtemplate.data.shards import Shards, dtype_for, read_index
from lmtemplate.data.tokenizer import load_tokenizer, to_bytes
from lmtemplate.data.train_tokenizer import MOST_BYTES, automatic_vocab_size, train_tokenizer
from lmtemplate.errors import ConfigError, DataError, DiskError
from lmtemplate.run_dir import lock, write_text


class SplitCorpus:
    """The text of a corpus, each piece with its split; iterates over events, in bounded pieces.

    A single document is cut into parts: train, val, test. A corpus that prescribes its split has
    every 5th document in val, unless other shares than 0.2 and 0 are asked for. All other corpora
    are split by document, randomly, by `seed`; exact copies stay together. Both ratios are shares
    of the documents, or of the characters of a single one; a test_ratio of 0 makes no such split.
    """

    def __init__(self, corpus: Corpus, val_ratio: float, test_ratio: float, seed: int) -> None:
        if not (val_ratio > 0 and test_ratio >= 0 and val_ratio + test_ratio < 1):
            says = "the first has to be above 0, the second 0 or more, both together below 1"
            raise ConfigError(f"--val_ratio {val_ratio} --test_ratio {test_ratio}: {says}")
        if seed < 0:
            raise ConfigError(f"--seed {seed} has to be 0 or more")
        self.corpus, self.seed = corpus, seed
        self.val_ratio, self.test_ratio = val_ratio, test_ratio
        self.splits = ("train", "val", "test") if test_ratio else ("train", "val")

    def _split_of_each_document(self) -> Iterator[str]:
        """Exactly as many texts in each split as the ratios say, but 1 at least."""
        numbers, copies = self.corpus.texts, self.corpus.copies
        if self.corpus.every_fifth and (self.val_ratio, self.test_ratio) == (0.2, 0):
            yield from ("val" if number % 5 == 4 else "train" for number in numbers)
            return
        documents = len(numbers) - copies
        val = max(1, round(self.val_ratio * documents))
        test = max(1, round(self.test_ratio * documents)) if self.test_ratio else 0
        if val + test >= documents:
            without = f", not counting {copies:,} exact copies," if copies else ""
            says = "give more text, or join it in one file, which is then cut into parts"
            splits = " and ".join(self.splits)
            raise DataError(f"{documents} documents{without} are too few for {splits}; {says}")
        for rank in permute(numbers, documents, self.seed):
            yield "val" if rank < val else "test" if rank < val + test else "train"

    def _parts(self) -> Iterator[Event]:
        """The one document in parts of as many characters as the ratios say."""
        total = self.corpus.characters
        val, test = round(total * self.val_ratio), round(total * self.test_ratio)
        pieces = ((document.name, piece) for document in self.corpus for piece in document.pieces)
        name = rest = ""
        for split, left in zip(self.splits, (total - val - test, val, test), strict=False):
            while left:
                if not rest:
                    name, rest = next(pieces)
                part, rest = rest[:left], rest[left:]
                left -= len(part)
                yield split, name, part
            yield split, name, None
        for _ in pieces:  # at their end, the corpus looks whether its text has changed
            pass

    def __iter__(self) -> Iterator[Event]:
        if len(self.corpus.texts) == 1:
            yield from self._parts()
            return
        splits = chain(self._split_of_each_document(), repeat("train"))  # if the text has grown
        for document, split in zip(self.corpus, splits, strict=False):
            piece = None
            for piece in document.pieces:
                yield split, document.name, piece
            if piece is not None:  # an empty document leaves no trace
                yield split, document.name, None

    def training(self) -> Iterator[str]:
        """The text of the train split, in pieces."""
        return (piece for split, _, piece in self if split == "train" and piece is not None)


def _asked_by(config: Path) -> tuple[str, Path]:
    """The preset that a config's data.path is named after, and that folder.

    Raises ConfigError without data.path, DataError, with what to type, for any other name.
    """
    from lmtemplate.cli_words import find, read_config

    if not (path := find("data.path", read_config(config)[1]).value):
        raise ConfigError(f"{config} has no data.path; give --input and --output")
    folder = Path(path)
    if not (folder / "index.json").exists() and folder.name not in PRESETS:
        tokenizer = "char" if folder.name.endswith("char") else "bpe"
        command = f"make data INPUT=your.txt NAME={quote(folder.name)} TOKENIZER={tokenizer}"
        raise DataError(f"{config} reads {folder}, which is not prepared; type: {command}")
    return folder.name, folder


def _is_done(output: Path, source: dict[str, Any], overwrite: bool) -> bool:
    """Whether `output` holds this very corpus. Raises an error for what should not be lost."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    if not (output / "index.json").is_file():
        raise ConfigError(f"{output} is there, and not made by prepare; choose another --output")
    if overwrite and any(output.glob("*_000000.bin")):  # shards, whatever is wrong with them
        return False
    try:
        index = read_index(output)
        for split in index["splits"]:
            for shard in Shards(output, split, index).shards:
                shard.verify_all()
    except DataError as error:
        raise DataError(f"{error} (remove {output}, or give --overwrite true)") from error
    before = {**index.get("source", {}), "input": source["input"]}  # it may have moved
    changed = [key for key, value in source.items() if before.get(key) != value]
    changes = [f"{key} {before.get(key)}, now {source[key]}" for key in changed]
    if changes:
        says = "replace it by --overwrite true, or choose another --output"
        raise ConfigError(f"{output} was prepared from {'; '.join(changes)}; {says}")
    return True


def _build(output: Path, text: SplitCorpus, source: dict[str, Any]) -> None:
    """Train the tokenizer, write the folder, report."""
    corpus, file, pieces = text.corpus, "tokenizer.json", text.training()
    kind, vocab_size = source["tokenizer"], source["vocab_size"]
    if kind == "bpe":
        size = sum(len(to_bytes(piece)) for piece in pieces)
        pieces = islice(text.training(), 0, None, 1 + size // MOST_BYTES)
        vocab_size = vocab_size or automatic_vocab_size(size)
    tokenizer = train_tokenizer(kind, pieces, vocab_size)
    with new_folder(output) as folder:
        write_text(folder / file, tokenizer.to_json())
        splits = write_splits(folder, text, text.splits, tokenizer, source["input"], corpus.size)
        left_out = {what: count for what, count in corpus.left_out.items() if count}
        index = {
            "dtype": dtype_for(tokenizer.vocab_size),
            "vocab_size": tokenizer.vocab_size,
            "eot_id": tokenizer.eot_id,
            "tokenizer": {"kind": tokenizer.kind, "file": file, "sha256": tokenizer.digest},
            "source": {**source, "left_out": left_out, "copies": corpus.copies},
            "splits": splits,
        }
        write_index(folder, index)
    print("split   documents           bytes          tokens  bytes/token  unknown")
    for split, entry in splits.items():
        print(
            f"{split:<6}{entry['documents']:>11,}{entry['bytes']:>16,}{entry['tokens']:>16,}"
            f"{entry['bytes'] / entry['tokens']:>13.2f}{entry['unknown']:>9,}"
        )
    size = sum(entry["bytes"] for entry in splits.values())
    says = [f"{name} {entry['bytes'] / size:.0%} of the bytes" for name, entry in splits.items()]
    files = {name for entry in splits.values() for name, _ in entry["sources"]}
    alone = [name for name in splits if splits[name]["documents"] == 1 and len(files) > 1]
    says += [f"{name} is {splits[name]['sources'][0][0]} alone" for name in alone]
    says += ["as one file the text would be cut into the splits"] * bool(alone)
    how = "by document" if len(corpus.texts) > 1 else "one document by characters"
    print(f"split {how}: {', '.join(says)}")
    if left_out:
        print("left out:", ", ".join(f"{count:,} {what}" for what, count in left_out.items()))
    if corpus.copies:
        print(f"exact copies of other documents, in the same split as these: {corpus.copies:,}")
    print(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size:,} ids")


def _fill(output: Path, text: SplitCorpus, source: dict[str, Any], overwrite: bool) -> None:
    """Make the folder, unless it is made already, and let nobody else do so meanwhile."""
    if Path(source["tokenizer"]).is_file():
        source["tokenizer_sha256"] = load_tokenizer(Path(source["tokenizer"])).digest
    try:
        place = Path(os.path.realpath(output))  # of a loop of links, too
        beside = place.with_name(f".{place.name}.lock")
    except ValueError as error:  # a NUL, half a surrogate pair, the root of all folders
        raise ConfigError(f"--output {str(output)!r:.200} is no folder to make: {error}") from error
    try:
        with lock(output, beside, "--output"):
            recover(output)
            done = _is_done(output, source, overwrite)
            if not done:
                _build(output, text, source)
            print(f"{output} is {'prepared already' if done else 'ready'}")
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
    format: str | None = None,
    text_field: str = "text",
    skip_bad_lines: bool = False,
    for_config: Path | None = None,
    overwrite: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Turn text into token files that training reads.

    Args:
        input: sotu-tiny, sotu-medium, grammar or grammar:N (N documents); or a text file, a .jsonl
            file, a folder of such, or a quoted pattern such as 'books/*.txt'.
        output: the folder to make, for example data/mine.
        tokenizer: char, byte, bpe (trained on the train split), or a tokenizer.json.
        vocab_size: number of ids of a bpe; if not given, chosen by the amount of text.
        val_ratio: share of the documents for validation; of the text, if it is one document.
        test_ratio: share for a test split; 0 makes none.
        seed: of the choice of documents, and of the grammar.
        format: the format of all files: jsonl, or text, which takes tables and markup too, as they
            are; or your own reader, such as mypackage.fasta.read; if not given, by file name.
        text_field: the field of a JSON line that holds its text.
        skip_bad_lines: leave out JSON lines without text, and say how many these are.
        for_config: instead of input and output: prepare what this config's data.path needs.
        overwrite: replace a folder that was prepared before.
        allow: packages outside lmtemplate whose function `format` may name.
    """
    input, output = _asked_by(for_config) if for_config else (input, output)
    if not input or output is None:
        raise ConfigError("prepare needs --input TEXT and --output FOLDER (or --for_config FILE)")
    if for_config and (output / "index.json").exists() and not overwrite:
        read_index(output)  # `make train` comes by here each time
        print(f"{output} is prepared already")
        return
    corpus = open_corpus(input, seed, text_field, format, allow or [], skip_bad_lines)
    automatic = corpus.vocab_size if tokenizer == "bpe" else None
    source: dict[str, Any] = {"input": input, "format": format, "text_field": text_field}
    source |= {"tokenizer": tokenizer, "val_ratio": val_ratio, "test_ratio": test_ratio}
    source |= {"seed": seed, "vocab_size": vocab_size or automatic, "text": corpus.signature}
    _fill(output, SplitCorpus(corpus, val_ratio, test_ratio, seed), source, overwrite)
    if not for_config:
        run = f"--data.path {quote(str(output))} --run_dir {quote(f'runs/{output.name}')}"
        print(f"next: make train ARGS={quote(run)}")
