"""A mistake in words or YAML -> one line: what, where (file:line), what was probably meant."""

import inspect
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import jsonargparse

from lmtemplate.cli_words import Place, find
from lmtemplate.errors import ConfigError
from lmtemplate.plug import not_allowed

# Trainer arguments that no config may set -> what to do instead, or why there is none.
OWNED = {
    "barebones": "a run needs its checkpoints and its record",
    "check_val_every_n_epoch": "use trainer.val_check_interval, in optimizer steps",
    "default_root_dir": "use run_dir",
    "enable_checkpointing": "use checkpoint: null",
    "fast_dev_run": "use --config configs/debug.yaml",
    "limit_train_batches": "use trainer.max_steps",
    "max_epochs": "use max_epochs, in passes over the data",
    "max_time": "use max_seconds",
    "min_epochs": "a run has one length; early_stopping: null lets it reach the end",
    "min_steps": "a run has one length; early_stopping: null lets it reach the end",
    "overfit_batches": "use data.max_train_blocks, in sequences",
    "reload_dataloaders_every_n_epochs": "one loader serves the whole run",
    "use_distributed_sampler": "each process reads its own share of the data",
}

# What others call a setting -> its name here.
SYNONYMS = {
    "context_length": "block_size",
    "hidden_size": "n_embd",
    "learning_rate": "lr",
    "seq_len": "block_size",
}

# A type -> its name in a sentence.
SPOKEN = {
    "NoneType": "null",
    "Path": "a path",
    "PositiveFloat": "a number above 0",
    "PositiveInt": "a whole number above 0",
    "Seed": "a whole number from 0 to 2^32 - 1",
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
}

LARGEST_WHOLE = 2**48  # a size computed from a larger number would overflow

# jsonargparse's words for a key, for what is wrong with a class, for a type, an unknown setting.
KEY = re.compile(r'Parser key "([\w.]+)": ')
NEEDS = re.compile(r"arguments are required: ([\w, ]+?)(?= - | Given|$).*?class_path='(\S+?)'")
DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
GOT = re.compile(r".*Given value: (.*)|Got value: ?(.*)|: (\S+) (?:does )?not |base 10: '(.*?)'")
BROKEN = re.compile(r"class_path '(\S+?)': (?!Importing|Parser key|module \S+ has)(.+?)(?= - |$)")
UNFIT = re.compile(
    r"import path string: (\S+)|class_path '(\S+?)': module \S+ has|Expected '(\S+)' to be a subc"
    r"|Import path (?:(\S+) )?does not (?:implement protocol |.*? of )?(?P<kind>\w+)"
)
TYPE = re.compile(
    r"(?:Expected an? <class '(?:[\w.]+\.)?|valid subclass of |Not of type )(\w+)"
    r"|Expected a \S+Literal\[(.*?)\]"
)
UNKNOWN = re.compile(r"[Oo]ption '([^']+)'|unrecognized arguments: ([^\s=]+)")


def choices(class_path: str) -> tuple[str, dict[str, type]]:
    """Path of a setting's default class -> what kind it is, and all of that kind by name."""
    module, _, default = class_path.rpartition(".")
    kinds = dict(inspect.getmembers(sys.modules[module], inspect.isclass))
    base: type = kinds[default].mro()[1]
    if base.__module__.partition(".")[0] != __package__:
        return default, {default: kinds[default]}
    return base.__name__, {n: k for n, k in kinds.items() if base in k.__mro__[1:] and n[0] != "_"}


def known_settings(defaults: Mapping[str, Any], made: list[Place]) -> list[str]:
    """Key path of every setting, with those of the classes that the user or a default names."""
    chosen = {k.removesuffix(".class_path"): v for k, v in defaults.items() if "class_path" in k}
    homes = {key: path.rpartition(".")[0] for key, path in chosen.items()}
    known = [key for key in defaults if "class_path" not in key and ".init_args." not in key]
    for place in reversed(made):
        key = place.key.removesuffix(".class_path")
        if place.value and (key != place.key or key in chosen):
            chosen[key] = place.value
    for key, path in chosen.items():
        module, _, name = path.rpartition(".")
        kind = getattr(sys.modules.get(module or homes.get(key, "")), name, None)
        taken = inspect.signature(kind).parameters if inspect.isclass(kind) else ()
        known += [key, *(f"{key}.{setting}" for setting in taken)]
    linked = ("model.net.vocab_size", "model.net.block_size")  # set elsewhere
    return [key for key in known if key not in linked]


def meant_setting(unknown: str, known: list[str]) -> str | None:
    """The setting that was probably meant: of this name, beside the unknown one, or anywhere."""
    group, _, name = unknown.rpartition(".")
    by_name = {key.rpartition(".")[2]: key for key in reversed(known)}
    beside = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == group}
    words = {word: by_name[name] for word, name in SYNONYMS.items() if name in by_name}
    for names, share in ((by_name, 1.0), (beside, 0.6), (by_name | words, 0.6)):
        if close := get_close_matches(name, names, n=1, cutoff=share):
            return names[close[0]]
    return None


