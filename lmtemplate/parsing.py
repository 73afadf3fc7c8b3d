"""Command line and config files -> settings and objects, or one line that says what is wrong."""

import difflib
import inspect
import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jsonargparse
import lightning.pytorch as lightning
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmtemplate import callbacks as ours
from lmtemplate import models, optimizers, redact, schedules
from lmtemplate.callbacks import (
    checkpointing,
    guard,
    samples,
    signals,
    stopping,
    throughput,
)
from lmtemplate.checkpoint import ResumeMode
from lmtemplate.data.datamodule import TokenData
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.models import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import AdamW
from lmtemplate.run import parse_yaml
from lmtemplate.schedules import WarmupCosine

# Trainer arguments that lmtemplate sets itself, or has a better word for.
OWNED = {
    "barebones": "",
    "check_val_every_n_epoch": "trainer.val_check_interval, in optimizer steps",
    "default_root_dir": "run_dir",
    "enable_checkpointing": "checkpoint: null",
    "fast_dev_run": "--config configs/debug.yaml",
    "limit_train_batches": "trainer.max_steps",
    "max_epochs": "max_epochs, in passes over the data",
    "max_time": "max_seconds",
    "min_epochs": "",
    "min_steps": "",
    "overfit_batches": "",
    "reload_dataloaders_every_n_epochs": "",
    "use_distributed_sampler": "",
}


# Setting that names a class -> where such classes live, for "did you mean".
ROOMS: dict[str, ModuleType] = {
    "model.optimizer": optimizers,
    "model.schedule": schedules,
    "model.net": models,
    "early_stopping": stopping,
    "checkpoint": checkpointing,
    "guard": guard,
    "samples": samples,
    "signals": signals,
    "throughput": throughput,
}


# What the data states; a net takes it, but nobody sets it there.
LINKED = ("model.net.vocab_size", "model.net.block_size")


class ParseError(Exception):
    """What jsonargparse has to say, before it is put into one line."""


class Parser(LightningArgumentParser):
    """Raises what is wrong instead of printing a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ParseError(message) from ex


def settings_by_name(parser: Parser) -> dict[str, str]:
    """Last word of every setting -> its whole key path, those of our own classes included."""
    names = {action.dest.rpartition(".")[2]: action.dest for action in parser._actions}
    for path, room in ROOMS.items():
        for _, kind in inspect.getmembers(room, inspect.isclass):
            if kind.__module__.startswith(room.__name__):
                for name in inspect.signature(kind).parameters:
                    names.setdefault(name, f"{path}.{name}")
    return {name: path for name, path in names.items() if not path.startswith(LINKED)}


def where_is(word: str, config_files: list[Path]) -> str:
    """ "file:line" of a key in the last config that has it, else the command line."""
    for path in reversed(config_files):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(rf"\b{re.escape(word)}\b", line.partition("#")[0]):
                return f"{path}:{number}"
    return "command line"


def one_line(message: str, parser: Parser, config_files: list[Path], words: list[str]) -> str:
    """jsonargparse's message -> what is wrong, where, what to do."""
    message = " ".join(message.split())
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied:
        package = denied[1].split(".")[0]
        return (
            f"class {denied[1]} ({where_is(denied[1], config_files)}) is of a package that is not "
            f"allowed; add --allow {package} on the command line if you trust it"
        )
    unknown = re.search(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)", message)
    if unknown:
        key = unknown[1] or unknown[2]
        name = key.rpartition(".")[2]
        typed = any(word.startswith(f"--{key}") for word in words)
        where = "command line" if typed else where_is(name, config_files)
        in_config = "Group 'trainer'" in message
        if name in OWNED and (in_config or key.startswith("trainer.")):
            return f"trainer.{name} ({where}) is not a setting here" + (
                OWNED[name] and f"; use {OWNED[name]}"
            )
        known = settings_by_name(parser)
        close = [name] if name in known else difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {known[close[0]]}?" if close else ""
        return f"unknown setting {key!r} ({where}){meant} (all: lmtemplate fit --help)"
    wrong = re.search(r"Parser key \"([\w.]+)\": (.*)", message)
    if wrong:
        key, problem = wrong[1], re.sub(r"an? <class '(\w+)'>", r"\1", wrong[2])
        value = re.search(r"Got value: (\S+)", problem)
        typed = value is not None and any(word.endswith(value[1]) for word in words)
        where = "command line" if typed else where_is(key.rpartition(".")[2], config_files)
        return f"{key} ({where}): {problem[:400]}"
    return message[:400]


def check_yaml(path: Path) -> None:
    """Raises ConfigError with file, line and column where a config cannot be read."""
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        spot = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{spot} is not YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings; a config is a mapping of keys to values")


def configs_in(words: list[str]) -> list[Path]:
    """Files that the command line names with --config."""
    following = [b for a, b in itertools.pairwise(words) if a in ("-c", "--config")]
    joined = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return [Path(name) for name in following + joined]


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


def load_settings(text: str) -> Any:
    """Words of the command line, and files that a config names, with the limits of a config."""
    parse_yaml(text)
    return load_yaml(text)


