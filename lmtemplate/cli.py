"""Command line and config files -> settings and objects, or one line that says what is wrong."""

import importlib
import inspect
import warnings
from collections.abc import Sequence
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import jsonargparse
import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmtemplate import plug, redact
from lmtemplate.callbacks import CALLBACKS, OFF
from lmtemplate.checkpoint.resume import ResumeMode
from lmtemplate.cli_errors import (
    OWNED,
    Place,
    class_problem,
    find,
    flags_in,
    one_line,
    read_config,
    split_configs,
)
from lmtemplate.data.datamodule import LanguageData, TokenData
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.models.gpt import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import AdamW, OptimizerRecipe
from lmtemplate.schedules import Schedule, WarmupCosine
from lmtemplate.trainer import Trainer, as_list, check_callbacks

Seed = jsonargparse.typing.restricted_number_type(
    "Seed", int, [(">=", 0), ("<=", 2**32 - 1)], docstring="what NumPy takes"
)


class ParseError(ValueError):
    """What jsonargparse has to say, before it is put into one line."""


class Parser(LightningArgumentParser):
    """Raises what is wrong instead of printing a page of usage."""

    classes: dict[str, type] | None = None  # group -> class that its class_path names

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The settings as YAML, with the class_path of model and data."""
        text = super().dump(*args, **kwargs)
        if not self.classes:
            return text
        settings = yaml.safe_load(text)
        for group, kind in self.classes.items():
            settings[group] = {**class_spec(kind), **(settings.get(group) or {})}
        return yaml.safe_dump(settings, sort_keys=False)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ParseError(message) from ex


def start_from_own_defaults(_: Any, before: Any, value: Any) -> None:
    """Forget a class's settings when another class is named.

    jsonargparse keeps those whose names both classes have: over a config with Muon,
    `--model.optimizer AdamW` would silently train AdamW at Muon's learning rate.
    """
    if not before or "init_args" not in before:
        return
    named = [str(spec["class_path"]).rpartition(".")[2] for spec in (before, value)]
    if named[0] != named[1]:
        before["init_args"] = type(before["init_args"])()


load_yaml = jsonargparse.get_loader("yaml")  # knows numbers like 3e-4


def flat(settings: dict[str, Any], foreign: frozenset[str]) -> dict[str, Any]:
    """Settings with `model` and `data` as constructor arguments, whatever class they name.

    Args:
        settings: of one config, or the value of one flag.
        foreign: settings of TokenData that the data's own class does not take; a config that names
            no class of data has written them for TokenData.
    """
    for group in OPEN.keys() & settings.keys():
        spec = settings[group]
        if isinstance(spec, dict) and {"class_path", "init_args"} & spec.keys():
            own = {key: value for key, value in spec.items() if key != "class_path"}
            settings[group] = {**(own.pop("init_args", None) or {}), **own}
        elif isinstance(spec, dict) and group == "data":
            settings[group] = {key: value for key, value in spec.items() if key not in foreign}
    return settings


def flat_words(words: list[str]) -> list[str]:
    """The command line without `--model.class_path X`, which has been read, and `.init_args`."""
    flat_ones, rest = list[str](), iter(words)
    for word in rest:
        name = word.partition("=")[0]
        if name.removesuffix(".class_path") in [f"--{group}" for group in OPEN]:
            if word == name:
                next(rest, None)
            continue
        for group in OPEN:
            word = word.replace(f"--{group}.init_args.", f"--{group}.")
        flat_ones.append(word)
    return flat_ones


def load_settings(text: str, foreign: frozenset[str] = frozenset()) -> Any:
    """What jsonargparse reads: a whole config, or the value of one flag."""
    settings = load_yaml(text)
    return flat(settings, foreign) if isinstance(settings, dict) else settings


def configure_parsing(allowed: Sequence[str], data: type = TokenData) -> None:
    """Let configs and flags name classes of these packages only; nothing else is even imported.

    Args:
        allowed: packages beside our own and those that it stands on.
        data: class of the data.
    """
    taken, others = (inspect.signature(kind).parameters.keys() for kind in (data, TokenData))
    load = partial(load_settings, foreign=frozenset(others - taken))
    # no public switch; tests/test_cli.py fails if the name changes
    jsonargparse._typehints.discard_init_args_on_class_path_change = start_from_own_defaults
    jsonargparse.set_loader("yaml", load, (yaml.YAMLError,))
    jsonargparse.set_parsing_settings(
        config_read_mode_fsspec_enabled=False,  # Lightning's: settings would come over the network
        import_path_denylist=["*"],
        import_path_allowlist=["lmtemplate", "lightning", "torch", "torchmetrics", *allowed],
    )


def parse(parser: Parser, words: list[str], made: list[Place]) -> jsonargparse.Namespace:
    """Settings of configs, the last of which wins, and of flags, which beat every config.

    Raises ConfigError.

    Args:
        parser: knows every setting.
        words: of the command line, in any order.
        made: the settings that the user made, those that win first.
    """
    configs, flags = split_configs(words)
    try:
        config = parser.parse_args([*(f"--config={path}" for path in configs), *flat_words(flags)])
        if not isinstance(config.trainer, jsonargparse.Namespace):
            raise ParseError('Parser key "trainer": no settings')
        return config
    except ValueError as error:
        defaults = dict(parser.get_defaults().items())
        raise ConfigError(one_line(str(error), parser.prog, defaults, made)) from error


def settings_made(words: list[str]) -> list[Place]:
    """Every setting that flags and configs make, those that win first. Raises ConfigError."""
    configs, flags = split_configs(words)
    return flags_in(flags) + [place for path in reversed(configs) for place in read_config(path)]


# Key -> the unit that it gives a run its length in.
RUN_LENGTHS = {
    "max_epochs": "epochs: passes over the training data",
    "max_tokens": "tokens",
    "max_flops": "model FLOPs, forward and backward",
    "max_seconds": "seconds, at the speed measured before step 1; also a hard limit",
    "tokens_per_parameter": "tokens / parameters (20 is Chinchilla's: Hoffmann et al. 2022)",
}

# Key that a class_path opens -> what the class has to be, and the one that is used without it.
OPEN: dict[str, tuple[type, type]] = {
    "model": (LitLanguageModel, LitLanguageModel),
    "data": (LanguageData, TokenData),
}

# Key whose class is one of ours or of torch's kind; a function, which Python could call, is not.
KINDS: dict[str, tuple[type, ...]] = {
    "optimizer": (OptimizerRecipe, torch.optim.Optimizer),
    "schedule": (Schedule, torch.optim.lr_scheduler.LRScheduler),
}


def load_class(path: str) -> Any:
    """What stands at a dotted path. Raises ImportError, AttributeError or ValueError."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def callback_classes() -> dict[str, type]:
    """Config key -> callback, in the order in which they act, without those whose file is gone."""
    listed = {**CALLBACKS, **plug.callbacks()}
    kept = {key: path for key, path in listed.items() if find_spec(path.rpartition(".")[0])}
    return {key: load_class(path) for key, path in kept.items()}