def unknown_setting(
    message: str, prog: str, defaults: Mapping[str, Any], made: list[Place]
) -> str | None:
    """A key that does not exist, with the one that was probably meant."""
    unknown = UNKNOWN.search(message)
    if unknown is None:
        return None
    see = f"(all: {prog} --help)"
    if unknown[2] and not unknown[2].startswith("--"):
        return f"{unknown[2]!r} (command line) is not a flag; flags begin with -- {see}"
    place = find(unknown[1] or unknown[2][2:].replace(".init_args", ""), made)
    key = place.key.replace("-", "_")
    group, _, name = key.rpartition(".")
    if group == "trainer" and name in OWNED:
        return f"{key} ({place.where}) cannot be set: {OWNED[name]}"
    meant = meant_setting(key, known_settings(defaults, made))
    hint = f"; did you mean {meant}?" if meant and meant != place.key else ""
    return f"unknown setting {place.key!r} ({place.where}){hint} {see}"


def wrong_class(
    message: str, keys: list[str], defaults: Mapping[str, Any], made: list[Place]
) -> str | None:
    """A class that lacks a setting, is of another package or kind, or does not exist."""
    key = keys[-1]

    def at(name: str) -> str:
        where = next((place for place in made if place.value == name), find(key, made)).where
        return f"{key} ({where})"

    if needs := NEEDS.search(message):
        return f"{at(needs[2])}: {needs[2]} needs {needs[1]}; give it in init_args"
    if denied := DENIED.search(message):
        return f"{at(denied[1])}: {not_allowed(denied[1])}"
    if broken := BROKEN.search(message):
        return f"{at(broken[1])}: cannot import {broken[1]}: {broken[2]:.200}"
    unfit = UNFIT.search(message)
    if unfit is None or (unfit[3] and len(keys) > 1) or key == "trainer.profiler":  # a word, too
        return None
    name = next(filter(None, unfit.groups()[:4]), find(key, made).value)
    module, _, last = name.rpartition(".")
    default = defaults.get(f"{key}.class_path")
    kind, kinds = choices(default) if default else (unfit["kind"] or "class that fits", {})
    there = [*dict(inspect.getmembers(sys.modules.get(module), inspect.isclass)), *kinds]
    lower = {known.lower(): known for known in there}
    close = [] if last in there else get_close_matches(last.lower(), lower, n=1)
    meant = f"; did you mean {lower[close[0]]}?" if close else ""
    if unfit["kind"] == "LossFunction":
        meant = "; write its __call__(logits: Tensor, targets: Tensor) -> Loss, with these types"
    off = "" if "." in key else "; null turns it off"
    there_are = f" (there are: {', '.join(kinds)}{off})" if kinds else ""
    return f"{at(name)}: {name!r} is no {kind}{meant}{there_are}"


def wrong_value(message: str, keys: list[str], made: list[Place]) -> str:
    """A key whose value is of another type or range."""
    problem = KEY.split(message)[-1]
    if len(keys) > 1:  # inside a class that might have been null instead
        problem = problem.partition(" - Type ")[0]  # or a function
        problem = problem.rpartition(" - Expected a <class 'NoneType'>")[0] or problem
    said = GOT.search(problem)
    got = next(filter(None, said.groups()), "nothing") if said else ""
    if got == "None" or re.search(r"not '?NoneType'?$", problem):
        got = "null"
    types = [name or f"one of {words}".replace("'", "") for name, words in TYPE.findall(problem)]
    expected = " or ".join(dict.fromkeys(SPOKEN.get(name, name) for name in types))
    says = f"expected {expected}, got {got[:100]}" if expected and got else problem[:400]
    return f"{find(keys[-1], made, got)}: {says}"


def one_line(message: str, prog: str, defaults: Mapping[str, Any], made: list[Place]) -> str:
    """What jsonargparse says, as this program says it; `prog --help` shows every setting."""
    message = " ".join(message.split()).removeprefix('Parser key "config": ')
    if line := unknown_setting(message, prog, defaults, made):
        return line
    if not (keys := KEY.findall(message)):
        return not_allowed(denied[1]) if (denied := DENIED.search(message)) else message[:200]
    return wrong_class(message, keys, defaults, made) or wrong_value(message, keys, made)


def parse_words(
    parser: jsonargparse.ArgumentParser, words: list[str], made: list[Place]
) -> jsonargparse.Namespace:
    """What the words set, among them `made`, those that win first. Raises ConfigError."""
    try:
        settings = parser.parse_args(words)
        parser.validate(settings, skip_unset=False)  # null is a value; parse_args takes it anywhere
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        defaults = dict(parser.get_defaults().items())
        raise ConfigError(one_line(str(error), parser.prog, defaults, made)) from error
    for key, value in settings.items():
        if isinstance(value, int) and abs(value) > LARGEST_WHOLE:
            place = find(key.replace(".init_args", ""), made)
            raise ConfigError(f"{place}: too large a number")
    return settings