def configure_parsing(allowed: list[str]) -> None:
    """Let configs and flags name classes of these packages only; nothing else is even imported."""
    # no public switch; tests/test_parsing.py notices if it moves
    jsonargparse._typehints.discard_init_args_on_class_path_change = start_from_own_defaults
    jsonargparse.set_loader("yaml", load_settings, (yaml.YAMLError,))
    jsonargparse.set_parsing_settings(
        config_read_mode_fsspec_enabled=False,  # Lightning's: settings would come over the network
        import_path_denylist=["*"],
        import_path_allowlist=["lmtemplate", "lightning", "torch", *allowed],
    )


def parse(parser: Parser, words: list[str]) -> jsonargparse.Namespace:
    """Settings of the command line and its configs. Raises ConfigError."""
    config_files = configs_in(words)
    for path in config_files:
        check_yaml(path)
    try:
        config = parser.parse_args(words)
        if not isinstance(config.trainer, jsonargparse.Namespace):
            raise ParseError('Parser key "trainer": expected settings, not a single value')
        return config
    except ParseError as error:
        raise ConfigError(one_line(str(error), parser, config_files, words)) from error


Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true", "bf16-true", "16-true", "64-true"]


RUN_LENGTHS = {
    "max_epochs": "passes over the training data",
    "max_tokens": "tokens",
    "max_flops": "model FLOPs, forward and backward",
    "max_seconds": "seconds, at the speed measured before step 1; also a hard limit",
    "tokens_per_parameter": "tokens / parameters (20 is Chinchilla's: Hoffmann et al. 2022)",
}

# Callbacks of every run, each under a key of its own.
CALLBACKS = {
    "early_stopping": ours.EarlyStopping,
    "lr_monitor": ours.LRMonitor,
    "checkpoint": ours.Checkpoint,
    "throughput": ours.Throughput,
    "samples": ours.Samples,
    "signals": ours.Signals,
    "guard": ours.Guard,
    "watch": ours.Watch,
}


class Trainer(lightning.Trainer):
    """Lightning's Trainer, whose precision may be `auto`.

    Args:
        precision: numbers to compute with; auto takes bf16-mixed where the device has it in
            hardware.
        max_steps: optimizer steps; -1 where another limit gives the run its length.
        val_check_interval: optimizer steps between validations.
        log_every_n_steps: optimizer steps between logged values.
        num_sanity_val_steps: validation batches before step 1; -1 for all of them.
    """

    def __init__(
        self,
        *,
        precision: Precision = "auto",
        max_steps: int = -1,
        val_check_interval: int = 100,
        log_every_n_steps: int = 5,
        num_sanity_val_steps: int = -1,
        **kwargs: Any,
    ) -> None:
        assert precision != "auto", "trainer.py chooses before it builds the Trainer"
        super().__init__(
            precision=precision,
            max_steps=max_steps,
            val_check_interval=val_check_interval,
            log_every_n_steps=log_every_n_steps,
            num_sanity_val_steps=num_sanity_val_steps,
            **kwargs,
        )


def class_spec(kind: type) -> dict[str, Any]:
    """How a config names a class."""
    return {"class_path": f"{kind.__module__}.{kind.__name__}"}


class TrainingCLI(LightningCLI):
    """LightningCLI that parses and instantiates; cli.py does the rest.

    Stock `--ckpt_path` lets the checkpoint's settings beat the command line, hence no subcommands.

    Args:
        words: of the command line, after the verb.
        verb: whose help it is.
    """

    def __init__(self, words: list[str], verb: str = "fit") -> None:
        super().__init__(
            LitLanguageModel,
            TokenData,
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
        parser.add_lightning_class_args(LitLanguageModel, "model")
        parser.add_lightning_class_args(TokenData, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # one key each at the top, so that a second config changes one value and loses none of them
        for name, kind in CALLBACKS.items():
            default = class_spec(kind)
            parser.add_argument(f"--{name}", type=kind | None, default=default, help="null: off")
        parser.set_defaults(
            {
                "model.net": class_spec(GPT),
                "model.optimizer": class_spec(AdamW),
                "model.schedule": class_spec(WarmupCosine),
            }
        )
        parser.link_arguments("data.block_size", "model.net.init_args.block_size")
        parser.link_arguments(
            "data.vocab_size", "model.net.init_args.vocab_size", apply_on="instantiate"
        )
        parser.link_arguments("seed_everything", "data.seed")

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--seed_everything",
            type=jsonargparse.typing.NonNegativeInt,
            default=self.seed_everything_default,
            help="seed of weights, dropout and the order of the data",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, Parser)
        self.config = parse(parser, args)

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
            raise ConfigError(" ".join(str(error).split())[:400]) from error

    def instantiate_trainer(self, **_: Any) -> Trainer:
        return None  # type: ignore[return-value]  # built by the verb, when it knows the Plan

    @property
    def settings(self) -> dict[str, Any]:
        """The config as plain types, defaults included, what is linked left out, secrets hidden."""
        dumped = self.parser.dump(self.config, skip_unset=False)
        settings: dict[str, Any] = yaml.safe_load(dumped)
        settings.pop("resume")
        return redact.settings(settings)
