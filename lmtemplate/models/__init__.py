"""Architectures by name, for `class_path` in a config: those of each file in this folder."""

import importlib
import pkgutil

from lmtemplate.models.base import LanguageModel

for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    globals().update(
        {
            name: kind
            for name, kind in vars(_module).items()
            if isinstance(kind, type) and issubclass(kind, LanguageModel)
        }
    )
