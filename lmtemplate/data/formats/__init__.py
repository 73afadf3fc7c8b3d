"""A file's suffix, or the name of a preset -> the module that reads it, one for each format.

A module for files has `SUFFIXES` and

    def read(path: Path) -> Iterator[Document]            documents in pieces of bounded size

and one for presets (texts that are known by a name) has `PRESETS` and

    def open_preset(source: str, seed: int) -> Corpus     source is a preset, or "preset:argument"

`read` may take `text_field` as well: the value of `lmtemplate prepare --text_field`; and
`bad_lines`: where that is a Counter, it leaves out what it cannot read, and counts that under the
file's path. Otherwise it raises DataError, with the file and line. Each module may be deleted,
except `text`.
"""

import importlib
import pkgutil
from types import ModuleType


def formats_by(attribute: str) -> dict[str, ModuleType]:
    """Each name in SUFFIXES or PRESETS of the modules here -> its module."""
    names = [f"{__name__}.{file.name}" for file in pkgutil.iter_modules(__path__)]
    modules = map(importlib.import_module, names)
    return {name: module for module in modules for name in getattr(module, attribute, ())}
