"""Command line and config files -> settings and objects, or one line that says what is wrong."""

import importlib
import warnings
from functools import cached_property
from typing import Any, Literal

import jsonargparse
import lightning.pytorch as lightning
import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lmtemplate import callbacks as ours
from lmtemplate import plug, redact
from lmtemplate.checkpoint.resume import ResumeMode
from lmtemplate.cli_errors import OWNED, flags_in, one_line, read_config, split_configs
from lmtemplate.data.datamodule import TokenData
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.models import GPT
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import AdamW
from lmtemplate.schedules import WarmupCosine

Seed = jsonargparse.typing.restricted_number_type(
    "Seed", int, [(">=", 0), ("<=", 2**32 - 1)], docstring="what NumPy takes"
)


class ParseError(ValueError):
    """What jsonargparse has to say, before it is put into one line."""


class Parser(LightningArgumentParser):
    """Raises what is wrong instead of printing a page of usage."""

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


def configure_parsing(allowed: list[str]) -> None:
    """Let configs and flags name classes of these packages only; nothing else is even imported."""
    # no public switch; tests/test_cli.py fails if the name changes
    jsonargparse._typehints.discard_init_args_on_class_path_change = start_from_own_defaults
    jsonargparse.set_parsing_settings(
        config_read_mode_fsspec_enabled=False,  # Lightning's: settings would come over the network
        import_path_denylist=["*"],
        import_path_allowlist=["lmtemplate", "lightning", "torch", *allowed],
    )


def parse(parser: Parser, words: list[str]) -> jsonargparse.Namespace:
    """Settings of configs, the last of which wins, and of flags, which beat every config.

    Raises ConfigError.
    """
    configs, flags = split_configs(words)
    made = [place for path in reversed(configs) for place in read_config(path)]
    try:
        config = parser.parse_args([*(f"--config={path}" for path in configs), *flags])
        if not isinstance(config.trainer, jsonargparse.Namespace):
            raise ParseError('Parser key "trainer": no settings')
        return config
    except ValueError as error:
        defaults, made = dict(parser.get_defaults().items()), flags_in(flags) + made
        raise ConfigError(one_line(str(error), parser.prog, defaults, made)) from error


Precision = Literal["auto", "bf16-mixed", "16-mixed", "32-true", "bf16-true", "16-true", "64-true"]

# Key -> the unit that it gives a run its length in.
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


def load_class(path: str) -> type:
    """The class at a dotted path of ours."""
    module, _, name = path.rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


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
        plugged = {name: load_class(path) for name, path in plug.callbacks().items()}
        for name, kind in {**CALLBACKS, **plugged}.items():
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
            type=Seed,
            default=self.seed_everything_default,
            help="seed of weights, dropout and the order of the data",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, Parser)
        self.config = parse(parser, args)

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
            raise ConfigError(" ".join(str(error).split())[:400]) from error

    def instantiate_trainer(self, **_: Any) -> Trainer:
        return None  # type: ignore[return-value]  # built by the verb, when it knows the Plan

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config as plain types, defaults included, what is linked left out, secrets hidden."""
        dumped = self.parser.dump(self.config, skip_unset=False)
        settings: dict[str, Any] = yaml.safe_load(dumped)
        settings.pop("resume")
        return redact.settings(settings)
