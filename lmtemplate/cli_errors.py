"""jsonargparse's message -> one line that says what is wrong, where, and what to do."""

import importlib
import inspect
import itertools
import re
import sys
from argparse import Action, ArgumentParser
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lmtemplate.errors import ConfigError

PACKAGE = "lmtemplate."

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

# What the data states; a net takes it, but nobody sets it there.
LINKED = ("model.net.vocab_size", "model.net.block_size")

# What others call a setting -> its name here.
SYNONYMS = {
    "context_length": "block_size",
    "hidden_size": "n_embd",
    "learning_rate": "lr",
    "num_heads": "n_head",
    "num_layers": "n_layer",
    "seq_len": "block_size",
    "steps": "max_steps",
}

# Group of settings -> one of them.
GROUPS = {"data": "data.path", "model": "model.optimizer", "trainer": "trainer.max_steps"}

KINDS = {
    "NoneType": "null",
    "bool": "true or false",
    "dot import path string": "a class",
    "float": "a number",
    "int": "a whole number",
    "Iterable": "a list",
    "list": "a list",
    "str": "text",
    "tuple": "a list",
}

UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
LARGEST_SEED = 2**32 - 1  # that NumPy takes


def configs_in(words: list[str]) -> list[Path]:
    """Files that the command line names with --config."""
    following = [b for a, b in itertools.pairwise(words) if a in ("-c", "--config")]
    joined = [word.partition("=")[2] for word in words if word.startswith("--config=")]
    return [Path(name) for name in following + joined]


