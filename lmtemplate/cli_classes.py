"""The classes that a config names -> the classes, and the settings that their constructors take."""

import inspect
import re
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import jsonargparse
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric

from lmtemplate import plug
from lmtemplate.callbacks import CALLBACKS
from lmtemplate.cli_words import Place, find
from lmtemplate.data.datamodule import LanguageData, TokenData
from lmtemplate.errors import CHOSEN, ConfigError
from lmtemplate.module import LitLanguageModel
from lmtemplate.optimizers import OptimizerRecipe
from lmtemplate.schedules import Schedule

# Key that a class_path opens -> what the class has to be, and the one that is used without it.
OPEN: dict[str, tuple[type, type]] = {
    "model": (LitLanguageModel, LitLanguageModel),
    "data": (LanguageData, TokenData),
}

# What may be imported, with all below it.
DTYPES = [f"torch.{name}" for name, one in vars(torch).items() if isinstance(one, torch.dtype)]
PREFIXES = ("lmtemplate", "torch.nn", "torch.optim", "torchmetrics", "torch.dtype", *DTYPES)

# Where the parts lie that any config may name -> what they are. `--allow` opens a whole package.
NAMEABLE: dict[str, tuple[type, ...]] = {
    "lmtemplate": (torch.nn.Module, OptimizerRecipe, Schedule, Callback),
    "torch.nn.modules": (torch.nn.Module,),
    "torch.optim": (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler),
    "torchmetrics.classification": (Metric,),  # others fetch models and read files
    "torchmetrics.regression": (Metric,),
    "torchmetrics.text.perplexity": (Metric,),
}

ENDLESS = re.compile(r"(?<![\w.])(\w+\.){100}")  # a name that would be looked up part by part
LOST = "Unable to serialize instance"  # how jsonargparse writes what has no text


def callback_classes() -> dict[str, type]:
    """Config key -> callback, in the order in which they act, without those whose file is gone."""
    listed = {**CALLBACKS, **plug.callbacks()}
    kept = {key: path for key, path in listed.items() if find_spec(path.rpartition(".")[0])}
    return {key: plug.load_named(path, key) for key, path in kept.items()}


def class_spec(kind: type) -> dict[str, Any]:
    """How a config names a class."""
    return {"class_path": f"{kind.__module__}.{kind.__name__}"}


def chosen_class(group: str, made: list[Place], allowed: Sequence[str]) -> type:
    """The class that `model.class_path` or `data.class_path` names, or the default."""
    base, default = OPEN[group]
    keys = (group, f"{group}.class_path")
    place = next((place for place in made if place.key in keys and place.value), None)
    if place is None:
        return default
    path, where = place.value, f"{group}.class_path ({place.where})"
    found = plug.load_named(path, where, allowed)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{where}: {path} is not a subclass of {base.__name__}")
    return found


def check_class(key: str, found: Any, made: list[Place], allowed: Sequence[str]) -> None:
    """Raises ConfigError for what no config may name, or not at this key, unless it is allowed."""
    place, name = find(key, made), getattr(found, "__name__", str(found))
    module, bases = str(getattr(found, "__module__", "")), {*getattr(found, "__mro__", ())}
    package = module.partition(".")[0]
    # a run has callbacks of its own; here they could be told to write to another run
    parts = {} if key == "trainer.callbacks" else NAMEABLE
    kinds = sum((kinds for home, kinds in parts.items() if f"{module}.".startswith(f"{home}.")), ())
    if bases.isdisjoint(kinds) and package not in allowed:
        raise ConfigError(
            f"{place}: {module}.{name} is not among the classes that any config may name; add "
            f"--allow {package} on the command line if you trust it"
        )


def check_run_dir(made: list[Place]) -> None:
    """Raises ConfigError for an address, or a name that a program would take for a flag."""
    for place in (place for place in made if place.key == "run_dir"):
        if re.search(r"^(\./+)*-|::|://|[\0-\x1f\ud800-\udfff]", place.value):
            raise ConfigError(f"{place}: {place.value!r:.100} is a flag, an address or no name")


