"""What `plan` predicted of a run, kept in its config for the card at its end (`show/summary.py`)."""

from lightning.pytorch import Callback

from lmtemplate.errors import ConfigError


class Planned(Callback):
    """Does nothing in training.

    Args:
        tokens_per_second: that training should reach.
        val_loss: nats per token at the end, by a law of other text; null for none.
    """

    def __init__(self, tokens_per_second: float, val_loss: float | None = None) -> None:
        if not tokens_per_second > 0:
            raise ConfigError(f"planned.tokens_per_second={tokens_per_second:g} has to be above 0")
