"""Architectures by name, for `class_path` in a config: those of each file in this folder."""

import importlib
import pkgutil

from lmtemplate.models.base import LanguageModel

for _file in pkgutil.iter_modules(__path__):
    for _name, _kind in vars(importlib.import_module(f"{__name__}.{_file.name}")).items():
        if isinstance(_kind, type) and issubclass(_kind, LanguageModel):
            globals()[_name] = _kind
