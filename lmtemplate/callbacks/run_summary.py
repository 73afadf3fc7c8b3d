"""Run -> a card before it (what will happen), a card after it (what has happened), summary.json."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate import metric_names
from lmtemplate.callbacks.run_end import told
from lmtemplate.checkpoint.resume import read_best, steps_saved
from lmtemplate.data.datamodule import LanguageData
from lmtemplate.errors import DiskError, NumbersError, SignalError
from lmtemplate.hardware import device_name, missing_compiler
from lmtemplate.module import LitLanguageModel
from lmtemplate.run_dir import write_json
from lmtemplate.run_length import RunLength
from lmtemplate.schedules import Schedule


def card(title: str, rows: dict[str, str]) -> str:
    return "\n".join([f"\n{title}", *(f"  {name:<8} {text}" for name, text in rows.items()), ""])


class RunSummary(Callback):
    """Prints both cards and writes summary.json."""

    def __init__(self, length: RunLength, steps_before: int, allowed: Sequence[str] = ()) -> None:
        self.length = length
        self.steps_before = steps_before  # that earlier starts of the run have made
        # of the next command, which needs the packages that the run's classes are from
        self.allowed = [word for package in allowed for word in ("--allow", package)]
        self._stopped = ("interrupted", "interrupted")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(module, LitLanguageModel) and isinstance(data, LanguageData)
        if not trainer.is_global_zero:
            return
        net, device, devices = module.net, trainer.strategy.root_device, trainer.world_size
        per_batch = data.batch_size * data.block_size * devices
        per_step = per_batch * trainer.accumulate_grad_batches
        left = trainer.max_steps - self.steps_before
        tokens = data.sequences * data.block_size + per_step * left
        parameters, flops = net.parameter_count(), net.flops_per_token()
        before = f"{self.steps_before:,} steps before, then " if self.steps_before else ""
        of_data = (data.train_sequences or 0) * data.block_size
        epochs = f" = {tokens / of_data:.1f} epochs" if of_data else ""
        missing = missing_compiler(device) if device.type == "cuda" else None
        compiled = "compiled" if module.compiles(device, trainer.max_steps) else "not compiled"
        compiled += f" (torch.compile needs {missing})" if missing else ""
        is_own = isinstance(module.schedule, Schedule)
        schedule = module.schedule if is_own else module.lr_schedulers()
        optimizer = type(trainer.optimizers[0]).__name__.removesuffix("Optimizer")
        rows = {
            "model": f"{type(net).__name__}, {parameters:,} parameters, {optimizer}, "
            f"{type(schedule).__name__}",
            "data": data.description,
            "length": f"{before}{left:,} steps x {per_step:,} tokens = {tokens:,} tokens"
            f"{epochs} (from {self.length})",
            "cost": f"{tokens / parameters:.1f} tokens per parameter (20 is Chinchilla's), "
            f"{flops * tokens:.2e} FLOPs ({flops:,.0f} per token)",
            "device": f"{f'{devices} x ' if devices > 1 else ''}{device.type} "
            f"({device_name(device)}), precision {trainer.precision}, {compiled}",
        }
        print(card(f"training in {trainer.default_root_dir}", rows), flush=True)

    def stop_reason(self, trainer: Trainer) -> tuple[str, str]:
        """Why the run ended: a name, and a sentence."""
        if self._stopped[0] == "numbers":
            return self._stopped
        if trainer.global_step >= trainer.max_steps:
            return self.length.limit, f"reached {self.length}"
        if told(trainer, "out_of_time"):
            return "max_seconds", f"{self.length} are over"
        if message := told(trainer, "stopping_reason_message"):
            return "early_stopping", message.strip()
        return self._stopped

    def summary(self, trainer: Trainer, module: LitLanguageModel) -> dict[str, Any]:
        """What summary.json holds; null where a value does not exist or is not finite."""
        data: LanguageData = trainer.datamodule  # type: ignore[attr-defined]
        parameters, tokens = module.net.parameter_count(), data.sequences * data.block_size
        name, sentence = self.stop_reason(trainer)
        val_loss = module.latest.get(metric_names.VAL_LOSS, math.nan)
        speed = told(trainer, "tokens_per_second")
        return {
            "stop_reason": name,
            "stop_message": sentence,
            "step": trainer.global_step,
            "max_steps": trainer.max_steps,
            "best": read_best(Path(trainer.default_root_dir)),
            "last_val_loss": val_loss if math.isfinite(val_loss) else None,
            "tokens": tokens,
            "passes": data.epochs,
            "parameters": parameters,
            "flops": module.net.flops_per_token() * tokens,
            "flops_6nd": 6.0 * parameters * tokens,
            "devices": trainer.world_size,
            "seconds": told(trainer, "run_seconds"),
            "training_seconds": told(trainer, "training_seconds"),
            "tokens_per_second": speed,
            "mfu": told(trainer, "mfu")(trainer, speed) if speed else None,
        }

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module, run = pl_module, Path(trainer.default_root_dir)
        if not trainer.is_global_zero or not isinstance(module, LitLanguageModel):
            return
        summary = self.summary(trainer, module)
        try:
            write_json(run / "summary.json", summary)
        except DiskError as error:  # the run is safe, and its exit code says what ended it
            module.print(f"no summary: {error}")
        if summary["stop_reason"] == "numbers":
            return  # the run may go back and continue; if not, the error says more
        rows = {"stopped": f"{summary['stop_message']} at step {summary['step']:,}"}
        if best := summary["best"]:
            bits = module.latest.get(metric_names.VAL_BITS_PER_BYTE)
            last = f"; last validation: {bits:.3f} bits per byte" if bits else ""
            rows["best"] = f"val/loss {best['val_loss']:.4f} at step {best['step']:,}{last}"
            before = best["initial_val_loss"]
            if before is not None and best["val_loss"] >= before:
                rows["best"] += f"; no better than before step 1 ({before:.4f})"
        if speed := summary["tokens_per_second"]:
            mfu = f", MFU {summary['mfu']:.1%}" if summary["mfu"] else ""
            rows["speed"] = f"{speed:,.0f} tokens/s, {summary['tokens']:,} tokens{mfu}"
        rows["files"] = f"{run} (curves: make board; weights: {run}/checkpoints)"
        args = [f"ARGS={' '.join(self.allowed)}"] if self.allowed else []
        if steps_saved(run) and summary["stop_reason"] == "interrupted":
            rows["next"] = shlex.join(["make", "resume", f"RUN={run}", *args])
        elif steps_saved(run):
            sample = shlex.join(["make", "sample", f"RUN={run}", "PROMPT=The", *args])
            generate = shlex.join(["lmtemplate", "generate", str(run), *self.allowed])
            rows["next"] = f"{sample} (or {generate})"
        title = "interrupted" if summary["stop_reason"] == "interrupted" else "done"
        print(card(title, rows), flush=True)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, NumbersError):
            self._stopped = ("numbers", str(exception))
        if isinstance(exception, SignalError):
            self._stopped = ("interrupted", f"interrupted by {exception.name}")
        stopped = KeyboardInterrupt | NumbersError | SignalError
        if isinstance(exception, stopped) and trainer.global_step:
            self.on_fit_end(trainer, pl_module)
