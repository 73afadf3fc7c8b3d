"""Words of a command line, and YAML files -> every setting, with the place where it was made."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from lmtemplate.errors import ConfigError
from lmtemplate.plain_file import LARGEST_YAML, read_plain

NO_PATH = "#" * 300  # a comment before a text: too long for any file's name
MOST_SETTINGS = 10_000  # in one config, with what its anchors repeat
# Shape of a node of YAML -> the tags that it may have: with another, it is read as something else.
SCALARS = ("str", "int", "float", "bool", "null", "timestamp")
PLAIN = {yaml.MappingNode: ("map",), yaml.SequenceNode: ("seq",), yaml.ScalarNode: SCALARS}


class Place(NamedTuple):
    """Where a setting was made: its key path, "file:line" or "command line", its value as text."""

    key: str
    where: str
    value: str

    def __str__(self) -> str:
        return f"{self.key} ({self.where})"


def _check_plain(node: yaml.Node, key: str, path: Path) -> None:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in PLAIN[type(node)]:
        says = f"the tag {kind:.50} is not read here; write the settings out"
        raise ConfigError(f"{key} ({path}:{node.start_mark.line + 1}): {says}")


def _settings(root: yaml.MappingNode, path: Path) -> Iterator[Place]:
    waiting: list[tuple[str, yaml.Node]] = [("", root)]
    for _ in range(MOST_SETTINGS):
        if not waiting:
            return
        above, node = waiting.pop()
        _check_plain(node, above, path)
        if isinstance(node, yaml.SequenceNode):
            waiting += [(above, item) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            seen = set[str]()
            for name, value in node.value:
                line = name.start_mark.line + 1
                if not isinstance(name, yaml.ScalarNode):
                    raise ConfigError(f"a key ({path}:{line}) is not text")
                if name.value in seen:
                    raise ConfigError(f"{path}:{line}: {name.value} is there twice; keep one")
                seen.add(name.value)
                _check_plain(name, name.value, path)
                key = f"{above}.{name.value}".removeprefix(".").replace(".init_args", "")
                key = key.removesuffix("+")
                # jsonargparse takes them
                if "__" in [part[:2] for part in key.split(".")] or key == "print_shtab":
                    raise ConfigError(f"unknown setting {key!r} ({path}:{line})")
                text = value.value if isinstance(value, yaml.ScalarNode) else ""
                yield Place(key, f"{path}:{line}", text)
                waiting.append((key, value))
    raise ConfigError(f"{path}: its anchors make more than {MOST_SETTINGS:,} settings")


def read_config(path: Path) -> tuple[str, list[Place]]:
    """A config's text, written anew, and every setting in it. Raises ConfigError.

    It is written from what was looked at, so that no other parser finds something else in it.
    """
    try:
        root = yaml.compose(read_plain(path, LARGEST_YAML), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        spot = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        says = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}{spot} is not YAML: {says}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} holds no settings; a config is a mapping of keys to values")
    for name, value in root.value:
        where = f"({path}:{name.start_mark.line + 1})"
        if not name.tag.endswith(":str"):
            raise ConfigError(f"a key {where} is not text in YAML; no setting has such a name")
        top = name.value.partition(".")[0]
        if top == "config":  # jsonargparse would read it, and nothing here would check it
            raise ConfigError(f"config {where}: a config names no other; give both with --config")
        if name.value in ("data", "model", "trainer") and not isinstance(value, yaml.MappingNode):
            raise ConfigError(f"{name.value} {where}: expected settings below it")
    return yaml.serialize(root, Dumper=yaml.SafeDumper, width=math.inf), [*_settings(root, path)]


def take_flag(words: list[str], *names: str) -> tuple[list[str], list[str]]:
    """Split off a flag, wherever it stands: (its values, the other words)."""
    values, others, rest = list[str](), list[str](), iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in names:
            values.append(value if equals else next(rest, ""))
        else:
            others.append(word)
    return values, others


def flags_in(words: list[str]) -> list[Place]:
    """Every setting that flags make, the last first, since it wins."""
    made = list[Place]()
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("--"):
            flag, equals, value = word[2:].partition("=")
            key = flag.replace(".init_args", "").removesuffix("+").removesuffix(".class_path")
            made.append(Place(key, "command line", value if equals else following))
    return made[::-1]


def read_words(words: list[str]) -> tuple[list[str], list[Place]]:
    """The words with configs first, since flags beat them, and all that they set, winners first.

    A config's text replaces its path: jsonargparse would change into the folder of a path, and a
    Python that it starts there imports what lies there. Raises ConfigError.
    """
    configs, flags = take_flag(words, "-c", "--config")
    if not all(configs):
        raise ConfigError("--config (command line) needs a file")
    read = [read_config(Path(path)) for path in configs]
    made = [place for _, places in reversed(read) for place in places]
    return [*(f"--config={NO_PATH}\n{text}" for text, _ in read), *flags], flags_in(flags) + made


def find(key: str, made: list[Place], value: str | None = None) -> Place:
    """Where a key, or the last part of one, was set; to this value if there is a choice."""
    found = [place for place in made if f".{place.key}".endswith(f".{key}")]
    found.sort(key=lambda place: place.key != key)
    exact = (place for place in found if value and place.value == value)
    return next(exact, found[0] if found else Place(key, "command line", ""))
