"""Samples, training text, other text -> the longest verbatim copy, beside what chance gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmtemplate.data import Ints
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.errors import DataError
from lmtemplate.study.diagnose.artifacts import Model, RunCorpus
from lmtemplate.study.diagnose.evidence import SAMPLE_TOKENS, TRAINING_TOKENS, write_samples
from lmtemplate.study.diagnose.ngrams import longest_copy


@dataclass(frozen=True)
class Copies:
    """Verbatim copies of training text in some texts; lengths are in tokens."""

    texts: int
    tokens: int  # of all texts
    longest: int
    median: float  # of the longest copy in each text
    characters: int
    text: str  # the longest copy


@dataclass(frozen=True)
class Memorisation:
    """What samples copy, and what as much validation text, which was never trained on, shares."""

    training_tokens: int  # that were searched
    samples: Copies
    chance: Copies


def find_copies(texts: Sequence[Ints], training: Ints, tokenizer: Tokenizer) -> Copies:
    """Texts of ids, one or more -> the longest span of each that occurs in the training ids."""
    copies = [longest_copy([text], training) for text in texts]
    longest = max(copies, key=len)
    text = tokenizer.decode(longest.tolist())
    median = float(np.median([len(copy) for copy in copies]))
    size = sum(map(len, texts))
    return Copies(len(texts), size, len(longest), median, len(text), text)


def memorisation(model: Model, corpus: RunCorpus) -> Memorisation:
    """Samples of a model, and pieces of validation text as long, searched in the training text.

    The pieces are evenly spaced. Raises DataError where the validation text is shorter than one.
    """
    training = corpus.training_tokens(TRAINING_TOKENS)
    samples = write_samples(model, training, SAMPLE_TOKENS)
    held_out, size = corpus.validation_tokens(TRAINING_TOKENS), max(map(len, samples))
    if len(held_out) < size:
        raise DataError(f"{corpus.folder} has too little validation text for {size} tokens")
    starts = np.linspace(0, len(held_out) - size, len(samples)).astype(np.int64)
    pieces = [held_out[s : s + len(text)] for s, text in zip(starts, samples, strict=True)]
    tokenizer = model.tokenizer
    found = find_copies(samples, training, tokenizer)
    return Memorisation(len(training), found, find_copies(pieces, training, tokenizer))
