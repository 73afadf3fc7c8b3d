"""Texts -> a tokenizer: their characters, a BPE trained on them, bytes, or a tokenizer.json."""

import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmtemplate.data.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    LibraryTokenizer,
    Tokenizer,
    code_points,
    load_tokenizer,
    to_bytes,
)
from lmtemplate.errors import ConfigError

# (megabytes of text at most, ids of a trained BPE): 4 x the text doubles the ids.
AUTOMATIC_VOCABULARY = ((0.5, 512), (2, 1024), (8, 2048), (32, 4096), (128, 8192), (512, 16384))
LARGEST_AUTOMATIC_VOCABULARY = 32768
SMALLEST_BPE_VOCABULARY = 257  # 256 bytes and end-of-text


def _train_char(texts: Iterable[str]) -> Tokenizer:
    seen = np.zeros(0x110000, dtype=bool)
    for text in texts:
        seen[code_points(text)] = True
    return CharTokenizer("".join(map(chr, np.flatnonzero(seen))))


def _keep_first_ids(trained: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The first `vocab_size` ids of a trained BPE: merging is greedy, so fewer ids are a prefix."""
    model = trained["model"]
    ids: dict[str, int] = model["vocab"]
    if len(ids) > vocab_size:
        made = [ids[left + right] for left, right in model["merges"]]
        model["merges"] = model["merges"][: made.index(vocab_size - 1) + 1]
        model["vocab"] = {piece: number for piece, number in ids.items() if number < vocab_size}
    return trained


def _train_bpe(texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting of words: any text comes back as it was."""
    if vocab_size is not None and vocab_size < SMALLEST_BPE_VOCABULARY:
        raise ConfigError(
            f"--vocab_size {vocab_size} is too small for bpe: 256 bytes and end-of-text "
            f"need {SMALLEST_BPE_VOCABULARY}"
        )
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or LARGEST_AUTOMATIC_VOCABULARY,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    megabytes = 0.0

    def measured() -> Iterator[str]:
        nonlocal megabytes
        for text in texts:
            megabytes += len(to_bytes(text)) / 1e6
            yield text

    library.train_from_iterator(measured(), trainer)
    trained = json.loads(library.to_str())
    if vocab_size is None:
        fitting = (size for limit, size in AUTOMATIC_VOCABULARY if megabytes <= limit)
        trained = _keep_first_ids(trained, next(fitting, LARGEST_AUTOMATIC_VOCABULARY))
    return LibraryTokenizer(json.dumps(trained, ensure_ascii=False))


def train_tokenizer(kind_or_file: str, texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    """A tokenizer for these texts, which are read once, as a stream, and only if needed.

    Args:
        kind_or_file: "char" (every character of the texts), "byte", "bpe" (trained on the texts),
            or the path of a tokenizer.json.
        texts: documents, or parts of documents, of the train split.
        vocab_size: ids of a trained BPE, end-of-text included; fewer come out if the texts have no
            more pairs that occur twice. None chooses by the amount of text (AUTOMATIC_VOCABULARY).

    Raises ConfigError for an unknown kind or an impossible size, DataError for an unusable file.
    """
    if kind_or_file == "bpe":
        return _train_bpe(texts, vocab_size)
    if vocab_size is not None:
        raise ConfigError(
            f"--vocab_size {vocab_size} is for --tokenizer bpe; remove it for {kind_or_file}"
        )
    if kind_or_file == "char":
        return _train_char(texts)
    if kind_or_file == "byte":
        return ByteTokenizer()
    if not Path(kind_or_file).is_file():
        close = difflib.get_close_matches(kind_or_file, ("char", "byte", "bpe"), n=1)
        hint = f"did you mean {close[0]}?" if close else "give one of these"
        problem = "is neither char, byte, bpe nor a file"
        raise ConfigError(f"--tokenizer {kind_or_file} {problem}: {hint}")
    return load_tokenizer(Path(kind_or_file))
