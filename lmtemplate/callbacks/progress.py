"""Running values -> a progress bar on a terminal; elsewhere a line per validation and minute."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from lmtemplate import metric_names
from lmtemplate.module import LitLanguageModel

FIRST_LINE_SECONDS = 5.0  # of training without a terminal, until the first line
LINE_SECONDS = 60.0  # between lines there
SHOWN = {
    metric_names.TRAIN_LOSS: ("loss", "{:.3f}"),
    metric_names.VAL_LOSS: ("val", "{:.3f}"),
    metric_names.VAL_BITS_PER_BYTE: ("bits/byte", "{:.3f}"),
    metric_names.TOKENS_PER_SECOND: ("tokens/s", "{:,.0f}"),
}
NEW_AT_STEPS = (metric_names.TRAIN_LOSS, metric_names.TOKENS_PER_SECOND)  # between validations


def shown(pl_module: LightningModule, names: Iterable[str] = SHOWN) -> dict[str, str]:
    """The newest of these values that a person wants to see, formatted."""
    latest = pl_module.latest if isinstance(pl_module, LitLanguageModel) else {}
    forms = {name: SHOWN[name] for name in names if name in latest}
    return {short: form.format(latest[name]) for name, (short, form) in forms.items()}


class ProgressBar(TQDMProgressBar):
    """Loss, validation loss, tokens/s and time left; refreshed rarely, for each refresh costs."""

    def __init__(self) -> None:
        self.on_terminal, self.next_line = sys.stdout.isatty(), 0.0
        super().__init__(refresh_rate=20 if self.on_terminal else 0)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        return shown(pl_module)

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.on_terminal:
            super().print(*args, **kwargs)  # above the bar
        else:
            print(*args, flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning sets these at the start of an epoch, which a resumed run is past
        self.train_progress_bar.total = trainer.max_steps * trainer.accumulate_grad_batches
        self.train_progress_bar.n = trainer.global_step * trainer.accumulate_grad_batches
        self.train_progress_bar.initial = self.train_progress_bar.n
        self.next_line = time.monotonic() + FIRST_LINE_SECONDS

    def on_train_epoch_start(self, *_: object) -> None:
        pass  # Lightning would start the bar at 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        is_due = time.monotonic() > self.next_line and not self.on_terminal
        if is_due and metric_names.TRAIN_LOSS in getattr(pl_module, "latest", ()):
            self.print_line(trainer, pl_module, NEW_AT_STEPS)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit":
            self.print_line(trainer, pl_module, SHOWN)

    def print_line(
        self, trainer: Trainer, pl_module: LightningModule, names: Iterable[str]
    ) -> None:
        self.next_line = time.monotonic() + LINE_SECONDS
        if trainer.is_global_zero:
            values = "  ".join(f"{k} {value}" for k, value in shown(pl_module, names).items())
            self.print(f"step {trainer.global_step:,}/{trainer.max_steps:,}  {values}")
