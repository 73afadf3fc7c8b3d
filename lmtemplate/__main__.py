"""`lmtemplate VERB ...` -> the module that does it, imported only then."""

import contextlib
import importlib
import inspect
import io
import itertools
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lmtemplate import __version__
from lmtemplate.errors import ConfigError, UserError

# verb -> module, function, what it does. A function with a signature gets its flags from it; one
# that takes the words themselves (fit, validate, test) parses configs with Lightning.
VERBS = {
    "prepare": ("lmtemplate.data.prepare", "prepare", "text -> token shards, split by document"),
    "plan": ("lmtemplate.study.plan", "plan", "a budget -> model, tokens, batch, rate, a config"),
    "schedule": ("lmtemplate.cli", "schedule", "draw a config's learning rate before the run"),
    "fit": ("lmtemplate.cli", "fit", "train: shards -> checkpoints, curves, samples in a run"),
    "validate": ("lmtemplate.evaluate", "validate", "RUN: validation loss of a checkpoint"),
    "test": ("lmtemplate.evaluate", "test", "RUN: loss of a checkpoint on the test split"),
    "generate": ("lmtemplate.generate", "generate", "RUN: continue a prompt with a trained model"),
    "diagnose": ("lmtemplate.study.diagnose", "diagnose", "RUN: healthy, or what is wrong and why"),
    "summary": ("lmtemplate.study.summary", "summary", "RUN: its losses and rates in figures"),
    "plot": ("lmtemplate.study.curves", "plot", "RUN: draw its curves as PNG files"),
    "report": ("lmtemplate.study.report", "report", "RUN: everything about it in one HTML file"),
    "compare": ("lmtemplate.study.compare", "compare", "RUN RUN ...: a table and one plot of all"),
    "reproduce": ("lmtemplate.study.reproduce", "reproduce", "RUN: repeat it, compare bit for bit"),
    "verify": ("lmtemplate.study.verify", "verify", "PATH: every checksum of a corpus or a run"),
    "doctor": ("lmtemplate.study.doctor", "doctor", "check machine, corpus and run directory"),
    "landscape": ("lmtemplate.study.landscape", "landscape", "a page: optimizers at work"),
}

READ_CONFIGS = ("lmtemplate.cli", "lmtemplate.evaluate")  # with Lightning
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")

CRASH_LOG = "lmtemplate-crash.log"


def usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {says}" for verb, (_, _, says) in VERBS.items())
    return (
        f"lmtemplate {__version__}: text in, a trained language model out\n\n"
        f"usage: lmtemplate VERB ...\n\n{verbs}\n\n"
        "`lmtemplate VERB --help` explains a verb; --allow PACKAGE lets configs name its classes"
    )


def take_allowed(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off every `--allow PACKAGE`: (packages, other words)."""
    allowed, others, rest = list[str](), list[str](), iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--allow":
            others.append(word)
            continue
        package = value if equals else next(rest, "")
        if not package.isidentifier():
            raise ConfigError(f"--allow needs the name of a top-level package, got {package!r}")
        allowed.append(package)
    return allowed, others


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
    from lmtemplate.mistakes import in_words

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
    verb: str, function: Callable[..., None], words: list[str], allowed: list[str]
) -> None:
    """Turn the function's signature into flags, parse, and call it.

    `run` is the first word, `runs` are the words; all other parameters are flags.
    """
    import jsonargparse

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> Any:
            raise ConfigError(mistake(message, verb, parameters)) from ex

    parameters = inspect.signature(function).parameters
    parser = Parser(
        prog=f"lmtemplate {verb}",
        description=VERBS[verb][2],
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


def check_ranks() -> None:
    """Raises ConfigError for what Lightning would fail over while it is imported."""
    for name in RANKS:
        if not os.environ.get(name, "0").isdecimal():
            raise ConfigError(
                f"the environment says {name}={os.environ[name]}, which is no whole number; type: "
                f"unset {name}"
            )


def run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return
    verb, *rest = words
    if verb in ("--version", "-V"):
        print(__version__)
        return
    if verb not in VERBS:
        close = get_close_matches(verb.lower(), [*VERBS, "train"], n=1)
        meant = f"; did you mean {close[0].replace('train', 'fit')}?" if close else ""
        raise ConfigError(f"no verb {verb!r}{meant} (there are: {', '.join(VERBS)})")
    module, name, _ = VERBS[verb]
    if module in READ_CONFIGS:
        check_ranks()
    allowed, rest = take_allowed(rest)
    if allowed:
        sys.path.append("")  # an allowed package may lie in the working directory
    function = getattr(importlib.import_module(module), name)
    if "words" in inspect.signature(function).parameters:
        function(rest, allowed)
    else:
        call_with_flags(verb, function, rest, allowed)


def log_crash(error: Exception) -> tuple[str, str]:
    """Add the traceback, without secrets, to a file; returns what it comes to, and the file."""
    from lmtemplate import redact

    command = redact.words(sys.argv)
    trace = redact.text("".join(traceback.format_exception(error)), sys.argv)
    entry = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, lmtemplate {__version__}, {command}\n"
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(os.path.dirname(__file__))]
    place = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}"
    message = redact.text(" ".join(f"{type(error).__name__}: {error}".split()), sys.argv)[:200]
    for folder in (os.getcwd(), tempfile.gettempdir()):
        path = os.path.join(folder, CRASH_LOG)
        # no link that lies here is followed: it could lead to any file of the user
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
        with contextlib.suppress(OSError):
            with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
                file.write(f"{entry}{trace}\n")
            return f"{message} ({place})", path
    return f"{message} ({place})", "no file: neither this folder nor the temporary one takes one"


def explain(error: Exception, what: str) -> tuple[str, int]:
    """What a user can do about an error that nobody expected, and its exit code."""
    torch = sys.modules.get("torch")  # without it, nothing but Python can have run out of memory
    on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if on_device or isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "too little memory; lower data.batch_size, the model or the context", 6
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith(__package__):
        return f"the package {error.name} is missing; type: make install", 1
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}", 5
    return f"unexpected {what}: a fault of the program, or of a file it read", 70


def output_fails(error: Exception) -> bool:
    """Whether this is because nothing more can be printed."""
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def discard_output() -> None:
    """Let what Python still flushes go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def main() -> None:
    """Entry point. A user's mistake is one line on standard error and an exit code.

    A mistake of the program is one, too: its traceback goes to a file.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with a closed one
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of ASCII cannot show every text
            stream.reconfigure(errors="replace")
    try:
        run(sys.argv[1:])
        print(end="", flush=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `lmtemplate generate ... | head`: end as others do
        discard_output()
        sys.exit(141)
    except Exception as error:
        if output_fails(error):
            discard_output()
            reason = getattr(error, "strerror", None) or error
            print(f"error: cannot write standard output: {reason}", file=sys.stderr)
            sys.exit(5)
        what, path = log_crash(error)
        says, code = explain(error, what)
        print(f"error: {says}; the traceback is in {path}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
