"""Clock and FLOPs -> speed/*, data/*: how fast the run is, and how far."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate import metric_names
from lmtemplate.data.datamodule import LanguageData
from lmtemplate.errors import amount
from lmtemplate.hardware import device_name, peak_flops
from lmtemplate.module import LitLanguageModel, is_log_step, is_step_end, log_values


class Throughput(Callback):
    """Tokens per second over wall time without validation and saving, and model FLOPs utilisation.

    MFU = tokens/s x FLOPs per token / peak FLOP/s (PaLM, appendix B). Lightning's own meter needs
    code in the config, waits for the device at every batch, and does not know current GPUs.

    Args:
        peak_tflops: dense peak of one device at the run's precision; null looks the GPU up by its
            name. Without a peak (a CPU, an unknown GPU) there is no MFU.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        self.peak_tflops = peak_tflops
        # of training steps, over all restarts, the first step of each left out
        self.training_seconds = 0.0
        self.tokens = 0  # trained on in that time
        self._resumed_at: float | None = None
        self._warm = False

    @property
    def tokens_per_second(self) -> float | None:
        """Mean over the run."""
        return self.tokens / self.training_seconds if self.training_seconds else None

    def mfu(self, trainer: Trainer, tokens_per_second: float) -> float | None:
        """Share of the peak that all devices together reach; None where there is no known peak."""
        device, module = trainer.strategy.root_device, trainer.lightning_module
        peak = self.peak_tflops * 1e12 if self.peak_tflops else None
        if peak is None and device.type == "cuda":
            peak = peak_flops(device_name(device), str(trainer.precision))
        if peak is None:
            return None
        assert isinstance(module, LitLanguageModel)
        return tokens_per_second * module.net.flops_per_token() / (peak * trainer.world_size)

    def _pause(self, trainer: Trainer) -> None:
        if self._resumed_at is None:
            return
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.training_seconds += time.perf_counter() - self._resumed_at
        self._resumed_at = None

    @contextmanager
    def paused(self, trainer: Trainer) -> Iterator[None]:
        """What is done meanwhile does not count."""
        was_running = self._resumed_at is not None
        self._pause(trainer)
        try:
            yield
        finally:
            if was_running:
                self._resumed_at = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._logged = (self.training_seconds, self.tokens)

    def on_train_batch_start(self, *_: Any) -> None:
        if self._warm and self._resumed_at is None:
            self._resumed_at = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, LitLanguageModel) and isinstance(data, LanguageData)
        if self._warm:
            self.tokens += data.batch_size * data.block_size * trainer.world_size
        self._warm = self._warm or is_step_end(trainer)  # the first step also compiles
        if not is_log_step(trainer):
            return
        self._pause(trainer)
        values = {metric_names.TRAINING_SECONDS: self.training_seconds}
        seconds, tokens = self.training_seconds - self._logged[0], self.tokens - self._logged[1]
        if seconds:
            speed = values[metric_names.TOKENS_PER_SECOND] = tokens / seconds
            if (mfu := self.mfu(trainer, speed)) is not None:
                values[metric_names.MFU] = mfu
        log_values(pl_module, values)
        self._resumed_at = time.perf_counter()  # reading the next batch counts
        self._logged = (self.training_seconds, self.tokens)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.training_seconds, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.training_seconds = float(amount(state_dict["seconds"]))
        self.tokens = int(amount(state_dict["tokens"]))
