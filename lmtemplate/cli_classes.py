"""The classes that a config names -> the classes, and the settings that their constructors take."""

import importlib
import inspect
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import jsonargparse
import torch
import yaml

from lmtemplate import plug
from lmtemplate.callbacks import CALLBACKS
from lmtemplate.cli_errors import Place, find
from lmtemplate.data.datamodule import LanguageData, TokenData
from lmtemplate.errors import ConfigError
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import OptimizerRecipe
from lmtemplate.schedules import Schedule

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
    if not all(map(str.isidentifier, place.value.split("."))) or package == place.value:
        raise ConfigError(
            f"{where}: {place.value!r} is not package.module.Class; a setting of {group} is "
            f"{group}.NAME"
        )
    if package not in ("lmtemplate", *allowed):
        raise ConfigError(f"{where}: {place.value} is not of lmtemplate; add --allow {package}")
    try:
        found = load_class(place.value)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import {place.value!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{where}: {place.value} is not a subclass of {base.__name__}")
    return found


def check_kinds(model: Any, made: list[Place]) -> None:
    """Raises ConfigError, with the place, where an optimizer or a schedule is of another kind.

    Args:
        model: the settings of the module, parsed.
        made: the settings that the user made, those that win first.
    """
    for name, kinds in KINDS.items():
        key, path = f"model.{name}", str(getattr(model[name], "class_path", model[name]))
        found = load_class(path)
        if not (isinstance(found, type) and issubclass(found, kinds)):
            names = " nor ".join(kind.__name__ for kind in kinds)
            raise ConfigError(f"{key} ({find(key, made).where}): {path} is neither {names}")


def flat_settings(settings: dict[str, Any], foreign: frozenset[str]) -> dict[str, Any]:
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


load_yaml = jsonargparse.get_loader("yaml")  # knows numbers like 3e-4


def load_settings(text: str, foreign: frozenset[str] = frozenset()) -> Any:
    """What jsonargparse reads: a whole config, or the value of one flag."""
    settings = load_yaml(text)
    return flat_settings(settings, foreign) if isinstance(settings, dict) else settings


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
