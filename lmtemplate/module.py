"""Batch -> loss, logged: wires net, loss, metrics, optimizer and schedule for Lightning."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

from lmtemplate import hardware, metric_names, optimizers
from lmtemplate.data.datamodule import Batch, LanguageData
from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.loss import Loss, LossFunction, cross_entropy, training_loss
from lmtemplate.metrics import Measures
from lmtemplate.models.base import LanguageModel
from lmtemplate.muon import MuonAdamWOptimizer
from lmtemplate.schedules import Schedule


def is_step_end(trainer: Trainer) -> bool:
    """Whether an optimizer step ended with this micro-batch: `trainer.global_step` counts it."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether step 1, 2, .. is logged: each N-th, at each validation, and the last."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    validated = step * trainer.accumulate_grad_batches % int(trainer.val_check_interval or 1) == 0
    return step % interval == 0 or validated or step == trainer.max_steps


def is_log_step(trainer: Trainer) -> bool:
    """Whether this micro-batch ended a step that is logged, or the last one (Ctrl-C, the clock)."""
    return is_step_end(trainer) and (trainer.should_stop or is_logged(trainer, trainer.global_step))


def log_values(module: "LitLanguageModel", values: Mapping[str, Tensor | float]) -> None:
    """Log at the optimizer step just made, for loggers and for callbacks that monitor a value.

    This is how lmtemplate itself logs (`self.log` ends at the same step, but costs 0.3 ms a key).
    Loggers get a step's values as one row, after `on_train_batch_end` or `on_validation_end`.
    """
    plain = {name: float(value) for name, value in values.items()}
    if module.row_step != module.global_step:
        module.write_row()
        module.row_step = module.global_step
    module.latest.update(plain)
    module.row.update(plain)
    exact = {name: torch.tensor(value, dtype=torch.float64) for name, value in plain.items()}
    module.trainer.callback_metrics.update(exact)


