"""Words after a verb -> the values of the verb's own flags, and the words that are left for fit."""

import argparse
from typing import Any

from lmtemplate.errors import ConfigError

Flags = dict[str, dict[str, Any]]  # name -> what argparse takes


def whole(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text}")
    return int(text)


SEEDS: Flags = {
    "seeds": {
        "type": whole,
        "metavar": "N",
        "help": "as many runs, in RUN/seed-S; the first has seed_everything, then + 1",
    }
}


def split_words(verb: str, words: list[str], flags: Flags) -> tuple[argparse.Namespace, list[str]]:
    """The values of a verb's own flags, and the words of fit. Raises ConfigError."""
    prog = f"lmtemplate {verb} --config FILE"
    parser = argparse.ArgumentParser(prog, exit_on_error=False, allow_abbrev=False)
    parser.epilog = "All other flags are those of fit: `lmtemplate fit --help` lists them."
    for name, options in flags.items():
        says = options["help"] + " (default: %(default)s)" * bool(options.get("default"))
        parser.add_argument(f"--{name}", **{**options, "help": says})
    if flags:  # a verb that has none prints a drawing alone
        parser.add_argument(
            "--json", action="store_true", help="print one JSON object, nothing else"
        )
    try:
        return parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{verb}: {error}") from error
