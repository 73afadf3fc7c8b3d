"""Architectures by name, for `class_path` in a config."""

from lmtemplate.models.base import LanguageModel
from lmtemplate.models.gpt import GPT
from lmtemplate.models.gpt2 import GPT2

__all__ = ["GPT", "GPT2", "LanguageModel"]
