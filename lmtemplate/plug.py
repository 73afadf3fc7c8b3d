"""study/, where a clone has kept it -> its verbs, callbacks and closing words.

This is the one place in the core that knows of that folder.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple


class Verb(NamedTuple):
    """Where a verb of the command line lives, and what it does."""

    module: str
    function: str
    says: str
    reads_configs: bool = False  # takes the words themselves, and parses configs with Lightning


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
        module, _, name = study.CLOSING.rpartition(".")
        close: Callable[[Path, list[str], bool], None]
        close = getattr(importlib.import_module(module), name)
        close(run, allowed, report)
