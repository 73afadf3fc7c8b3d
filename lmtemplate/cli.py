"""Command line and config files -> settings and objects, or one line that says what is wrong."""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmtemplate import cli_classes, cli_errors, metric_names, redact
from lmtemplate.callbacks import OFF
from lmtemplate.checkpoint.resume import ResumeMode
from lmtemplate.cli_classes import OPEN, class_spec
from lmtemplate.cli_errors import Place, find
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.hardware import device_name, missing_compiler
from lmtemplate.metrics import NAMES
from lmtemplate.models.gpt import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import AdamW
from lmtemplate.run_length import RUN_LENGTHS
from lmtemplate.schedules import WarmupCosine
from lmtemplate.trainer import Machine, Trainer, as_list, check_callbacks, find_machine

Seed = jsonargparse.typing.restricted_number_type(
    "Seed", int, [(">=", 0), ("<=", 2**32 - 1)], docstring="what NumPy takes"
)


class Parser(LightningArgumentParser):
    """Dumps the class_path of model and data as well."""

    classes: dict[str, type] | None = None  # group -> class that its class_path names

    def dump(self, *args: Any, **kwargs: Any) -> str:
        text = super().dump(*args, **kwargs)
        if not self.classes:
            return text
        settings = yaml.safe_load(text)
        for group, kind in self.classes.items():
            settings[group] = {**class_spec(kind), **(settings.get(group) or {})}
        return cli_classes.to_yaml(settings)


def parse(parser: Parser, words: list[str], made: list[Place]) -> jsonargparse.Namespace:
    """Settings of configs, the last of which wins, and of flags, which beat every config."""
    configs, flags = cli_errors.split_configs(words)
    words = [*(f"--config={path}" for path in configs), *cli_classes.flat_words(flags)]
    config = cli_errors.parse_words(parser, words, made)
    if not isinstance(config.trainer, jsonargparse.Namespace):
        raise ConfigError(f"trainer ({find('trainer', made).where}): expected settings below it")
    return config


def settings_made(words: list[str]) -> list[Place]:
    """Every setting that flags and configs make, those that win first. Raises ConfigError."""
    configs, flags = cli_errors.split_configs(words)
    made = [place for path in reversed(configs) for place in cli_errors.read_config(path)]
    return cli_errors.flags_in(flags) + made


# Key of a setting that no class takes -> its type, default and help.
RUN_SETTINGS: dict[str, tuple[Any, Any, str]] = {
    "run_dir": (str, "runs/default", "where the run leaves everything"),
    "resume": (ResumeMode, "never", "go on in run_dir: never, auto (if it has a checkpoint), must"),
    "report": (bool, True, "at the end: verdict, summary, pictures and report.html"),
    "tensorboard": (bool, True, "write TensorBoard's event files"),
    "init_from": (str | None, None, "run or checkpoint to take the first weights from"),
    **{name: (float | None, None, f"run length in {unit}") for name, unit in RUN_LENGTHS.items()},
    "tokens_per_step": (int | None, None, "size of one step, instead of accumulate_grad_batches"),
}


