"""The words of a verdict: what is known of a run, what a run shows, what to try, its phases."""

from dataclasses import dataclass, field
from typing import Any

# Name of a fault -> what to try. A fault makes a run unhealthy.
FAULTS = {
    "nonfinite": "lower the learning rate, add warmup, clip gradients at 1.0, or compute in bf16 "
    "or fp32.",
    "standstill": "look at the learning rate and its schedule, at which parameters the optimizer "
    "has, and whether its steps are made.",
    "wrong_targets": "look whether each target is the token after its input; if it is, look "
    "whether all parameters are trained, and try another learning rate.",
    "other_tokens": "look at what changes ids between the prepared text and the model: another "
    "tokenizer, a clip, a callback.",
    "padding": "pack documents one after the other instead of filling each sequence up.",
    "reads_ahead": "look at the attention mask, and at all else that mixes positions: the tokens "
    "to predict are among the inputs.",
    "double_softmax": "return logits from the net: the loss makes probabilities of them itself.",
    "reload_differs": "look whether the checkpoint holds all state of the net, whether the net is "
    "in eval mode during validation, and whether validation reads the validation text.",
    "too_good": "look for validation text in the training text, and for inputs that hold what is "
    "to be predicted (lmtemplate doctor --config checks the net).",
    "initial_loss": "initialise the output layer smaller, or with zeros.",
    "overlap": "remove duplicate documents before the split.",
    "repeated_data": "remove duplicates from the training text, and from its batches.",
    "parameters_not_trained": "look whether they are in the optimizer, require gradients, and are "
    "used (lmtemplate doctor --config checks the net).",
    "extreme_setting": "set it back to its default.",
    "gradients_pile_up": "set gradients to zero after each step.",
    "overfitting": "stop earlier, use more text, fewer epochs, dropout, or a smaller model.",
    "memorising": "use more text, fewer epochs, dropout, or a smaller model.",
    "training_text_changes": "shuffle the training text: texts of one kind are read one after the "
    "other.",
    "spike_not_recovered": "go back to a checkpoint before the jump, with a lower learning rate "
    "or with gradients clipped at 1.0.",
    "missing_warmup": "set model.schedule.warmup_steps to 5 to 20 % of the run; if that changes "
    "nothing, lower the learning rate.",
    "learning_rate_too_high": "lower the learning rate by 3 to 10 times, add warmup, or clip "
    "gradients at 1.0.",
    "learning_rate_too_low": "raise the learning rate by 10 times; if that changes nothing, look "
    "whether all parameters are trained.",
    "not_learning": "look at the loss, the mask and the inputs rather than at the learning rate; "
    "let the model memorise one batch (lmtemplate doctor --config does so).",
    "model_too_small": "use a wider or deeper model.",
    "validation_lost": "look whether validation reads text of the same kind as training, with the "
    "same tokenizer, and with the net in eval mode.",
    "training_differs": "look at the loss, at dropout, and at what changes the training batches.",
}
# Name of a note -> what to try; empty where there is nothing to do.
NOTES = {
    "too_short": "log more often, or train longer.",
    "trained_before": "",
    "rereading": "",
    "gap": "if validation stops falling, use more text, a smaller model, dropout or early stopping.",
    "spike_recovered": "nothing, if it stays rare; otherwise clip gradients at 1.0.",
    "noise": "",
    "plateau": "stop earlier; to go lower, use a larger model or more text.",
    "too_slow": "train longer, or raise the learning rate or the batch size.",
    "clipped": "clip gradients at 1.0, and look whether the loss ends lower.",
    "overtrained": "use a larger model, if it may cost more to use.",
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
    train_unigram_loss: float | None = None  # training loss of training token frequencies
    copied_tokens: int | None = None  # longest span of a sample that is in the training text
    copied_text: str | None = None  # that span as text
    checkpoint_step: int | None = None  # of the weights that all below was measured with
    ahead: float | None = None  # change of logits when later tokens change, beside their size
    is_random: bool | None = None  # whether the net in eval mode gives other logits each time
    is_probability: bool | None = None  # whether the net's outputs are probabilities, no logits
    val_measured: float | None = None  # its loss on the validation text, measured anew
    val_error: float | None = None  # standard deviation of that for the whole text
    train_measured: float | None = None  # and on the training text
    train_error: float | None = None
    shift: int | None = None  # tokens ahead that it predicts best; 1 is the next token
    shift_loss: float | None = None  # and its loss for those
    tensors: int | None = None  # trainable parameter tensors
    still_tensors: tuple[str, ...] | None = None  # those that have not moved since step 0
    settings: dict[str, Any] = field(default_factory=dict)  # config.yaml, as "data.path" -> value


@dataclass(frozen=True)
class Phase:
    """A stretch of a healthy curve."""

    name: str
    first_step: int
    last_step: int
    says: str
