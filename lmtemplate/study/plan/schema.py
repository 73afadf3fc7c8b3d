"""The settings that `fit` takes -> a JSON Schema, by which editors complete and check configs.

The classes of lmtemplate are listed with their settings. Classes of other packages are taken with
any: which there are depends on what is installed.
"""

import inspect
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from lightning.pytorch import Trainer

from lmtemplate import cli_errors, models
from lmtemplate.cli import RUN_SETTINGS, TRAINER_SETTINGS
from lmtemplate.cli_classes import OPEN, callback_classes
from lmtemplate.models.base import LanguageModel
from lmtemplate.optimizers import OptimizerRecipe
from lmtemplate.run_dir import write_text
from lmtemplate.schedules import Schedule

Schema = dict[str, Any]
JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
JSON_TYPES |= {Path: "string"}
UNIONS = (typing.Union, types.UnionType)
LINKED = {"model.net": ("vocab_size", "block_size"), "data": ("seed",)}  # stated elsewhere
ANY_CLASS: Schema = {
    "type": "object",
    "properties": {"class_path": {"type": "string"}, "init_args": {"type": "object"}},
    "required": ["class_path"],
}
DRAFT = "http://json-schema.org/draft-07/schema#"


def of_type(kind: Any) -> Schema:
    """What may stand for a type hint; anything where it is of a class."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    for one in getattr(kind, "__mro__", ()):  # a number within a range is a subclass of its kind
        if one in JSON_TYPES:
            return {"type": JSON_TYPES[one]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in UNIONS:
        choices = [of_type(one) for one in inner]
        return {} if {} in choices else {"anyOf": choices}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": of_type(inner[0])} if inner else {"type": "array"}
    return {"type": "object"} if origin in (dict, Mapping) else {}


def constructor_parameters(kind: type) -> dict[str, tuple[inspect.Parameter, Any, str]]:
    """What a constructor takes, with type and explanation; of its bases too, behind **kwargs."""
    found = dict[str, tuple[inspect.Parameter, Any, str]]()
    for one in (base for base in kind.__mro__ if "__init__" in vars(base) and base is not object):
        hints = typing.get_type_hints(one.__init__)  # type: ignore[misc]
        parsed = docstring_parser.parse(f"{one.__doc__ or ''}\n{one.__init__.__doc__ or ''}")  # type: ignore[misc]
        says = {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
        taken = list(inspect.signature(one).parameters.values())
        for parameter in taken:
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                entry = (parameter, hints.get(parameter.name, Any), says.get(parameter.name, ""))
                found.setdefault(parameter.name, entry)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
            break
    return found


def described(schema: Schema, default: Any, says: str) -> Schema:
    """With its explanation, and its default where that is plain."""
    found = dict(schema)
    if says:
        found["description"] = says
    if isinstance(default, bool | int | float | str | None):
        found["default"] = default
    return found


def of_class(kind: type, left_out: Sequence[str] = ()) -> Schema:
    """The settings of a constructor."""
    settings = dict[str, Schema]()
    for name, (taken, hint, says) in constructor_parameters(kind).items():
        if name not in left_out:
            settings[name] = described(of_type(hint), taken.default, says)
            choices = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
            if any(typing.get_origin(one) in (list, Iterable, Sequence) for one in choices):
                settings[f"{name}+"] = {"description": "appends one, or a list"}
    return {"type": "object", "properties": settings, "additionalProperties": False}


def of_table(table: Mapping[str, tuple[Any, Any, str]]) -> Schema:
    """The settings of a table of cli.py: key -> type, default and help."""
    return {name: described(of_type(kind), *rest) for name, (kind, *rest) in table.items()}


def names_of(kind: type) -> list[str]:
    """The names by which a config may call a class of lmtemplate."""
    short = (
        [f"lmtemplate.models.{kind.__name__}"] if vars(models).get(kind.__name__) is kind else []
    )
    return [kind.__name__, *short, f"{kind.__module__}.{kind.__name__}"]


def public_subclasses(base: Any) -> list[type]:
    """Those of lmtemplate that can be made, by name."""
    found = list[type]()
    for one in base.__subclasses__():
        is_ours = one.__module__.startswith("lmtemplate.") and not one.__name__.startswith("_")
        if is_ours and not inspect.isabstract(one):
            found.append(one)
        found += public_subclasses(one)
    return sorted(found, key=lambda one: one.__name__)


def of_choice(base: type, left_out: Sequence[str] = ()) -> Schema:
    """A class by its name, or with settings; without a name they are those of the class before."""
    choices, names = list[Schema](), list[str]()
    for kind in public_subclasses(base):
        names += names_of(kind)
        named = {"enum": names_of(kind), "description": (kind.__doc__ or "").partition("\n")[0]}
        settings = {"class_path": named, "init_args": of_class(kind, left_out)}
        choices.append({"type": "object", "properties": settings, "additionalProperties": False})
    other = {"type": "string", "not": {"pattern": r"^lmtemplate\."}}
    foreign = {**ANY_CLASS, "properties": {**ANY_CLASS["properties"], "class_path": other}}
    return {"anyOf": [{"enum": names}, other, *choices, foreign]}


def config_schema() -> Schema:
    """Of a config of `fit`."""
    settings = of_table(RUN_SETTINGS)
    settings["trainer"] = of_class(Trainer, [*cli_errors.OWNED, *TRAINER_SETTINGS])
    settings["trainer"]["properties"] |= of_table(TRAINER_SETTINGS)
    for key, kind in callback_classes().items():
        callback = of_class(kind)
        callback["properties"] |= ANY_CLASS["properties"]
        says = (kind.__doc__ or "").partition("\n")[0] + " null: off"
        settings[key] = {"anyOf": [{"type": "null"}, callback], "description": says}
    for group, (_, default) in OPEN.items():
        settings[group] = {"anyOf": [of_class(default, LINKED.get(group, ())), ANY_CLASS]}
    parts = settings["model"]["anyOf"][0]["properties"]
    parts["net"] = of_choice(LanguageModel, LINKED["model.net"])
    parts["optimizer"] = of_choice(OptimizerRecipe)
    parts["schedule"] = of_choice(Schedule)
    head = {"$schema": DRAFT, "title": "a config of lmtemplate fit", "type": "object"}
    return {**head, "properties": settings, "additionalProperties": False}


def schema(output: Path | None = None) -> None:
    """Print the JSON Schema of a config.

    Args:
        output: write it to this file instead.
    """
    text = json.dumps(config_schema(), indent=1) + "\n"
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
