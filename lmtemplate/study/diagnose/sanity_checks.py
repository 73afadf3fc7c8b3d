"""Record, facts, corpus -> the four questions that a person asks a run, each with its figure.

They describe; a run with a cross here need not be at fault, it may only be young.
"""

import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from lmtemplate.record import Record
from lmtemplate.study.diagnose.artifacts import Corpus
from lmtemplate.study.diagnose.finding import Facts

LOST = 0.1  # share of the way down that may be lost again
GAINED = 0.5  # share of the words, beyond those of an untrained model, that have to be real
TEXT_BYTES = 2_000_000  # of the training text, and of the validation text, whose words count


@dataclass(frozen=True)
class Check:
    """One question. `passed` is None where the run does not tell."""

    name: str
    passed: bool | None
    says: str


def _falls(first: float, lowest: float, last: float) -> bool:
    return bool(lowest < first and last - lowest <= LOST * (first - lowest))


def loss_check(record: Record) -> Check:
    """Mean training loss of the first tenth of the rows, the lowest tenth, the last tenth."""
    name = "Loss decreasing over time"
    if len(record) < 2:
        return Check(name, None, "too few log points")
    parts = np.array_split(record.train_loss, min(10, len(record)))
    tenths = np.array([part.mean() for part in parts])
    first, lowest, last = tenths[0], tenths.min(), tenths[-1]
    says = f"{first:.2f} -> {last:.2f} (first and last tenth), lowest {lowest:.2f}"
    return Check(name, _falls(first, lowest, last), says)


def validation_check(record: Record) -> Check:
    """First, lowest and last validation loss."""
    name = "Validation loss improving"
    losses = record.validations[1]
    if record.initial_val_loss is not None:
        losses = np.insert(losses, 0, record.initial_val_loss)
    if len(losses) < 2:
        return Check(name, None, "fewer than two validations")
    first, lowest, last = losses[0], losses.min(), losses[-1]
    says = f"{first:.2f} -> {last:.2f}, best {lowest:.2f}"
    return Check(name, _falls(first, lowest, last), says)


def best_val_loss(record: Record) -> float | None:
    """The lowest validation loss after step 0."""
    losses = record.validations[1]
    return float(losses.min()) if len(losses) else None


def prediction_check(record: Record, facts: Facts) -> Check:
    """Accuracy before and at best, and the loss beside what counting reaches."""
    name, passed, says = "Predictions getting better", list[bool](), list[str]()
    accuracy = record.values.get("val/accuracy", np.zeros(0))
    accuracy = accuracy[~np.isnan(accuracy)]
    first = record.initial.get("val/accuracy")
    if len(accuracy) and first is not None:
        passed.append(bool(accuracy.max() > first))
        says.append(f"accuracy {first:.1%} -> {accuracy.max():.1%}")
    best = best_val_loss(record)
    if best is not None and facts.unigram_loss is not None:
        passed.append(best < facts.unigram_loss)
        counted = {"token pairs": facts.bigram_loss, "token frequencies": facts.unigram_loss}
        beaten = [f"{name} ({of:.2f})" for name, of in counted.items() if of and best < of]
        says.append(
            f"loss {best:.2f} beats {beaten[0]}"
            if beaten
            else f"loss {best:.2f} does not beat token frequencies ({facts.unigram_loss:.2f})"
        )
    return Check(name, all(passed) if passed else None, ", ".join(says) or "not known")


def words_of(text: str) -> list[str]:
    """Words in lower case, without digits and punctuation."""
    return re.findall(r"[^\W\d_]+", text.lower())


def known_words(corpus: Corpus) -> set[str]:
    """Words of the training and validation text (the first megabytes of a large one's sample).

    Raises DataError where the corpus is damaged.
    """
    most = int(TEXT_BYTES / corpus.bytes_per_token)
    texts = (corpus.training_tokens(most), corpus.validation_tokens(most))
    return {word for ids in texts for word in words_of(corpus.tokenizer.decode(ids.tolist()))}


def word_share(samples: Mapping[str, str], known: Set[str]) -> float | None:
    """Share of the words in continuations (prompt -> continuation) that are known; None without
    words. A text's last word is left out: it may have been cut.
    """
    written = list[str]()
    for prompt, continuation in samples.items():
        written += words_of(prompt + continuation)[len(words_of(prompt)) : -1]
    return sum(word in known for word in written) / len(written) if written else None


def text_check(record: Record, known: Set[str] | None) -> Check:
    """Share of the samples' words that the corpus has, before training and at the end."""
    name = "Model generating reasonable text"
    if not record.samples or not known:
        return Check(name, None, "no samples" if known else "no corpus to compare with")
    last = word_share(record.samples[max(record.samples)], known)
    first = word_share(record.samples.get(0, {}), known)
    if last is None:
        return Check(name, False, "the samples have no words")
    before = "" if first is None else f", {first:.0%} untrained"
    gained = last - (first or 0.0) >= GAINED * (1 - (first or 0.0))
    return Check(name, gained, f"{last:.0%} of the words it writes stand in the corpus{before}")


def baselines(record: Record, facts: Facts) -> dict[str, float | None]:
    """The best validation loss and what it is measured by, in nats per token."""
    return {
        "validation": best_val_loss(record),
        "uniform": math.log(facts.vocab_size) if facts.vocab_size else None,
        "unigram": facts.unigram_loss,
        "bigram": facts.bigram_loss,
    }


def check_all(record: Record, facts: Facts, known: Set[str] | None) -> tuple[Check, ...]:
    """The four questions in their order.

    Args:
        record: of the run.
        facts: of the run.
        known: words of the corpus; None without it.
    """
    return (
        loss_check(record),
        validation_check(record),
        prediction_check(record, facts),
        text_check(record, known),
    )