def check_nulls(key: str, settings: Mapping[str, Any], kind: Any, made: list[Place]) -> None:
    """Raises ConfigError where a class's settings are null and may not be: jsonargparse lets it."""
    for name, one in inspect.signature(kind).parameters.items():
        place, type_of = find(f"{key}.{name}", made), one.annotation
        is_given = place in made or one.default is not one.empty  # vocab_size is not: it is linked
        is_open = type_of in (one.empty, Any) or isinstance(type_of, str) or one.default is None
        takes_null = is_open or type(None) in get_args(type_of)
        if settings.get(name, "") is None and is_given and not takes_null:
            raise ConfigError(f"{place}: null is no value here")


def note_chosen(kind: type, place: Place) -> None:
    """Remember a library's class, so that an error of its code is told as one of its setting."""
    for base in kind.__mro__ if isinstance(kind, type) else ():
        file = getattr(sys.modules.get(base.__module__), "__file__", None)
        if file and base is not torch.nn.Module:
            CHOSEN[file] = f"{place}: {kind.__name__}"


def is_plain(value: Any) -> bool:
    """Whether a value is of types that jsonargparse writes and reads back as they were."""
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(map(is_plain, value.values()))
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    kept = isinstance(value, Path | jsonargparse.Namespace | torch.dtype)
    return kept or type(value) in (str, int, float, bool, type(None))


def comes_back(value: Any, default: Any, allowed: Sequence[str]) -> bool:
    """Whether a class's default, as jsonargparse has read it, comes back from a file as it was."""
    homes = tuple(f"{home}." for home in (*PREFIXES, *allowed))
    if type(value) is str:  # it makes one of a function of a package that is not allowed
        return isinstance(default, str) or value.startswith(homes)
    if "<" in getattr(value, "__qualname__", "<"):  # neither a class nor a function with a name
        return is_plain(value) or is_plain(default)
    module = str(getattr(value, "__module__", ""))
    is_class = isinstance(value, type) and f"{module}.".startswith(homes)
    return is_class or module.partition(".")[0] in allowed


def leave_out(
    key: str, args: dict[str, Any], kind: Any, made: list[Place], allowed: Sequence[str]
) -> None:
    """Drop a class's defaults, nowhere set, that do not come back: the class has them itself."""
    for name, one in inspect.signature(kind).parameters.items():
        above = (place.value for place in made if f"{key}.".startswith(f"{place.key}."))
        is_set = any(re.search(rf"\b{name}\b", text) for text in above)
        if is_set or find(f"{key}.{name}", made) in made or one.default is one.empty:
            continue
        if name in args and not comes_back(args[name], one.default, allowed):
            del args[name]


