"""The grammar's rules -> its entropy, the information of a text, and what was held out."""

import math
from collections.abc import Iterable

from lmtemplate.data.formats.grammar import CONTINUE, SEAT, UNSEEN, Grammar, rules


def entropy(probabilities: Iterable[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities)


def entropy_per_sentence() -> float:
    """Nats per sentence, with the choice whether another follows (chain rule of entropy)."""
    total = sum(weight for weight, _, _ in rules())
    nats = entropy((CONTINUE, 1 - CONTINUE))
    nats += entropy(weight / total for weight, _, _ in rules())
    for weight, _, choices in rules():
        nats += weight / total * sum(entropy(choice.values()) for choice in choices)
    return nats


def information(grammar: Grammar, document: str) -> float:
    """Nats of exactly this document, its end included: minus the log of its probability.

    Its mean over documents is entropy_per_sentence() / (1 - CONTINUE). Raises ValueError for a
    text that the grammar never produces.
    """
    sentences = document.split("\n")
    nats = -math.log(1 - CONTINUE) - (len(sentences) - 1) * math.log(CONTINUE)
    for sentence in sentences:
        if sentence not in grammar.probabilities:
            raise ValueError(f"not a sentence of the grammar: {sentence!r}")
        nats -= math.log(grammar.probabilities[sentence])
    return nats


def unseen_sentences() -> list[str]:
    """Sentences held out: grammatical, every part common, yet of probability zero."""
    return [SEAT.format(*pair) for pair in UNSEEN]
