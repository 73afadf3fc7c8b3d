"""Record, facts, corpus -> the four questions that a person asks about a run, with their figures.

They describe; a run with a cross here need not be faulty, it may only be young.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from lmtemplate.record import Floats, Record
from lmtemplate.study.diagnose import thresholds as limit
from lmtemplate.study.diagnose.artifacts import RunCorpus
from lmtemplate.study.diagnose.finding import Facts

LOST = 0.1  # a loss may rise again by this share of its fall
GAINED = 0.5  # this share of the words that an untrained model gets wrong must be real words
UNTRAINED = 0.9  # above this share of real words before training, the samples tell nothing
TEXT_BYTES = 2_000_000  # words are collected from this much training text and validation text


@dataclass(frozen=True)
class SanityCheck:
    """One question. `passed` is None where the run does not tell."""

    name: str
    passed: bool | None
    says: str


def _falls(name: str, losses: Floats, word: str, rows: int) -> SanityCheck:
    """Whether losses end below their first, and not far above their lowest.

    In few rows, a rise that leaves the last below the first may be noise.
    """
    first, lowest, last = losses[0], losses.min(), losses[-1]
    says = f"{first:.2f} -> {last:.2f}{word} {lowest:.2f}"
    fall, rise = first - lowest, last - lowest
    if fall <= 0:
        return SanityCheck(name, False, f"{says}: it has not fallen")
    if rise <= LOST * fall:
        return SanityCheck(name, True, says)
    says += f": of its fall, {rise / fall:.0%} is lost again (more than {LOST:.0%})"
    is_noise = rows < limit.ROWS and last < first
    few = f", but {rows} rows are too few to judge" if is_noise else ""
    return SanityCheck(name, None if is_noise else False, says + few)


def loss_check(record: Record) -> SanityCheck:
    """Mean training loss of each tenth of the rows."""
    name = "Loss decreasing over time"
    if len(record) < 2:
        return SanityCheck(name, None, "too few log points")
    parts = np.array_split(record.train_loss, min(10, len(record)))
    tenths = np.array([part.mean() for part in parts])
    return _falls(name, tenths, " (first and last tenth), lowest tenth", len(record))


def validation_check(record: Record) -> SanityCheck:
    """Validation losses, from the one before step 1 on."""
    name = "Validation loss improving"
    losses = record.validations[1]
    if record.initial_val_loss is not None:
        losses = np.insert(losses, 0, record.initial_val_loss)
    if len(losses) < 2:
        return SanityCheck(name, None, "fewer than two validations")
    return _falls(name, losses, ", best", len(record))


def baselines(record: Record, facts: Facts) -> dict[str, float | None]:
    """The best validation loss after step 0 and what to compare it with, in nats per token."""
    losses = record.validations[1]
    return {
        "validation": float(losses.min()) if len(losses) else None,
        "uniform": math.log(facts.vocab_size) if facts.vocab_size else None,
        "unigram": facts.unigram_loss,
        "bigram": facts.bigram_loss,
    }


def prediction_check(record: Record, facts: Facts) -> SanityCheck:
    """Accuracy before training and at best, and the loss beside what counting reaches."""
    passed, says = list[bool](), list[str]()
    accuracy = record.values.get("val/accuracy", np.zeros(0))
    accuracy = accuracy[~np.isnan(accuracy)]
    first = record.initial.get("val/accuracy")
    if len(accuracy) and first is not None:
        passed.append(bool(accuracy.max() > first))
        says.append(f"accuracy {first:.1%} -> {accuracy.max():.1%}")
    best, unigram = baselines(record, facts)["validation"], facts.unigram_loss
    if best is not None and unigram is not None:
        passed.append(best < unigram)
        verb = "beats" if best < unigram else "does not beat"
        against = f"token frequencies ({unigram:.2f})"
        if facts.bigram_loss is not None and best < facts.bigram_loss:
            verb, against = "beats", f"token pairs ({facts.bigram_loss:.2f})"
        says.append(f"loss {best:.2f} {verb} {against}")
    name = "Predictions getting better"
    return SanityCheck(name, all(passed) if passed else None, ", ".join(says) or "not known")


def words_of(text: str) -> list[str]:
    """Words in lower case, without digits and punctuation."""
    return re.findall(r"[^\W\d_]+", text.lower())


def known_words(corpus: RunCorpus) -> set[str]:
    """Words of the training and validation text, or of a sample. Raises DataError if damaged.

    Empty where few words come again: numbers, DNA, languages without spaces.
    """
    most = int(TEXT_BYTES / corpus.bytes_per_token)
    texts = (corpus.training_tokens(most), corpus.validation_tokens(most))
    written = [word for ids in texts for word in words_of(corpus.tokenizer.decode(ids.tolist()))]
    counts = Counter(written)
    again = sum(count for count in counts.values() if count > 1)
    return set(counts) if 2 * again > len(written) else set()


def word_share(samples: Mapping[str, str], known: Set[str]) -> float | None:
    """Share of the words in continuations (prompt -> continuation) that are known.

    None without words. A sample's last word is left out: it may have been cut.
    """
    written = list[str]()
    for prompt, continuation in samples.items():
        written += words_of(prompt + continuation)[len(words_of(prompt)) : -1]
    return sum(word in known for word in written) / len(written) if written else None


def text_check(record: Record, known: Set[str] | None) -> SanityCheck:
    """Share of the samples' words that the corpus has, before training and at the end."""
    name = "Model generating reasonable text"
    if not record.samples or not known:
        reason = "no corpus to compare with" if known is None else "its corpus has few words"
        return SanityCheck(name, None, "no samples" if known else reason)
    last = word_share(record.samples[max(record.samples)], known)
    first = word_share(record.samples.get(0, {}), known)
    if last is None:
        return SanityCheck(name, None, "the samples have no words")
    if first is not None and min(first, last) > UNTRAINED:
        return SanityCheck(name, None, f"{first:.0%} of the words were known before training")
    before = "" if first is None else f", {first:.0%} untrained"
    gained = last - (first or 0.0) >= GAINED * (1 - (first or 0.0))
    says = f"{last:.0%} of the words it writes stand in the corpus{before}"
    return SanityCheck(name, gained or None, says)  # a young model that is sound writes as much


def check_all(record: Record, facts: Facts, known: Set[str] | None) -> tuple[SanityCheck, ...]:
    """The four questions in their order; `known` are the words of the corpus, None without it."""
    return (
        loss_check(record),
        validation_check(record),
        prediction_check(record, facts),
        text_check(record, known),
    )
