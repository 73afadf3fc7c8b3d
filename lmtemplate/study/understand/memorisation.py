"""Samples, training text, other text -> the longest verbatim copy, beside what chance gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmtemplate.data import Ints
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.errors import DataError
from lmtemplate.study.diagnose.artifacts import Model, RunCorpus
from lmtemplate.study.diagnose.evidence import SAMPLE_TOKENS, TRAINING_TOKENS, write_samples
from lmtemplate.study.diagnose.ngrams import longest_copy


def find_copies(texts: Sequence[Ints], training: Ints, tokenizer: Tokenizer) -> dict[str, Any]:
    """Texts of ids, one or more -> the longest span of each that occurs in the training ids."""
    copies = [longest_copy([text], training) for text in texts]
    longest = max(copies, key=len)
    text = tokenizer.decode(longest.tolist())
    return {
        "texts": len(texts),
        "tokens": sum(map(len, texts)),
        "median_copy": float(np.median([len(copy) for copy in copies])),  # tokens
        "longest_copy": len(longest),
        "characters": len(text),
        "text": text,
    }


def memorisation(model: Model, corpus: RunCorpus) -> list[dict[str, Any]]:
    """Samples of a model, and pieces of validation text as long, searched in the training text.

    The pieces, which were never trained on, are evenly spaced: what they share is chance. Raises
    DataError where the validation text is shorter than one.
    """
    training = corpus.training_tokens(TRAINING_TOKENS)
    samples = write_samples(model, training, SAMPLE_TOKENS)
    held_out, size = corpus.validation_tokens(TRAINING_TOKENS), max(map(len, samples))
    if len(held_out) < size:
        raise DataError(f"{corpus.folder} has too little validation text for {size} tokens")
    starts = np.linspace(0, len(held_out) - size, len(samples)).astype(np.int64)
    pieces = [held_out[s : s + len(text)] for s, text in zip(starts, samples, strict=True)]
    return [
        {"of": name, **find_copies(texts, training, model.tokenizer)}
        for name, texts in (("samples", samples), ("validation text", pieces))
    ]