class LitLanguageModel(LightningModule):
    """A language model and everything that one training step needs.

    Args:
        net: the architecture.
        optimizer: a recipe of lmtemplate, or any class with torch's interface.
        schedule: learning rate over the run: one of lmtemplate, or any of torch's, which then
            counts optimizer steps.
        loss: what training minimises; null for cross-entropy. Validation always measures that.
        label_smoothing: share of probability spread over the vocabulary, in training only.
        z_loss: weight of (log Z)^2, in training only.
        metrics: further metrics of validation, logged as val/<name>.
        compile: compile net and loss with torch.compile; auto decides from device and steps.
        keep_freed_memory: let glibc keep large blocks for the next step, on CPU.
    """

    def __init__(
        self,
        net: LanguageModel,
        optimizer: optimizers.OptimizerRecipe | optimizers.OptimizerCallable,
        schedule: Schedule | Callable[[Optimizer], LRScheduler],
        loss: LossFunction | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        metrics: list[Metric] | None = None,
        compile: Literal["auto"] | bool = "auto",
        keep_freed_memory: bool = True,
    ) -> None:
        super().__init__()
        self.net = net
        self.recipe = optimizers.recipe_of(optimizer)
        self.schedule = schedule
        self.loss = loss
        self.regularisers = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        self.compile_net = compile
        self.keep_freed_memory = keep_freed_memory
        self._objectives = self.objectives  # or that, compiled
        self._uses_log = False
        self.metrics = Measures(metrics or [])
        self.latest: dict[str, float] = {}  # the newest value of all that was logged
        self.row: dict[str, float] = {}  # logged at `row_step`, and not handed to loggers yet
        self.row_step = 0
        self.grad_norm: Tensor | None = None  # of the latest step that measured it, before clipping
        self._settings: list[dict[str, Any]] = []  # of parameter groups, as given now
        self._settings_before: list[dict[str, Any]] | None = None  # and in the start before
        self.train_sums = torch.zeros(4)  # since the last row: nats, tokens, clipped steps, steps

    def setup(self, stage: str) -> None:
        token_bytes = getattr(getattr(self.trainer, "datamodule", None), "token_bytes", None)
        self.metrics.tokens.token_bytes = torch.zeros(0) if token_bytes is None else token_bytes

    def compiles(self, device: torch.device, steps: int) -> bool:
        """Whether a run of so many optimizer steps is compiled on this device."""
        is_auto = self.compile_net == "auto"
        return hardware.auto_compile(device, steps) if is_auto else bool(self.compile_net)

    def configure_model(self) -> None:
        device = self.trainer.strategy.root_device
        if device.type == "cpu" and self.keep_freed_memory:
            hardware.keep_freed_memory()
        is_fit = self.trainer.state.fn == "fit"  # validation alone is over before
        if is_fit and self.compiles(device, self.trainer.max_steps):
            hardware.keep_compiled_code()
            self._objectives = torch.compile(self.objectives, dynamic=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.recipe.build(self.net)
        if self._objectives != self.objectives and isinstance(optimizer, MuonAdamWOptimizer):
            optimizer.compile()
        groups = optimizer.param_groups
        self._settings = [{k: v for k, v in one.items() if k != "params"} for one in groups]
        if isinstance(self.schedule, Schedule):
            factor = partial(self.schedule.factor, total=self.trainer.max_steps)
            scheduler: Any = LambdaLR(optimizer, factor)
        else:
            scheduler = self.schedule(optimizer)
        plan: dict[str, Any] = {"scheduler": scheduler, "interval": "step"}
        if isinstance(scheduler, ReduceLROnPlateau):  # Lightning counts micro-batches here
            interval = int(self.trainer.val_check_interval or 1)
            plan.update(monitor=metric_names.VAL_LOSS, frequency=interval)
        return {"optimizer": optimizer, "lr_scheduler": plan}  # type: ignore[return-value]

    def on_train_start(self) -> None:
        self.train_sums = self.train_sums.to(self.device)
        latest = {k: torch.tensor(v, dtype=torch.float64) for k, v in self.latest.items()}
        self.trainer.callback_metrics.update(latest)
        self._apply_settings()
        self._switch_optimizer("train")

    def _apply_settings(self) -> None:
        """Let names, and what changed since the checkpoint, win over the optimizer state in it.

        All else in a parameter group stays: schedule-free keeps its step there, Prodigy its
        estimate of the learning rate, and torch's schedules their rates.
        """
        groups, scheduler = self.trainer.optimizers[0].param_groups, self.lr_schedulers()
        settings_before = self._settings_before or self._settings
        for group, now, before in zip(groups, self._settings, settings_before, strict=True):
            group.update({k: v for k, v in now.items() if before.get(k) != v or k == "name"})
        if isinstance(self.schedule, Schedule):
            assert isinstance(scheduler, LambdaLR)
            factor = self.schedule.factor(self.global_step, self.trainer.max_steps)
            scheduler.base_lrs = [now["lr"] for now in self._settings]
            for group, rate in zip(groups, scheduler.base_lrs, strict=True):
                group.update(initial_lr=rate, lr=rate * factor)

    def _switch_optimizer(self, mode: Literal["train", "eval"]) -> None:
        """Tell an optimizer that validates other weights than it trains (schedule-free)."""
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, mode):
                getattr(optimizer, mode)()

    def objectives(self, inputs: Tensor, targets: Tensor) -> tuple[Loss, dict[str, Tensor]]:
        """The loss of a batch (B, T), and the net's own terms; `compile` compiles all of this."""
        loss = training_loss(self.net, inputs, targets, self.loss, **self.regularisers)
        terms = self.net.extra_objectives(targets)
        if not isinstance(terms, dict) or any(getattr(t, "shape", 0) != () for t in terms.values()):
            raise ConfigError("model.net: extra_objectives has to return a dict of scalar tensors")
        return loss, terms

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, terms = self._objectives(*batch)
        sums = torch.stack((loss.nats, loss.tokens.to(loss.nats.dtype)))
        self.train_sums[:2] += torch.where(loss.nats.isfinite(), sums, 0)
        objective = loss.objective
        for name, term in terms.items():
            self.log(f"train/{name}", term.detach())
            objective = objective + term
        # If the objective is NaN or inf, make every gradient NaN too, so that all ranks skip this
        # step (see NonFiniteGuard). Otherwise this multiplies by 1.
        return objective * (1 + 0 * objective.detach())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and keep the norm for the log; Lightning's own refuses fused AdamW under bf16."""
        by_norm = gradient_clip_val and gradient_clip_algorithm != "value"
        if self.grad_norm is None and (by_norm or is_logged(self.trainer, self.global_step + 1)):
            self.measure_gradient(optimizer)
        if gradient_clip_val:
            norm = self.grad_norm if by_norm else None
            clipped = optimizers.clip_gradients(optimizer, gradient_clip_val, norm)
            self.train_sums[2:] += torch.stack((clipped, torch.ones_like(clipped)))

    def measure_gradient(self, optimizer: Optimizer) -> Tensor:
        """Norm of the gradient over all parameters, before clipping; kept for the log."""
        self.grad_norm = optimizers.gradient_norm(optimizer)
        return self.grad_norm

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log every N optimizer steps, and wait for the device's results at no other time."""
        if is_log_step(self.trainer):
            self._log_training()
        if is_step_end(self.trainer):
            self.grad_norm = None
        self.write_row()

    def _log_training(self) -> None:
        nats, tokens, clipped, steps = self._all_train_sums()
        values: dict[str, Tensor | float] = {metric_names.TRAIN_LOSS: nats / tokens}
        if self.grad_norm is not None:
            values[metric_names.GRAD_NORM] = self.grad_norm
        if self.trainer.gradient_clip_val:
            values[metric_names.CLIPPED_SHARE] = clipped / steps
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, LanguageData):
            values[metric_names.TOKENS] = float(data.sequences * data.block_size)
            if data.epochs is not None:
                values[metric_names.EPOCH] = data.epochs
        if tokens:  # 0 where every loss since the last log was NaN or inf
            log_values(self, values)
        self.train_sums.zero_()
        self._log_step()

    def write_row(self) -> None:
        """Hand a step's values to the loggers. Raises NumbersError where a loss is not finite."""
        row, self.row = self.row, {}
        if not row:
            return
        for logger in self.loggers:
            logger.log_metrics(row, step=self.row_step)
        for name, value in row.items():
            if name.endswith("/loss") and not math.isfinite(value):
                raise NumbersError(f"{name} is {value} at step {self.row_step:,}")

    def _log_step(self) -> None:
        """Log what arrives through `self.log` at the step just made; Lightning counts from 0."""
        if self._uses_log:
            self.log("step", torch.tensor(float(self.global_step), dtype=torch.float64))

    def _all_train_sums(self) -> Tensor:
        return self.trainer.strategy.reduce(self.train_sums.clone(), reduce_op="sum")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.write_row()
        checkpoint["train_sums"] = self._all_train_sums().tolist()
        checkpoint["optimizer_settings"] = self._settings
        checkpoint["latest"] = {k: v for k, v in self.latest.items() if not k.startswith("speed/")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.is_global_zero:
            self.train_sums[:] = torch.as_tensor(checkpoint["train_sums"])
        self._settings_before = checkpoint["optimizer_settings"]
        self.latest = {name: float(value) for name, value in checkpoint["latest"].items()}

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's own, of module and callbacks; each logged row takes it 3.5 ms once it is used."""
        self._uses_log = True
        super().log(*args, **kwargs)

    def on_validation_start(self) -> None:
        self._switch_optimizer("eval")

    def on_validation_end(self) -> None:
        self._switch_optimizer("train")
        self.write_row()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        logits = self(inputs)
        self.metrics.update(cross_entropy(logits, targets).nats, logits, targets)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")
        self._log_step()

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        measured = self.metrics.compute().items()
        log_values(self, {f"{split}/{name}": value for name, value in measured})
        self.write_row()
