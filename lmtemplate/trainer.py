"""Settings in optimizer steps, with `auto` -> Lightning's Trainer in its own units, on a device."""

import copy
import logging
import os
import re
import traceback
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from torch.distributed import DistError

from lmtemplate.checkpoint.files import file_name
from lmtemplate.errors import (
    CheckpointError,
    ConfigError,
    LostProcessError,
    OutOfMemoryError,
    UserError,
    own_line,
)
from lmtemplate.hardware import auto_precision
from lmtemplate.run_length import RunLength

Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true", "bf16-true", "16-true", "64-true"]

DEVICE_ERRORS = (torch.OutOfMemoryError, torch.AcceleratorError)  # never a checkpoint's fault

# Longer than a sound run waits for its first process to save; Lightning's own limit is 30 minutes.
LONGEST_WAIT = timedelta(minutes=10)

# Callbacks of Lightning that cannot work here -> what to use instead, and why.
REFUSED = {
    "BackboneFinetuning": "no net here has a `backbone`; derive a callback from BaseFinetuning",
    "BaseFinetuning": "it leaves open what is frozen; derive a callback of your own from it",
    "BatchSizeFinder": "set data.batch_size; it would restart training many times",
    "GradientAccumulationScheduler": "set trainer.accumulate_grad_batches, the same for all steps",
    "LearningRateFinder": "compare runs with different --model.optimizer.lr",
    "ModelPruning": "a config cannot name its pruning function; derive a callback from it",
    "OnExceptionCheckpoint": "use checkpoint, which saves when a run is told to stop",
    "ProgressBar": "it shows nothing; use TQDMProgressBar, or RichProgressBar",
    "SpikeDetection": "use guard; it fails at a resume",
    "StochasticWeightAveraging": "use weight_averaging, whose `decay: null` is the plain average",
    "ThroughputMonitor": "use throughput; a config cannot hold the function of the batch it needs",
    "Timer": "use max_seconds, which counts over all restarts",
}


def quieten() -> None:
    """Silence what Lightning says that is no news to a user."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # tips; the card says what counts
    harmless = (
        "LeafSpec|many workers|dataloader is not resumable|sync_dist=True|overrides the configure_"
        "model|smaller than the logging interval|callbacks used to create the checkpoint|loaded "
        "checkpoint was produced with|Unable to serialize|does not round-trip|max number of worker"
    )
    warnings.filterwarnings("ignore", f"(?s).*({harmless})")


class Unprofiled(PassThroughProfiler):
    """Measures nothing. Lightning's own opens a generator for it, 90 times a step."""

    nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self.nothing


@dataclass(frozen=True)
class Machine:
    """Where a run computes, and with which numbers."""

    device: torch.device
    world_size: int
    precision: str
    rank: int = 0  # of this process among them all

    @property
    def autocast(self) -> torch.dtype | None:
        """What mixed precision multiplies in; None for every other precision."""
        return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.precision)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0


def machine_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of the Trainer's settings that decides where it computes."""
    names = ("accelerator", "devices", "strategy", "num_nodes")
    return {name: copy.deepcopy(settings[name]) for name in names}


def check_strategy(strategy: Strategy) -> None:
    """Raises ConfigError for a strategy of Lightning that cannot work here."""
    if isinstance(strategy, ModelParallelStrategy):
        name = type(strategy).__name__
        raise ConfigError(f"trainer.strategy: {name} needs a net that splits itself; use ddp")
    if "MultiProcessing" in type(strategy.launcher).__name__:
        raise ConfigError(
            "trainer.strategy: spawn, fork and notebook start processes that cannot hand a run "
            "back; use ddp, or one device in a notebook"
        )