def read_config(path: Path) -> str:
    """The text of a config. Raises ConfigError where there is none."""
    try:
        content = path.read_bytes()
        return content.decode()
    except OSError as error:
        others = [other.name for other in path.parent.glob("*") if other.is_file()]
        close = get_close_matches(path.name, others, n=1) if not path.exists() else []
        meant = f"; did you mean {path.with_name(close[0])}?" if close else ""
        raise ConfigError(f"cannot read config {path}: {error.strerror}{meant}") from error
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ConfigError(
            f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from error


class Place(NamedTuple):
    """Where a setting stands: its key path, "file:line" or "command line", its value as text."""

    key: str
    where: str
    value: str
    is_text: bool = True  # whether the key is, and not the likes of `on`, which is true in YAML


def _walk(node: Any, above: str, path: Path) -> Iterator[Place]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _walk(item, above, path)
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            key = f"{above}.{name.value}".removeprefix(".")
            text = value.value if isinstance(value, yaml.ScalarNode) else ""
            where = f"{path}:{name.start_mark.line + 1}"
            yield Place(key.replace(".init_args", ""), where, text, name.tag.endswith(":str"))
            yield from _walk(value, key, path)


def places(config_files: list[Path], words: list[str]) -> Iterator[Place]:
    """All settings that somebody made, those that win first. The files are known to be YAML."""
    for word, following in reversed(list(itertools.zip_longest(words, words[1:]))):
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            key = flag.replace(".init_args", "").removesuffix(".class_path")
            yield Place(key, "command line", value if equals else following or "")
    for path in reversed(config_files):
        root = yaml.compose(read_config(path), Loader=yaml.SafeLoader)
        yield from _walk(root, "", path)


def _same(one: str, other: str) -> bool:
    try:
        return one == other or float(one) == float(other)
    except ValueError:
        return False


def find(key: str, made: Iterable[Place], value: str | None = None) -> Place:
    """Where a key, or the last part of one, was set, to this value if there is a choice."""
    found = [place for place in made if f".{place.key}".endswith(f".{key}")]
    found.sort(key=lambda place: place.key != key)
    exact = (place for place in found if value is not None and _same(place.value, value))
    return next(exact, found[0] if found else Place(key, "command line", ""))


def choices(action: Action) -> dict[str, type]:
    """Name -> class that a setting can name, the default first; empty if it names no class."""
    module, _, name = getattr(action.default, "class_path", "").rpartition(".")
    if not module:
        return {}
    room = importlib.import_module(module)
    default = getattr(room, name)
    base = default.__base__
    kinds = inspect.getmembers(room, inspect.isclass) if base.__module__.startswith(PACKAGE) else []
    return {name: default} | {name: kind for name, kind in kinds if kind.__base__ is base}


def settings_by_name(parser: ArgumentParser, made: list[Place]) -> dict[str, str]:
    """Last word of every setting -> its whole key path, those of the classes chosen included."""
    names = {action.dest.rpartition(".")[2]: action.dest for action in parser._actions}
    for action in parser._actions:
        if kinds := choices(action):
            named = (place.value.rpartition(".")[2] for place in made)
            kind = kinds[next((name for name in named if name in kinds), next(iter(kinds)))]
            for name in inspect.signature(kind).parameters:
                names.setdefault(name, f"{action.dest}.{name}")
    return {name: path for name, path in names.items() if not path.startswith(LINKED)}


def foreign_class(message: str, made: list[Place]) -> str | None:
    """A class of a package that configs and flags may not name."""
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied is None:
        return None
    package = denied[1].split(".")[0]
    where = next((place.where for place in made if place.value == denied[1]), "command line")
    advice = f"; add --allow {package} on the command line if you trust it"
    if package in sys.stdlib_module_names:
        advice = ": it is Python's own, and no part of a model"
    return f"class {denied[1]} ({where}) is of a package that is not allowed{advice}"


def no_such_class(message: str, parser: ArgumentParser, made: list[Place]) -> str | None:
    """A class that is none, or not of the kind that is asked for, with the one probably meant."""
    named = re.search(r"Expected a dot import path string: (\S+)", message)
    named = named or re.search(r"Import path (\S+) does not correspond", message)
    named = named or re.search(r"given class_path '(\S+)': module", message)
    keys = re.findall(r"Parser key \"([\w.]+)\"", message)
    action = next((action for action in parser._actions if action.dest in keys[-1:]), None)
    kinds = choices(action) if named and action else {}
    if named is None or action is None or not kinds:
        return None
    name, place = named[1], find(keys[-1], made, named[1])
    lower = {kind.lower(): kind for kind in kinds}
    close = get_close_matches(name.rpartition(".")[2].lower(), lower, n=1)
    meant = f"; did you mean {lower[close[0]]}?" if close else ""
    there_are = ", ".join(kinds) + ("" if action.required else "; null turns it off")
    return f"{place.key} ({place.where}): no class {name!r}{meant} (there are: {there_are})"


def unknown_setting(message: str, parser: ArgumentParser, made: list[Place]) -> str | None:
    """A key that is none, with the one that was probably meant."""
    unknown = re.search(r"[Oo]ption '([^']+)'|unrecognized arguments: ([^\s=]+)", message)
    if unknown is None:
        return None
    if unknown[2] and not unknown[2].startswith("--"):
        return (
            f"{unknown[2]!r} (command line) is not a flag; flags begin with --, as in "
            "--trainer.max_steps 10"
        )
    place = find(unknown[1] or unknown[2][2:].replace(".init_args", ""), made)
    group, _, name = place.key.replace("-", "_").rpartition(".")
    if name in OWNED and group == "trainer":
        instead = OWNED[name] and f"; use {OWNED[name]}"
        return f"trainer.{name} ({place.where}) is not a setting here{instead}"
    known = settings_by_name(parser, made)
    close = [name] if name in known else get_close_matches(name, [*known, *SYNONYMS], n=1)
    meant = [known.get(SYNONYMS.get(one, one)) for one in close]
    hint = f"; did you mean {meant[0]}?" if meant[:1] not in ([], [None], [place.key]) else ""
    return f"unknown setting {place.key!r} ({place.where}){hint} (all: {parser.prog} --help)"


def _whole_number(value: str) -> str:
    """How to write 10.0, 1e3, 1,000 or 1K; empty for what is no whole number."""
    digits = r"\d{1,3}(?:,\d{3})+|\d+\.?\d*(?:[eE]\+?\d+)?"
    parts = re.fullmatch(rf"(-?(?:{digits}))([kmbtKMBT]?)", value)
    if parts is None:
        return ""
    number = float(parts[1].replace(",", "")) * UNITS[parts[2].lower()]
    if not number.is_integer() or abs(number) > 10**15:
        return ""
    return f"; write {number:.0f}" + ", without letters or commas" * (
        value[-1] > "9" or "," in value
    )


def class_problem(message: str) -> str:
    """What a class that a config names objects to; as a rule, a package that it needs."""
    told = re.search(r"Problem with given class_path '([\w.]+)': (.*?)(?= - |$)", message)
    return f"{told[1]}: {told[2]}" if told else message[:400]


def in_words(problem: str) -> str:
    """What jsonargparse says of a value -> "expected a whole number, got 10.0; write 10"."""
    if "Not of type Seed" in problem:
        return f"has to be a whole number from 0 to {LARGEST_SEED}"
    not_so = re.search(r"Import path \S+ does not correspond .*? of \w+|\S+ is abstract", problem)
    if not_so:
        return not_so[0]
    kinds = re.findall(
        r"Expected an? (?:<class '(?:[\w.]*\.)?(\w+)'>|(dot import path string)|"
        r"typing\.Literal\[(.*?)\])",
        problem,
    )
    value = re.search(r".*Given value: (.*)|Got value: (.*)|Got value:$", problem)
    if not kinds or value is None:
        return re.sub(r"^Expected (.*)\. Got value: ", r"expected \1, got ", problem)[:400]
    got = value[1] or value[2] or "nothing"
    names = [KINDS.get(a or b, a or b) or f"one of {c}".replace("'", "") for a, b, c in kinds]
    if "a number" in names:
        names = [name for name in names if name != "a whole number"]
    advice = _whole_number(got) if {"a number", "a whole number"} & {*names} else ""
    return f"expected {' or '.join(dict.fromkeys(names))}, got {got[:100]}{advice}"


def wrong_value(message: str, made: list[Place]) -> str | None:
    """A key whose value is of another type or range."""
    *outer, (key, problem) = re.findall(
        r"Parser key \"([\w.]+)\": (.*?)(?= -? ?Parser key|$)", message
    ) or [("", "")]
    if not key:
        return None
    if outer:  # inside a class that might have been null instead
        problem = problem.rpartition(" - Expected a <class 'NoneType'>")[0] or problem
    says = in_words(problem)
    got = re.search(r"Got value: (.*?)(?: - |$)|Given value: (.*)", problem)
    place = find(key, made, (got[1] or got[2] or "") if got else None)
    if key in GROUPS and "Unable to load config" in problem:
        says = f"expected settings, such as {GROUPS[key]}"
    return f"{place.key} ({place.where}): {says}"


def one_line(
    message: str, parser: ArgumentParser, config_files: list[Path], words: list[str]
) -> str:
    """What jsonargparse says, put as this program says things.

    Args:
        message: jsonargparse's, of any number of lines.
        parser: knows every setting.
        config_files: that the command line names, the last of which wins.
        words: of the command line.
    """
    message = " ".join(message.split())
    made = list(places(config_files, words))
    if message.startswith("Key must be a string"):
        odd = next((place for place in made if not place.is_text), None)
        if odd is None:
            return f"a key on the command line is not text in YAML: {message}"
        return f"the key {odd.key} ({odd.where}) is not text in YAML; no setting has such a name"
    if alone := re.match(r"argument (\S+): expected one argument", message):
        return f"{alone[1]} (command line) needs a value (see {parser.prog} --help)"
    return (
        foreign_class(message, made)
        or no_such_class(message, parser, made)
        or unknown_setting(message, parser, made)
        or wrong_value(message, made)
        or message[:400]
    )
