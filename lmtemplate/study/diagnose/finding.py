"""The words of a verdict: what a run shows, what is known of it, the phases of its curve."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows.

    Attributes:
        name: as "overfitting"; stable, for scripts.
        fault: whether it makes the run unhealthy; a note does not.
        says: one plain sentence with its evidence: step ranges and figures.
        advice: what to try, in one sentence; empty where there is nothing to do.
        steps: first and last step of the evidence.
    """

    name: str
    fault: bool
    says: str
    advice: str
    steps: tuple[int, int]


@dataclass(frozen=True)
class Facts:
    """What is known of a run beyond its curves; None where it is not."""

    max_steps: int | None = None
    warmup_steps: int | None = None
    optimizer: str | None = None  # its class, as "AdamW"
    vocab_size: int | None = None
    parameters: int | None = None
    tokens: int | None = None  # trained on
    passes: float | None = None  # over the training data
    unigram_loss: float | None = None  # nats per validation token under the training text's counts
    bigram_loss: float | None = None
    # Windows of 120 bytes and 32 tokens at least: shorter ones come again in any text, by chance.
    overlap_share: float | None = None  # of validation windows that stand in the training text
    repeated_share: float | None = None  # of training windows that stand there more than once
    # Samples should be twice such a window long: a copy counts from a whole window on.
    copied_tokens: int | None = None  # longest span of a sample that stands in the training text
    copied_text: str | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of a healthy curve."""

    name: str
    first_step: int
    last_step: int
    says: str
