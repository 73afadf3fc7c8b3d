"""Run -> TensorBoard: one curve across resumes, losses in one chart, hparams with the best loss."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lmtemplate.checkpoint.compatibility import flatten
from lmtemplate.checkpoint.resume import read_best

LAYOUT = {
    "losses": {
        "train and validation loss": ["Multiline", ["train/loss", "val/loss"]],
        "validation, bits per byte": ["Multiline", ["val/bits_per_byte"]],
    }
}


# Settings that runs are compared by; the rest is in config.yaml.
COMPARED = (
    "model.",
    "data.",
    "seed_everything",
    "trainer.max_steps",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.precision",
    "early_stopping.patience",
)


def hyperparameters(settings: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """What the hparams tab shows: {"model.net": "GPT", "model.net.n_layer": 4, ...}."""
    shown: dict[str, bool | int | float | str] = {}
    for path, value in flatten(settings).items():
        key = path.replace(".init_args", "").removesuffix(".class_path")
        if key.startswith(COMPARED) and value is not None:
            value = value.rpartition(".")[2] if path.endswith(".class_path") else value
            shown[key] = value if isinstance(value, (bool, int, float)) else str(value)
    return shown


class RunLogger(TensorBoardLogger):
    """Writes events straight into the run directory.

    Args:
        run_dir: the run directory.
        first_step: steps from here on are new; what an earlier, killed start wrote there is hidden.
    """

    _warned = False

    def __init__(self, run_dir: Path, first_step: int) -> None:
        importlib.import_module("torch.utils.tensorboard")  # a broken one fails before the run
        super().__init__(
            run_dir, name="", version="", default_hp_metric=False, purge_step=first_step
        )

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        # Lightning adds its epoch, which is always 0 here: the data's is data/epoch
        with self.forgiving():
            super().log_metrics({k: v for k, v in metrics.items() if k != "epoch"}, step)

    def log_hyperparams(self, *words: Any, **more: Any) -> None:
        with self.forgiving():
            super().log_hyperparams(*words, **more)

    def save(self) -> None:
        with self.forgiving():
            self.experiment.flush()  # and no hparams.yaml: config.yaml says it already

    def finalize(self, status: str) -> None:
        with self.forgiving():
            super().finalize(status)

    @contextmanager
    def forgiving(self) -> Iterator[None]:
        """A full disk costs curves, not the run: the record has them, too."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: Lightning's word for any error
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            if not self._warned:
                print(f"TensorBoard's files cannot be written: {cause.strerror}", flush=True)
            self._warned = True


class Board(Callback):
    """Adds what scalars alone do not show: the chart of both losses, and the hparams tab.

    Args:
        settings: the run's config, nested.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, RunLogger) and trainer.is_global_zero:
            trainer.logger.experiment.add_custom_scalars(LAYOUT)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        best = read_best(Path(trainer.default_root_dir))
        if best is None or not isinstance(trainer.logger, RunLogger):
            return
        trainer.logger.log_hyperparams(
            hyperparameters(self.settings),
            {"best/val_loss": best["val_loss"]},
            step=trainer.global_step,
        )
