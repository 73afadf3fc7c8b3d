"""The words of a verdict: what is known of a run, what a run shows, what to try, its phases."""

from dataclasses import dataclass

# Name of a fault -> what to try. A fault makes a run unhealthy.
FAULTS = {
    "nonfinite": "lower the learning rate, add warmup, clip gradients at 1.0, or compute in bf16 "
    "or fp32.",
    "initial_loss": "initialise the output layer smaller, or with zeros.",
    "overlap": "remove duplicate documents before the split.",
    "repeated_data": "remove duplicates from the training text.",
    "overfitting": "stop earlier, use more text, fewer epochs, dropout, or a smaller model.",
    "memorising": "use more text, fewer epochs, dropout, or a smaller model.",
    "spike_not_recovered": "go back to a checkpoint before the jump, with a lower learning rate "
    "or with gradients clipped at 1.0.",
    "missing_warmup": "set model.schedule.warmup_steps to 5 to 20 % of the run; if nothing "
    "changes, lower the learning rate.",
    "learning_rate_too_high": "lower the learning rate by 3 to 10 times, add warmup, or clip "
    "gradients at 1.0.",
    "learning_rate_too_low": "raise the learning rate by 10 times; if that changes nothing, look "
    "whether all parameters are trained.",
    "shuffled_labels": "look whether each target is the token after its input; if it is, whether "
    "the blocks are trained, at another learning rate.",
    "model_too_small": "use a wider or deeper model.",
}
# Name of a note -> what to try; empty where there is nothing to do.
NOTES = {
    "too_short": "log more often, or train longer.",
    "trained_before": "",
    "gap": "more text, dropout or early stopping, if validation stops falling.",
    "spike_recovered": "nothing, if it stays rare; otherwise clip gradients at 1.0.",
    "noise": "",
    "plateau": "stop earlier; a larger model or more text would go lower.",
    "too_slow": "train longer, or raise the learning rate or the batch size.",
    "undertrained": "more steps or a smaller model.",
    "overtrained": "a larger model, if it may cost more to use.",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a run shows."""

    name: str  # as "overfitting"; stable, for scripts
    fault: bool  # whether it makes the run unhealthy; a note does not
    says: str  # one plain sentence with its evidence: step ranges and figures
    advice: str  # what to try, in one sentence; empty where there is nothing to do
    steps: tuple[int, int]  # first and last step of the evidence


def conclude(name: str, says: str, first_step: int, last_step: int) -> Finding:
    """The fault or note of this name, with its evidence and the advice that belongs to it."""
    advice = {**FAULTS, **NOTES}[name]
    return Finding(name, name in FAULTS, says, advice, (int(first_step), int(last_step)))


@dataclass(frozen=True)
class Facts:
    """What is known of a run beyond its curves; None where it is unknown.

    Losses are in nats per token. A window is as many tokens as have 120 bytes, and at least 32:
    shorter windows repeat by chance in any text.
    """

    max_steps: int | None = None
    warmup_steps: int | None = None
    optimizer: str | None = None  # class name, as "AdamW"
    vocab_size: int | None = None
    parameters: int | None = None
    tokens: int | None = None  # training tokens read so far
    passes: float | None = None  # epochs of the training data
    unigram_loss: float | None = None  # validation loss of training token frequencies
    bigram_loss: float | None = None  # validation loss of training token pairs
    overlap_share: float | None = None  # share of validation windows found in the training text
    repeated_share: float | None = None  # share of training windows found there more than once
    copied_tokens: int | None = None  # longest span of a sample that is in the training text
    copied_text: str | None = None  # that span as text


@dataclass(frozen=True)
class Phase:
    """A stretch of a healthy curve."""

    name: str
    first_step: int
    last_step: int
    says: str