def class_spec(kind: type) -> dict[str, Any]:
    """How a config names a class."""
    return {"class_path": f"{kind.__module__}.{kind.__name__}"}


def chosen_class(group: str, made: list[Place], allowed: Sequence[str]) -> type:
    """The class that `model.class_path` or `data.class_path` names, or the default.

    Raises ConfigError, with the place, where it cannot be imported or is of another kind.
    """
    base, default = OPEN[group]
    keys = [(f"{group}.class_path", place.where) for place in made] + [(group, "command line")]
    place = next((place for place in made if place[:2] in keys and place.value), None)
    if place is None:
        return default
    where, package = f"{group}.class_path ({place.where})", place.value.partition(".")[0]
    if package not in ("lmtemplate", *allowed):
        raise ConfigError(f"{where}: {place.value} is not of lmtemplate; add --allow {package}")
    try:
        found = load_class(place.value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import {place.value!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{where}: {place.value} is not a subclass of {base.__name__}")
    return found


class TrainingCLI(LightningCLI):
    """LightningCLI that parses and instantiates; fit.py does the rest.

    Stock `--ckpt_path` lets the checkpoint's settings beat the command line, hence no subcommands.

    Args:
        words: of the command line, after the verb.
        allowed: packages outside lmtemplate whose classes a config may name.
        verb: whose help it is.
    """

    def __init__(self, words: list[str], allowed: Sequence[str] = (), verb: str = "fit") -> None:
        self.made = settings_made(words)
        self.callback_classes = callback_classes()
        self.classes = {group: chosen_class(group, self.made, allowed) for group in OPEN}
        configure_parsing(allowed, self.classes["data"])
        super().__init__(
            self.classes["model"],
            self.classes["data"],
            save_config_callback=None,
            trainer_class=Trainer,
            seed_everything_default=1337,
            parser_class=Parser,
            parser_kwargs={"prog": f"lmtemplate {verb}", "allow_abbrev": False},
            args=words,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir", type=str, default="runs/default", help="where the run leaves everything"
        )
        parser.add_argument(
            "--resume",
            type=ResumeMode,
            default="never",
            help="continue the run in run_dir: never, auto (if it has a checkpoint) or must",
        )
        parser.add_argument(
            "--report",
            type=bool,
            default=True,
            help="at the end: verdict, summary, pictures and report.html",
        )
        parser.add_argument(
            "--tensorboard", type=bool, default=True, help="write TensorBoard's event files"
        )
        parser.add_argument(
            "--init_from", type=str | None, help="run or checkpoint to take the first weights from"
        )
        for name, text in RUN_LENGTHS.items():
            parser.add_argument(f"--{name}", type=float | None, help=f"run length in {text}")
        parser.add_argument(
            "--tokens_per_step",
            type=int | None,
            help="tokens of one optimizer step, instead of trainer.accumulate_grad_batches",
        )
        parser.add_class_arguments(
            Trainer,
            "trainer",
            skip=set(OWNED),
            instantiate=False,
            sub_configs=True,
            fail_untyped=False,
        )
        parser.add_lightning_class_args(self.classes["model"], "model")
        parser.add_lightning_class_args(self.classes["data"], "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # one key each at the top, so that a second config changes one value and loses none of them
        for name, kind in self.callback_classes.items():
            default = None if name in OFF else class_spec(kind)
            parser.add_argument(f"--{name}", type=kind | None, default=default, help="null: off")
        parser.set_defaults(
            {
                "model.net": class_spec(GPT),
                "model.optimizer": class_spec(AdamW),
                "model.schedule": class_spec(WarmupCosine),
            }
        )
        for name in ("block_size", "vocab_size"):
            target = f"model.net.init_args.{name}"
            parser.link_arguments(f"data.{name}", target, apply_on="instantiate")
        if "seed" in inspect.signature(self.classes["data"]).parameters:
            parser.link_arguments("seed_everything", "data.seed")

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=Seed,
            default=self.seed_everything_default,
            help="seed of weights, dropout and the order of the data",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, Parser)
        parser.classes = {k: v for k, v in self.classes.items() if v is not OPEN[k][1]}
        self.config = parse(parser, args, self.made)
        for key, kinds in KINDS.items():
            self.check_kind(f"model.{key}", self.config.model[key], kinds)

    def check_kind(self, key: str, spec: Any, kinds: tuple[type, ...]) -> None:
        """Raises ConfigError unless the class that stands under a key is of one of these kinds."""
        path = str(getattr(spec, "class_path", spec))
        found = load_class(path)
        if not (isinstance(found, type) and issubclass(found, kinds)):
            place = find(key, self.made)
            names = " nor ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{key} ({place.where}): {path} is neither {names}")

    def instantiate_classes(self) -> None:
        """Build data, net and callbacks. What their constructors object to becomes one line."""
        try:
            with warnings.catch_warnings():  # Lightning calls jsonargparse by an old name
                warnings.simplefilter("ignore", DeprecationWarning)
                super().instantiate_classes()
        except (ValueError, TypeError, ArithmeticError) as error:
            cause: BaseException | None = error
            while cause is not None:  # jsonargparse wraps what a constructor raised
                if isinstance(cause, UserError):
                    raise cause from error
                cause = cause.__cause__ or cause.__context__
            raise ConfigError(class_problem(str(error))) from error

    def instantiate_trainer(self, **_: Any) -> Trainer:
        return None  # type: ignore[return-value]  # fit.py builds it, when it knows the length

    @property
    def trainer_settings(self) -> dict[str, Any]:
        """What stands under `trainer`, in the user's units, with its classes instantiated."""
        settings: dict[str, Any] = self.config_init.trainer.as_dict()
        return settings

    @property
    def callbacks(self) -> list[Any]:
        """Those that have a key of their own and are not switched off, in the list's order."""
        return [self.config_init[key] for key in self.callback_classes if self.config_init[key]]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as plain types, defaults included, what is linked left out, secrets hidden."""
        dumped = self.parser.dump(self.config, skip_unset=False)
        settings: dict[str, Any] = yaml.safe_load(dumped)
        settings.pop("resume")
        return redact.settings(settings)


def check_settings(cli: TrainingCLI, steps: int) -> None:
    """Raises ConfigError for settings that contradict each other, before anything is written."""
    trainer, warmup = cli.config.trainer, getattr(cli.model.schedule, "warmup_steps", 0)
    for name in ("val_check_interval", "log_every_n_steps"):
        if trainer[name] < 1:
            raise ConfigError(f"trainer.{name}={trainer[name]} has to be 1 or more")
    if trainer.gradient_clip_val is not None and trainer.gradient_clip_val <= 0:
        raise ConfigError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} has to be above 0, or null"
        )
    if warmup > steps:
        raise ConfigError(
            f"model.schedule.warmup_steps={warmup} is longer than the run of {steps} steps; "
            "lower it"
        )
    never = "validation would never happen: trainer."
    share = trainer.limit_val_batches
    if isinstance(share, float) and share < 1:
        share *= len(cli.datamodule.val_dataloader())
    if share is not None and share < 1:
        raise ConfigError(
            f"{never}limit_val_batches={trainer.limit_val_batches} is less than one batch; for a "
            "short validation lower data.max_val_blocks"
        )
    if trainer.val_check_interval > steps:
        raise ConfigError(
            f"{never}val_check_interval={trainer.val_check_interval} in a run of {steps} steps; "
            f"lower it to {max(1, steps // 10)}, say"
        )
    check_callbacks(as_list(cli.trainer_settings["callbacks"]))
    check_monitor(cli)


def check_monitor(cli: TrainingCLI) -> None:
    """Raises ConfigError where early stopping waits for a value that nothing logs.

    A module, a net or a callback of the user's own may log any value.
    """
    stopping = cli.config_init.get("early_stopping")
    is_own = type(cli.model) is LitLanguageModel and not cli.config.trainer.callbacks
    if stopping is None or not is_own:
        return
    logged = [f"val/{name}" for name in cli.model.metrics.names]
    if stopping.monitor not in (*logged, "train/loss", "optim/lr", "optim/grad_norm"):
        raise ConfigError(
            f"early_stopping.monitor: {stopping.monitor!r} is never logged; validation logs "
            f"{', '.join(logged)}"
        )