def find_machine(settings: dict[str, Any]) -> Machine:
    """Ask Lightning what `auto` means here. Raises ConfigError where there is no such device."""
    try:
        with warnings.catch_warnings(action="ignore"):  # the run's own Trainer says them again
            probe = lightning.Trainer(
                **machine_settings(settings),
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
            )
        strategy, device = probe.strategy, probe.strategy.root_device
    except Exception as error:  # of many kinds; LookupError where LOCAL_RANK has no device
        names = ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK")
        found = "".join(f" with {name}={os.environ[name]}" for name in names if name in os.environ)
        raise ConfigError(
            f"trainer.accelerator, devices or strategy is not available on this machine{found}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    check_strategy(strategy)
    devices, cores = probe.num_devices, os.cpu_count() or 1
    if device.type == "cpu" and devices > 8 * cores:
        raise ConfigError(f"trainer.devices={devices:,} on a CPU of {cores} cores; give fewer")
    # Lightning reads it from RANK or SLURM_PROCID when it is imported, whatever the strategy
    rank_zero_only.rank = probe.global_rank  # type: ignore[attr-defined]
    if device.type == "cuda":  # float32 matrix products may use TensorFloat-32
        torch.set_float32_matmul_precision("high")
    precision = settings["precision"]
    precision = auto_precision(device) if precision == "auto" else precision
    return Machine(device, probe.world_size, precision, probe.global_rank)


def as_list(value: Any) -> list[Any]:
    """What a user may give as nothing, one thing or a list."""
    if value is None or isinstance(value, bool):
        return []
    return value if isinstance(value, list) else [value]


def check_callbacks(callbacks: Sequence[lightning.Callback]) -> None:
    """Raises ConfigError for a callback of Lightning that cannot work here, with what can."""
    for module, name in ((type(one).__module__, type(one).__name__) for one in callbacks):
        if module.startswith("lightning.") and name in REFUSED:
            raise ConfigError(f"trainer.callbacks: {name} is refused: {REFUSED[name]}")


def in_lightnings_units(
    settings: dict[str, Any], machine: Machine, length: RunLength
) -> dict[str, Any]:
    """Settings in optimizer steps -> the same in micro-batches, for Lightning's Trainer."""
    plugins, strategy = [*as_list(settings["plugins"])], settings["strategy"]
    if strategy in ("auto", "ddp") and machine.world_size > 1:
        strategy = DDPStrategy(timeout=LONGEST_WAIT)  # one built by the user keeps its own
    if SLURMEnvironment.detect():  # its requeueing saves in a signal handler, amid a step
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return {
        **settings,
        "strategy": strategy,
        "precision": machine.precision,
        "max_steps": length.steps,
        "max_epochs": -1,
        "accumulate_grad_batches": length.accumulate,
        # a run that is shorter is validated at its end
        "val_check_interval": min(settings["val_check_interval"], length.steps) * length.accumulate,
        "check_val_every_n_epoch": None,  # one Lightning epoch is the whole run
        "use_distributed_sampler": False,  # the data shards itself over ranks
        "enable_model_summary": bool(settings["enable_model_summary"]),
        "plugins": plugins,
        "profiler": settings["profiler"] or Unprofiled(),
    }


def mistake_in(error: BaseException, trainer: lightning.Trainer) -> UserError | None:
    """What a user can do about an error of Lightning or torch, where that is known."""
    says = " ".join(str(error).split())
    what = re.sub(r"^\[.*?\] ", "", says).partition(". ")[0][:200]
    if isinstance(error, (UserError, OSError, MemoryError, *DEVICE_ERRORS)):
        return None
    if worker := re.search(r"DataLoader worker \(pid(?:\(s\))? (\d+)", says):
        return OutOfMemoryError(
            f"data worker {worker[1]} was killed, as when memory or /dev/shm runs out; lower "
            "data.num_workers (0 reads in the training process)"
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ConfigError(f"model.compile: torch.compile fails; give false. It says: {what}")
    if says.startswith("Early stopping conditioned on metric"):
        return ConfigError(f"early_stopping.monitor: {error}")
    is_lightnings = isinstance(error, (ModuleNotFoundError, MisconfigurationException))
    if is_lightnings and not getattr(error, "name", None):  # it says what to install, or to set
        return ConfigError(f"trainer: {says[:300]}")
    if trainer.world_size > 1 and (isinstance(error, DistError) or "gloo" in says):
        return LostProcessError(
            f"process {trainer.global_rank} of {trainer.world_size} has lost another one at step "
            f"{trainer.global_step:,}, which died or stands still (see what that one said); go on "
            f"with --resume auto. {what}"
        )
    names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
    misfits = (ValueError, TypeError, LookupError, NotImplementedError)
    is_misfit = isinstance(error, misfits) and "configure_optimizers" in names
    if is_misfit and not own_line(error):
        return ConfigError(f"model.optimizer or model.schedule does not fit: {error!r:.200}")
    # A damaged state of optimizer or schedule may fail in the first step only. An error inside of
    # that step's closure comes from the loss.
    uses_state = names & {"on_train_start", "on_train_batch_start", "step", "update_lr_schedulers"}
    resumed_from = tuple(file_name(trainer.global_step - made) for made in (0, 1))
    is_first_use = uses_state and str(trainer.ckpt_path).endswith(resumed_from)
    is_first_use = is_first_use and "closure" not in names and not own_line(error)
    if is_first_use or any(name.startswith(("restore_", "resume_")) for name in names):
        problem = f"holds a state that cannot be restored: {error!r:.200}"
        return CheckpointError(f"{trainer.ckpt_path} {problem}")
    return None