def check_classes(
    key: str, value: Any, made: list[Place], allowed: Sequence[str], checked: set[type]
) -> None:
    """Raises ConfigError for what `check_class` refuses, in this setting or any below it.

    Every class that it takes joins `checked`, for `make_checked`, and loses what `leave_out` drops.
    """
    if isinstance(value, jsonargparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        if isinstance(path := value.get("class_path"), str):
            kind = plug.load_named(path, str(find(key, made)), (*PREFIXES, *allowed))
            check_class(key, kind, made, allowed)
            checked.add(kind)
            note_chosen(kind, find(key, made))
            args = value.get("init_args") or {}
            args = vars(args) if isinstance(args, jsonargparse.Namespace) else args
            leave_out(key, args, kind, made, allowed)
            check_nulls(key, args, kind, made)
        for name, below in value.items():
            inner = key if name == "init_args" else f"{key}.{name}".removeprefix(".")
            check_classes(inner, below, made, allowed, checked)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for item in value:
            check_classes(key, item, made, allowed, checked)
    elif callable(value):
        check_class(key, value, made, allowed)


def make_checked(
    checked: set[type], allowed: Sequence[str], kind: type, /, *args: Any, **kwargs: Any
) -> Any:
    """What jsonargparse instantiates, wherever it stands. Raises ConfigError for an unchecked class.

    Dataclasses, and what an allowed package has, may be made unnamed: a constructor's type says so.
    """
    if not (kind in checked or is_dataclass(kind) or kind.__module__.split(".")[0] in allowed):
        raise ConfigError(f"{kind.__module__}.{kind.__qualname__} is no class for a config")
    return kind(*args, **kwargs)


def writable(key: str, value: Any, made: list[Place]) -> Any:
    """A setting as config.yaml holds it. Raises ConfigError for what no file can hold, as a set."""
    if isinstance(value, list):
        return [writable(key, item, made) for item in value]
    if isinstance(value, dict):
        below = {k: key if k == "init_args" else f"{key}.{k}".removeprefix(".") for k in value}
        return {name: writable(below[name], one, made) for name, one in value.items()}
    place = find(key, made)
    if value == f"{LOST} {place.value}":  # jsonargparse does so with a text for Callable | str
        return place.value
    if str(value).startswith(LOST) or not isinstance(value, str | int | float | None):
        raise ConfigError(f"{place}: no file can hold this value; name a class or a text")
    return value


load_yaml = jsonargparse.get_loader("yaml")  # knows numbers like 3e-4


class SettingsDumper(yaml.SafeDumper):
    """Quotes a text like 1e3, which jsonargparse would read as a number."""


SettingsDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[\d_.]+[eE][-+]?\d+"), list("-+.0123456789")
)


def to_yaml(settings: Any) -> str:
    """Plain types -> YAML that reads back as they were, whatever its texts look like."""
    return yaml.dump(settings, Dumper=SettingsDumper, sort_keys=False)


def load_settings(text: str, foreign: set[str]) -> Any:
    """A config, or a flag's value, with what stands in `init_args` of model and data one level up.

    Left out are settings that are foreign to the class of data, where a config names no such class:
    it has written them for TokenData.
    """
    if endless := ENDLESS.search(text):
        raise ConfigError(f"a name of so many parts is none: {endless[0]:.60}")
    settings = load_yaml(text)
    for group in OPEN.keys() & settings.keys() if isinstance(settings, dict) else ():
        spec = settings[group]
        if isinstance(spec, dict) and {"class_path", "init_args"} & spec.keys():
            settings[group] = {**(spec.pop("init_args", None) or {}), **spec}
        elif isinstance(spec, dict) and group == "data":
            settings[group] = {key: value for key, value in spec.items() if key not in foreign}
    return settings


def start_from_own_defaults(_: Any, before: Any, value: Any) -> None:
    """Forget a class's settings when another class is named: AdamW would keep Muon's rate."""
    if not before or "init_args" not in before:
        return
    if len({str(spec["class_path"]).rpartition(".")[2] for spec in (before, value)}) > 1:
        before["init_args"] = type(before["init_args"])()


def configure_parsing(allowed: Sequence[str], data: type = TokenData) -> None:
    """Let configs and flags name classes of these packages only; nothing else is even imported."""
    taken, others = (inspect.signature(kind).parameters.keys() for kind in (data, TokenData))
    load = partial(load_settings, foreign=others - taken)
    # no public switch; tests/test_cli.py fails if the name changes
    jsonargparse._typehints.discard_init_args_on_class_path_change = start_from_own_defaults
    jsonargparse.set_loader("yaml", load, (Exception,))  # PyYAML raises any, as for !!int ""
    jsonargparse.set_dumper("yaml", to_yaml)
    jsonargparse.set_parsing_settings(
        config_read_mode_fsspec_enabled=False,  # Lightning's: settings would come over the network
        import_path_denylist=["*"],
        import_path_allowlist=[*PREFIXES, *allowed],
        instantiate_subclass_spec_in_any=False,  # nor does a parameter without a type make a class
    )
