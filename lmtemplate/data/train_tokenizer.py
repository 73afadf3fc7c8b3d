"""Texts -> a tokenizer: their characters, a BPE trained on them, bytes, or a tokenizer.json."""

import math
from collections.abc import Iterable
from pathlib import Path
from threading import Thread

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lmtemplate.data.tokenizer import (
    END_OF_TEXT,
    MOST_IDS,
    ByteTokenizer,
    CharTokenizer,
    LibraryTokenizer,
    Tokenizer,
    code_points,
    load_tokenizer,
)
from lmtemplate.errors import ConfigError, DataError

LARGEST_AUTOMATIC_VOCABULARY = 32768
MOST_BYTES = 2**25  # of text that a BPE is trained on: more changes little, and takes minutes
# Bytes that a BPE sees of a word at once: a merge rewrites the whole word, and DNA, base64 or
# Chinese may be one word. A multiple of 2, 3 and 4 cuts few characters of UTF-8.
LONGEST_WORD = 60


def automatic_vocab_size(text_bytes: int) -> int:
    """Ids of a BPE for this much text: 512 for 0.5 MB, twice as many for 4 x the text."""
    doublings = math.ceil(math.log2(max(1, text_bytes / 500_000)) / 2)
    return min(512 * 2**doublings, LARGEST_AUTOMATIC_VOCABULARY)


def _train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting of words: any text comes back as it was.

    The library is deaf to Ctrl-C while it counts and merges, so it works in another thread.
    """
    if not 257 <= vocab_size <= MOST_IDS:
        says = f"a bpe has 257 or more, for all bytes and end-of-text, and at most {MOST_IDS:,}"
        raise ConfigError(f"--vocab_size {vocab_size}: {says}")
    library = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.Split(Regex(f".{{{LONGEST_WORD}}}"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([words, parts])
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    read, failed = list(texts), list[BaseException]()

    def work() -> None:
        try:
            library.train_from_iterator(read, trainer)
        except BaseException as error:  # a panic of the library is no Exception
            failed.append(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join()
    for error in failed:
        raise DataError(f"no BPE can be trained on this text: {error}") from error
    library.pre_tokenizer = words
    return LibraryTokenizer(library.to_str())


def train_tokenizer(kind_or_file: str, texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    """A tokenizer for these texts, which are read once, as a stream, and only if needed.

    It is "char" (every character of the texts), "byte", "bpe" (trained on the texts, of vocab_size
    ids, or fewer where no more pairs occur twice), or a tokenizer.json. Raises ConfigError for an
    unknown kind or an impossible size, DataError for an unusable file.
    """
    if kind_or_file == "bpe":
        return _train_bpe(texts, LARGEST_AUTOMATIC_VOCABULARY if vocab_size is None else vocab_size)
    if vocab_size is not None:
        says = f"is for --tokenizer bpe; remove it for {kind_or_file}"
        raise ConfigError(f"--vocab_size {vocab_size} {says}")
    if kind_or_file == "char":
        seen = np.zeros(0x110000, dtype=bool)
        for text in texts:
            seen[code_points(text)] = True
        return CharTokenizer("".join(map(chr, np.flatnonzero(seen))))
    if kind_or_file == "byte":
        return ByteTokenizer()
    if not Path(kind_or_file).is_file():
        raise ConfigError(f"--tokenizer {kind_or_file} is neither char, byte, bpe nor a file")
    return load_tokenizer(Path(kind_or_file))
