"""Command line and config files -> settings and objects, or one line that says what is wrong."""

import argparse
import inspect
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, Literal

import torch
import yaml
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

from lmtemplate import cli_classes, cli_errors, cli_words, metric_names, redact
from lmtemplate.callbacks import OFF
from lmtemplate.checkpoint.resume import ResumeMode
from lmtemplate.cli_classes import OPEN, class_spec
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.hardware import device_name, missing_compiler
from lmtemplate.metrics import NAMES
from lmtemplate.models.gpt import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import AdamW
from lmtemplate.run_length import RUN_LENGTHS
from lmtemplate.schedules import WarmupCosine
from lmtemplate.trainer import Machine, Precision, as_list, check_callbacks, find_machine, quieten

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", 2**32 - 1)])  # what NumPy takes

# Key of a setting that no constructor states -> its type, default and help.
RUN_SETTINGS: dict[str, tuple[Any, Any, str]] = {
    "seed_everything": (Seed, 1337, "seed of weights, dropout and the order of the data"),
    "run_dir": (str, "runs/default", "where the run leaves everything"),
    "resume": (ResumeMode, "never", "go on in run_dir: never, auto (if it has a checkpoint), must"),
    "report": (bool, True, "at the end: verdict, summary, pictures and report.html"),
    "tensorboard": (bool, True, "write TensorBoard's event files"),
    "init_from": (str | None, None, "run or checkpoint to take the first weights from"),
    **{name: (float | None, None, f"run length in {unit}") for name, unit in RUN_LENGTHS.items()},
    "tokens_per_step": (PositiveInt | None, None, "of a step; sets accumulate_grad_batches"),
}

# The same for settings of Lightning's Trainer that have another type, default or unit here.
TRAINER_SETTINGS: dict[str, tuple[Any, Any, str]] = {
    "precision": (Precision, "auto", "auto: bf16-mixed where the device has it in hardware"),
    "strategy": (Strategy | str, "auto", "how several devices work together; auto, ddp, fsdp ..."),
    "profiler": (
        Literal["simple", "advanced", "pytorch"] | Profiler | None,
        None,
        "shows where time went",
    ),
    "max_steps": (int, -1, "optimizer steps; -1 where another limit gives the run its length"),
    "accumulate_grad_batches": (PositiveInt, 1, "micro-batches of an optimizer step"),
    "gradient_clip_val": (PositiveFloat | None, None, "largest norm of the gradient; null: any"),
    "val_check_interval": (PositiveInt, 100, "optimizer steps between validations"),
    "log_every_n_steps": (PositiveInt, 5, "optimizer steps between logged values"),
    "num_sanity_val_steps": (int, -1, "validation batches before step 1; -1 for all of them"),
    # Lightning's own type reads 1 as 1.0, which is all of them
    "limit_val_batches": (int | float | None, None, "a number of batches, or a share, as 0.5"),
    "limit_test_batches": (int | float | None, None, "the same for the test split"),
}


def make_parser(prog: str, classes: dict[str, type]) -> LightningArgumentParser:
    """What parses every key of a config; `classes` are those of model and data."""
    parser = LightningArgumentParser(prog, description="", allow_abbrev=False, exit_on_error=False)
    says = "YAML file with settings; several may be given, and the last one wins"
    parser.add_argument("-c", "--config", action="config", help=says)
    own = {f"trainer.{name}": setting for name, setting in TRAINER_SETTINGS.items()}
    for name, (kind, default, says) in {**RUN_SETTINGS, **own}.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=says)
    skip = {*cli_errors.OWNED, *TRAINER_SETTINGS}
    how = {"skip": skip, "instantiate": False, "fail_untyped": False}
    parser.add_class_arguments(Trainer, "trainer", **how)
    for group, kind in classes.items():
        name, says = f"--{group}.class_path", f"a subclass of {OPEN[group][0].__name__}"
        parser.add_argument(name, type=str, default=argparse.SUPPRESS, help=says)
        parser.add_class_arguments(kind, group, fail_untyped=False)
    # one key each at the top, so that a second config changes one value and loses none of them
    for name, kind in cli_classes.callback_classes().items():
        taken = inspect.signature(kind).parameters.values()
        is_off = name in OFF or any(one.default is one.empty for one in taken)
        default = None if is_off else class_spec(kind)
        parser.add_argument(f"--{name}", type=kind | None, default=default, help="null: off")
    for name, kind in (("net", GPT), ("optimizer", AdamW), ("schedule", WarmupCosine)):
        parser.set_defaults({f"model.{name}": class_spec(kind)})
    for name in ("block_size", "vocab_size"):
        target = f"model.net.init_args.{name}"
        parser.link_arguments(f"data.{name}", target, apply_on="instantiate")
    if "seed" in inspect.signature(classes["data"]).parameters:
        parser.link_arguments("seed_everything", "data.seed")
    return parser