class TrainingCLI(LightningCLI):
    """LightningCLI that parses and instantiates; fit.py does the rest.

    Stock `--ckpt_path` lets the checkpoint's settings beat the command line, hence no subcommands.
    """

    def __init__(self, words: list[str], allowed: Sequence[str] = (), verb: str = "fit") -> None:
        self.made, self.allowed = settings_made(words), allowed
        cli_classes.check_values(self.made)
        self.callback_classes = cli_classes.callback_classes()
        chosen = cli_classes.chosen_class
        self.classes = {group: chosen(group, self.made, allowed) for group in OPEN}
        cli_classes.configure_parsing(allowed, self.classes["data"])
        settings = {"prog": f"lmtemplate {verb}", "allow_abbrev": False, "exit_on_error": False}
        super().__init__(
            self.classes["model"],
            self.classes["data"],
            save_config_callback=None,
            trainer_class=Trainer,
            parser_class=Parser,
            parser_kwargs=settings,
            args=words,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, (kind, default, says) in RUN_SETTINGS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=says)
        how = {"instantiate": False, "sub_configs": True, "fail_untyped": False}
        parser.add_class_arguments(Trainer, "trainer", skip=set(cli_errors.OWNED), **how)
        parser.add_lightning_class_args(self.classes["model"], "model")
        parser.add_lightning_class_args(self.classes["data"], "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # one key each at the top, so that a second config changes one value and loses none of them
        for name, kind in self.callback_classes.items():
            taken = inspect.signature(kind).parameters.values()
            is_off = name in OFF or any(one.default is one.empty for one in taken)
            default = None if is_off else class_spec(kind)
            parser.add_argument(f"--{name}", type=kind | None, default=default, help="null: off")
        for name, kind in (("net", GPT), ("optimizer", AdamW), ("schedule", WarmupCosine)):
            parser.set_defaults({f"model.{name}": class_spec(kind)})
        for name in ("block_size", "vocab_size"):
            target = f"model.net.init_args.{name}"
            parser.link_arguments(f"data.{name}", target, apply_on="instantiate")
        if "seed" in inspect.signature(self.classes["data"]).parameters:
            parser.link_arguments("seed_everything", "data.seed")

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        says = "seed of weights, dropout and the order of the data"
        parser.add_argument("--seed_everything", type=Seed, default=1337, help=says)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, Parser)
        parser.classes = {k: v for k, v in self.classes.items() if v is not OPEN[k][1]}
        self.config = parse(parser, args, self.made)
        named = {**self.config.as_dict(), "config": None}  # paths, which jsonargparse can call
        cli_classes.check_classes("", named, self.made, self.allowed)

    def instantiate_classes(self) -> None:
        """Build data, net and callbacks. What their constructors object to becomes one line."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ArithmeticError) as error:
            cause: BaseException | None = error
            while cause is not None:  # jsonargparse wraps what a constructor raised
                if isinstance(cause, UserError):
                    raise cause from error
                cause = cause.__cause__ or cause.__context__
            raise ConfigError(cli_errors.class_problem(str(error))) from error

    def instantiate_trainer(self, **_: Any) -> Trainer:
        return None  # type: ignore[return-value]  # fit.py builds it, when it knows the length

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
        return [self.config_init[key] for key in self.callback_classes if self.config_init[key]]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as plain types, defaults included, what is linked left out, secrets hidden."""
        settings = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        settings.pop("resume")
        return redact.settings(settings)


def check_settings(cli: TrainingCLI, steps: int) -> None:
    """Raises ConfigError for settings that contradict each other, before anything is written."""
    trainer, warmup = cli.config.trainer, getattr(cli.model.schedule, "warmup_steps", 0)
    for name in ("val_check_interval", "log_every_n_steps", "gradient_clip_val"):
        if trainer[name] is not None and trainer[name] <= 0:
            raise ConfigError(f"trainer.{name}={trainer[name]} has to be above 0")
    if warmup > steps:
        says = f"is longer than the run of {steps} steps; lower it"
        raise ConfigError(f"model.schedule.warmup_steps={warmup} {says}")
    if cli.model.compile_net is True and (missing := missing_compiler(cli.machine.device)):
        raise ConfigError(f"model.compile: true needs {missing}; give auto or false")
    interval, batches = trainer.val_check_interval, trainer.limit_val_batches
    if isinstance(batches, float) and batches < 1:  # a share of all
        batches *= len(cli.datamodule.val_dataloader())
    if interval > steps or (batches is not None and batches < 1):
        raise ConfigError(
            f"validation would never happen: trainer.val_check_interval={interval} in a run of "
            f"{steps} steps, trainer.limit_val_batches={trainer.limit_val_batches}; lower the "
            "first, or for a short validation set data.max_val_blocks instead of the second"
        )
    check_callbacks(as_list(cli.trainer_settings["callbacks"]))
    check_monitor(cli)


def check_monitor(cli: TrainingCLI) -> None:
    """Raises ConfigError where early stopping waits for a value that nothing logs."""
    stopping = cli.config_init.get("early_stopping")
    if type(cli.model) is not LitLanguageModel or cli.config.trainer.callbacks or not stopping:
        return  # a module or a callback of the user's own may log any value
    logged = [f"val/{name}" for name in (*NAMES, *cli.model.metrics.more)]
    others = (metric_names.TRAIN_LOSS, metric_names.LEARNING_RATE, metric_names.GRAD_NORM)
    if stopping.monitor not in (*logged, *others):
        raise ConfigError(
            f"early_stopping.monitor: {stopping.monitor!r} is never logged; validation logs "
            f"{', '.join(logged)}"
        )
