"""A dotted name -> what it names; study/, where a clone has kept it -> what it adds to the core.

This is the one place in the core that knows of that folder.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lmtemplate.errors import ConfigError


class Verb(NamedTuple):
    """Where a verb of the command line lives, and what it does."""

    module: str
    function: str
    says: str
    reads_configs: bool = False  # takes the words themselves, and parses configs with Lightning


def not_allowed(path: str) -> str:
    """What is said of a class whose package may not be imported."""
    package = path.partition(".")[0]
    if package in sys.stdlib_module_names:
        return f"{path} is Python's own, and no part of a model"
    advice = f"add --allow {package} on the command line if you trust it"
    return f"{path} is of a package that is not allowed; {advice}"


def load_named(path: str, where: str, allowed: Sequence[str] | None = None) -> Any:
    """What stands at a dotted path. Raises ConfigError, with the place, where nothing does.

    `allowed` are what may be imported beside lmtemplate, with all below it; None: anything.
    """
    module, _, name = path.rpartition(".")
    if not (module and all(map(str.isidentifier, path.split(".")))):
        raise ConfigError(f"{where}: {path!r} is not package.module.Class")
    homes = tuple(f"{home}." for home in ("lmtemplate", *(allowed or ())))
    if allowed is not None and not path.startswith(homes):
        raise ConfigError(f"{where}: {not_allowed(path)}")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import {path!r}: {error}") from error


def load() -> ModuleType | None:
    """The upper storey; None where a clone has deleted it."""
    try:
        return importlib.import_module("lmtemplate.study")
    except ModuleNotFoundError:
        return None


def study_verbs() -> dict[str, Verb]:
    """Verb -> where it lives."""
    study = load()
    return {name: Verb(*verb) for name, verb in study.VERBS.items()} if study else {}


def callbacks() -> dict[str, str]:
    """Key of a config -> class of the callback that it configures."""
    return getattr(load(), "CALLBACKS", {})


def closing_words(run: Path, allowed: list[str], report: bool) -> None:
    """Note what came of a finished run, and say it in the terminal and in its report if wanted."""
    if study := load():
        load_named(study.CLOSING, "study")(run, allowed, report)
