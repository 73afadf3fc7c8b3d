"""Words of the command line and config files -> settings, or one line that says what is wrong."""

import difflib
import inspect
import itertools
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonargparse
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lmtemplate import models, optimizers, schedules
from lmtemplate.callbacks import checkpointing, samples, stopping, throughput
from lmtemplate.errors import ConfigError

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
    "samples": samples,
    "throughput": throughput,
}


class ParseError(Exception):
    """What jsonargparse has to say, before it is put into one line."""


class Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ParseError(message) from ex


def settings_by_name(parser: Parser) -> dict[str, str]:
    """Last word of every setting -> its whole key path, those of our own classes included."""
    names = {action.dest.rpartition(".")[2]: action.dest for action in parser._actions}
    for path, room in ROOMS.items():
        for _, kind in inspect.getmembers(room, inspect.isclass):
            if kind.__module__.startswith(room.__name__):
                names.update({n: f"{path}.{n}" for n in inspect.signature(kind).parameters})
    return names


def where_is(word: str, config_files: list[Path]) -> str:
    """ "file:line" of a key in the last config that has it, else the command line."""
    for path in reversed(config_files):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if re.search(rf"\b{re.escape(word)}\b", line.partition("#")[0]):
                return f"{path}:{number}"
    return "command line"


def one_line(message: str, parser: Parser, config_files: list[Path]) -> str:
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
        where = where_is(name, config_files)
        if name in OWNED and key.startswith("trainer."):
            return f"{key} ({where}) is not a setting here" + (
                OWNED[name] and f"; use {OWNED[name]}"
            )
        known = settings_by_name(parser)
        close = [name] if name in known else difflib.get_close_matches(name, known, n=1)
        meant = f"; did you mean {known[close[0]]}?" if close else ""
        return f"unknown setting {key!r} ({where}){meant} (all: lmtemplate fit --help)"
    wrong = re.search(r"Parser key \"([\w.]+)\": (.*)", message)
    if wrong:
        key, problem = wrong[1], re.sub(r"<class '(\w+)'>", r"\1", wrong[2])
        return f"{key} ({where_is(key.rpartition('.')[2], config_files)}): {problem[:400]}"
    return message[:400]


def check_yaml(path: Path) -> None:
    """Raises ConfigError with file, line and column where a config cannot be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
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


def configure_parsing(allowed: list[str]) -> None:
    """Let configs and flags name classes of these packages only; nothing else is even imported."""
    # no public switch; tests/test_cli.py notices if it moves
    jsonargparse._typehints.discard_init_args_on_class_path_change = start_from_own_defaults
    jsonargparse.set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=["lmtemplate", "lightning", "torch", *allowed],
    )


def parse(parser: Parser, words: list[str]) -> jsonargparse.Namespace:
    """Settings of the command line and its configs. Raises ConfigError."""
    config_files = configs_in(words)
    for path in config_files:
        check_yaml(path)
    try:
        return parser.parse_args(words)
    except ParseError as error:
        raise ConfigError(one_line(str(error), parser, config_files)) from error