class TrainingCLI(LightningCLI):
    """LightningCLI that parses and instantiates; fit.py does the rest.

    Stock `--ckpt_path` lets the checkpoint's settings beat the command line, hence no subcommands.

    Args:
        words: of the command line, after the verb.
        allowed: packages outside lmtemplate whose classes a config may name.
        verb: for the help.
    """

    def __init__(self, words: list[str], allowed: Sequence[str] = (), verb: str = "fit") -> None:
        quieten()
        self.allowed, self.verb = allowed, verb
        words, self.made = cli_words.read_words(words)
        cli_classes.check_run_dir(self.made)
        self.classes = {g: cli_classes.chosen_class(g, self.made, allowed) for g in OPEN}
        self._checked = {*self.classes.values()}
        cli_classes.configure_parsing(allowed, self.classes["data"])
        super().__init__(
            self.classes["model"],
            self.classes["data"],
            save_config_callback=None,
            args=words,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def setup_parser(self, *_: Any) -> None:
        self.parser = make_parser(f"lmtemplate {self.verb}", self.classes)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        if args and args[-1].endswith(".help"):  # on a key without a class: on its default class
            default = parser.get_defaults().get(f"{args[-1][2:-5]}.class_path")
            args[-1] += f"={default}" if default else ""
        self.config = cli_errors.parse_words(parser, args, self.made)
        chosen = {group: vars(self.config[group]).pop("class_path", None) for group in OPEN}
        for group, kind in self.classes.items():
            cli_classes.leave_out(group, vars(self.config[group]), kind, self.made, self.allowed)
        named = {**vars(self.config), "config": None}  # paths, which jsonargparse can call
        cli_classes.check_classes("", named, self.made, self.allowed, self._checked)
        self._named = self.config.clone()
        for group, path in chosen.items():
            vars(self.config[group]).update({"class_path": path} if path else {})

    def instantiate_classes(self) -> None:
        """New data, net and callbacks. What their constructors object to becomes one line.

        The Trainer is built by fit.py, when it knows the length.
        """
        try:
            make = partial(cli_classes.make_checked, self._checked, self.allowed)
            every = [(make, object, True)]
            self.config_init = self.parser.instantiate(self._named, instantiators=every)
        except (ValueError, TypeError, ArithmeticError) as error:
            root: BaseException = error
            while root.__cause__ and not isinstance(root, UserError):
                root = root.__cause__  # jsonargparse wraps what a constructor raised
            if isinstance(root, UserError):
                raise root from error
            told = cli_errors.BROKEN.search(" ".join(str(error).split()))
            says = f"{told[1]}: {told[2]}" if told else " ".join(str(root).split())
            raise ConfigError(says[:400]) from error
        self.model, self.datamodule = self.config_init.model, self.config_init.data

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """What stands under `trainer`, in the user's units, with its classes instantiated."""
        return self.config_init.trainer.as_dict()

    @cached_property
    def machine(self) -> Machine:
        """Where the run computes. Raises ConfigError where there is no such device."""
        return find_machine(self.trainer_settings)

    def hardware(self, steps: int) -> dict[str, Any]:
        """What the last digits of a loss depend on: device, processor, threads."""
        return {
            "device": self.machine.device.type,
            "name": device_name(self.machine.device),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "devices": self.machine.world_size,
            "precision": self.machine.precision,
            "compiled": self.model.compiles(self.machine.device, steps),
            "threads": torch.get_num_threads(),
        }

    @property
    def callbacks(self) -> list[Any]:
        """Those that have a key of their own and are not switched off, in the list's order."""
        found = (self.config_init[key] for key in cli_classes.callback_classes())
        return [callback for callback in found if callback]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as plain types, defaults included, what is linked left out, secrets hidden."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        settings = cli_classes.writable("", dumped, self.made)
        settings.pop("resume")
        return redact.settings(settings)


def check_settings(cli: TrainingCLI, steps: int) -> None:
    """Raises ConfigError for settings that contradict each other, before anything is written."""
    warmup = getattr(cli.model.schedule, "warmup_steps", 0)
    planned = getattr(cli.model.schedule, "keywords", {}).get("total_steps")  # of OneCycleLR
    if warmup > steps:
        says = f"is longer than the run of {steps} steps; lower it"
        raise ConfigError(f"model.schedule.warmup_steps={warmup} {says}")
    if planned and planned < steps:
        says = f"is shorter than the run of {steps} steps; give both the same"
        raise ConfigError(f"model.schedule.total_steps={planned} {says}")
    if cli.model.compile_net is True and (missing := missing_compiler(cli.machine.device)):
        raise ConfigError(f"model.compile: true needs {missing}; give auto or false")
    batches = cli.config.trainer.limit_val_batches
    if isinstance(batches, float) and batches < 1:  # a share of all
        batches *= len(cli.datamodule.val_dataloader())
    if batches is not None and batches < 1:
        raise ConfigError(
            f"trainer.limit_val_batches={cli.config.trainer.limit_val_batches}: validation would "
            "never happen; for a short one set data.max_val_blocks"
        )
    check_callbacks(as_list(cli.trainer_settings["callbacks"]))
    check_monitor(cli)


def check_monitor(cli: TrainingCLI) -> None:
    """Raises ConfigError where early stopping waits for what nothing logs, or has the wrong mode."""
    stopping = cli.config_init.get("early_stopping")
    if type(cli.model) is not LitLanguageModel or cli.config.trainer.callbacks or not stopping:
        return  # a module or a callback of the user's own may log any value
    higher_is_better: dict[str, bool | None] = {f"val/{name}": name == "accuracy" for name in NAMES}
    more = cli.model.metrics.more.items()
    higher_is_better |= {f"val/{name}": metric.higher_is_better for name, metric in more}
    others = (metric_names.TRAIN_LOSS, metric_names.LEARNING_RATE, metric_names.GRAD_NORM)
    if stopping.monitor not in (*higher_is_better, *others):
        raise ConfigError(
            f"early_stopping.monitor: {stopping.monitor!r} is never logged; validation logs "
            f"{', '.join(higher_is_better)}"
        )
    better = higher_is_better.get(stopping.monitor)  # None: a metric that does not say
    if better is not None and better != (stopping.mode == "max"):
        says = "the higher the better; give max" if better else "the lower the better; give min"
        raise ConfigError(f"early_stopping.mode={stopping.mode}: {stopping.monitor} is {says}")
