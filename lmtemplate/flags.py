"""A function's signature and the words after a verb -> a call of the function."""

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jsonargparse

from lmtemplate.cli_errors import in_words
from lmtemplate.errors import ConfigError


def spelled_out(words: list[str], flags: Mapping[str, inspect.Parameter]) -> list[str]:
    """`--train-loss X --json` -> `--train_loss X --json true`, where these are flags."""
    spelled = list[str]()
    for word, following in itertools.zip_longest(words, words[1:]):
        name, equals, value = word.partition("=")
        flag = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or flag not in flags:
            spelled.append(word)
            continue
        spelled.append(f"--{flag}{equals}{value}")
        if flags[flag].default is False and not equals and following not in ("true", "false"):
            spelled.append("true")
    return spelled


def mistake(message: str, verb: str, flags: Iterable[str]) -> str:
    """What jsonargparse says of a verb's words, put in one line.

    Args:
        message: jsonargparse's, of any number of lines.
        verb: as typed.
        flags: the names of what it takes.
    """
    message, help_is = " ".join(message.split()), f"(see lmtemplate {verb} --help)"
    unknown = re.search(r"unrecognized arguments: ([^\s=]+)", message)
    if unknown is None:
        wrong = re.match(r"Parser key \"(\w+)\": (.*)", message)
        return f"--{wrong[1]}: {in_words(wrong[2])} {help_is}" if wrong else f"{message} {help_is}"
    word = unknown[1]
    if not word.startswith("-"):
        meant = f"; did you mean --input {word}?" if "input" in flags else ""
        return f"{word!r} is not a flag{meant} {help_is}"
    if word == "--run" and "run" in flags:
        return f"RUN is a word, not a flag: lmtemplate {verb} RUN {help_is}"
    known = [flag for flag in flags if flag not in ("run", "runs")]
    close = get_close_matches(word.lstrip("-").replace("-", "_"), known, n=1)
    meant = f"; did you mean --{close[0]}?" if close else ""
    return f"no flag {word}{meant} {help_is}"


def call_with_flags(
    verb: str, what: str, function: Callable[..., None], words: list[str], allowed: list[str]
) -> None:
    """Turn the function's signature into flags, parse, and call it.

    `run` is the first word, `runs` are the words; all other parameters are flags.

    Args:
        verb: as typed.
        what: it does.
        function: does it.
        words: that follow the verb.
        allowed: packages for the function's `allow`, if it has one.
    """

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise ConfigError(mistake(message, verb, parameters)) from ex

    parameters = inspect.signature(function).parameters
    parser = Parser(
        prog=f"lmtemplate {verb}",
        description=what,
        exit_on_error=True,
        allow_abbrev=False,
    )
    skip: set[str | int] = {"allow", "run", "runs"}
    if "run" in parameters:
        optional = parameters["run"].default is None
        parser.add_argument("run", type=Path, nargs="?" if optional else None, help="directory")
    if "runs" in parameters:
        parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    parser.add_function_arguments(function, skip=skip, sub_configs=False)
    parsed = parser.parse_args(spelled_out(words, parameters))
    settings = parser.instantiate(parsed).as_dict()
    if "allow" in parameters:
        settings["allow"] = allowed
    function(**settings)
