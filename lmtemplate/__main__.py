"""`lmtemplate VERB ...` -> the verb's function, imported only then; errors -> exit codes."""

import contextlib
import gc
import importlib
import inspect
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from lmtemplate import __version__, errors, plug, redact, terminal
from lmtemplate.errors import ConfigError, DiskError, UserError
from lmtemplate.plug import Verb

LOG = "lmtemplate-crash.log"  # tracebacks of errors that nobody expected

# The core's own verbs. One with a signature gets its flags from it; one that takes words reads configs.
CORE = {
    "prepare": Verb("lmtemplate.data.prepare", "prepare", "text -> token shards, by document"),
    "fit": Verb("lmtemplate.fit", "fit", "train: shards -> checkpoints, curves, samples", True),
    "validate": Verb("lmtemplate.evaluate", "validate", "RUN: validation loss", True),
    "test": Verb("lmtemplate.evaluate", "test", "RUN: loss on the test split", True),
    "generate": Verb("lmtemplate.generate", "generate", "RUN: continue a prompt"),
}

# What others call a verb -> what to type.
MEANT = {"train": "fit", "resume": "fit --config RUN/config.yaml --run_dir RUN --resume must"}


def verbs() -> dict[str, Verb]:
    """The verbs of the core and of study/."""
    return {**CORE, **plug.study_verbs()}


def usage() -> str:
    rows = "\n".join(f"  {name:<18} {verb.says}" for name, verb in verbs().items())
    return (
        f"lmtemplate {__version__}: text in, a trained language model out\n\n"
        f"usage: lmtemplate VERB ...\n\n{rows}\n\n"
        "`lmtemplate VERB --help` explains a verb; --allow PACKAGE lets configs name its classes"
    )


def take_allowed(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off every `--allow PACKAGE`: (packages, other words)."""
    from lmtemplate.cli_words import take_flag

    allowed, others = take_flag(words, "--allow")
    for package in allowed:
        if not package.isidentifier():
            raise ConfigError(f"--allow needs the name of a top-level package, got {package!r}")
    return allowed, others


def call_with_flags(
    prog: str, says: str, function: Callable[..., None], words: list[str], allowed: list[str]
) -> None:
    """Call a verb's function with what follows the verb; raises ConfigError.

    Its parameters `run` and `runs` are words, `allow` takes the allowed packages, the others are
    flags, of which `config` may stand several times.
    """
    from jsonargparse import ArgumentParser

    from lmtemplate.cli_errors import parse_words
    from lmtemplate.cli_words import flags_in

    taken = inspect.signature(function).parameters
    parser = ArgumentParser(prog, description=says, exit_on_error=False, allow_abbrev=False)
    if "run" in taken:
        count = "?" if taken["run"].default is None else None
        parser.add_argument("run", type=taken["run"].annotation, nargs=count, help="directory")
    if "runs" in taken:
        parser.add_argument("runs", type=Path, nargs="+", help="run directories")
    parser.add_function_arguments(function, skip={"allow", "run", "runs"}, sub_configs=False)
    given = [place.key for place in flags_in(words) if place.key != "config"]
    if twice := [f"--{key}" for key in given if given.count(key) > 1]:
        raise ConfigError(f"{twice[0]} (command line) is there twice; keep one")
    for place, word in enumerate(words):  # --train-loss is --train_loss, --json is --json=true
        flag, equals, value = word.removeprefix("--").partition("=")
        flag = flag.replace("-", "_")
        if word.startswith("--") and flag in taken:
            is_switch = taken[flag].default is False and not equals
            is_switch &= words[place + 1 : place + 2] not in (["true"], ["false"])
            name = f"--{flag}+" if flag == "config" else f"--{flag}"  # one more of a list
            words[place] = f"{name}=true" if is_switch else f"{name}{equals}{value}"
    settings = parser.instantiate(parse_words(parser, words, flags_in(words))).as_dict()
    if "allow" in taken:
        settings["allow"] = allowed
    function(**settings)


def run(words: list[str]) -> None:
    """What `lmtemplate WORDS ...` does. Raises UserError."""
    name, *rest = words or ["--help"]
    if name in ("-h", "--help", "help", "-V", "--version"):
        print(__version__ if "v" in name.lower() else usage())
        return
    known = verbs()
    if name not in known:
        close = get_close_matches(name.lower(), [*known, *MEANT], n=1)
        meant = f"; did you mean {MEANT.get(close[0], close[0])}?" if close else ""
        raise ConfigError(f"no verb {name!r}{meant} (there are: {', '.join(known)})")
    verb = known[name]
    for rank in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE") if verb.reads_configs else ():
        if not (value := os.environ.get(rank, "0")).isdecimal():
            raise ConfigError(f"{rank}={value} in the environment is not a number; unset {rank}")
    allowed, rest = take_allowed(rest)
    if allowed:
        sys.path.append("")  # an allowed package may lie in the working directory
    gc.disable()  # nothing that imports make is garbage: to look for it costs 0.9 s
    function = getattr(importlib.import_module(verb.module), verb.function)
    gc.freeze()
    gc.enable()
    if verb.reads_configs:
        function(rest, allowed)
    else:
        call_with_flags(f"lmtemplate {name}", verb.says, function, rest, allowed)


def log_crash(error: Exception) -> str:
    """Add the traceback, without secrets, to a file. Returns its path, or why there is none."""
    head = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, {__version__}, {redact.words(sys.argv)}"
    trace = redact.text("".join(traceback.format_exception(error)), sys.argv)
    # a link could lead to any file of the user, and a pipe would be waited for
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with contextlib.suppress(OSError):
        path = os.path.join(os.getcwd(), LOG)
        with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{head}\n{trace}\n")
        return path
    return "no file: this folder cannot be written"


def explain(error: Exception) -> tuple[str, int]:
    """What a user can do about an error, in one line, and its exit code."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename is None and not terminal.can_print():
        return f"cannot write standard output: {error.strerror or error}", DiskError.exit_code
    message = redact.text(" ".join(f"{type(error).__name__}: {error}".split()), sys.argv)[:200]
    of_torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, (MemoryError, of_torch)) or "can't allocate memory" in str(error):
        says = "too little memory; lower data.batch_size (and raise "
        says += "trainer.accumulate_grad_batches as much), the model or the context"
        code = errors.OutOfMemoryError.exit_code
    elif isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("lmtemplate"):
        says, code = f"the package {error.name} is missing; type: make install", UserError.exit_code
    elif isinstance(error, OSError) and error.filename is not None:
        says, code = f"{error.strerror}: {error.filename}", DiskError.exit_code
    elif place := errors.own_line(error):
        says, code = f"{place}: {message}", UserError.exit_code
    elif place := errors.chosen_part(error):
        says, code = f"{place} does not fit: {message}", ConfigError.exit_code
    elif isinstance(error, OverflowError) or re.search("overflow|Exceeds the limit", message):
        says = f"a number of the settings or of a file is too large: {message}"
        code = ConfigError.exit_code
    else:
        code = errors.BAD_PROGRAM
        says = f"unexpected {message}: a fault of the program, or of a file it read"
    return f"{says}; the traceback is in {log_crash(error)}", code


def main() -> None:
    """Entry point: every error is one line on standard error and an exit code."""
    terminal.prepare_streams()
    # torch's threads sleep while they wait for each other: spinning takes ten times as long on
    # cores that others use, and gains nothing on quiet ones
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    if not {"", os.getcwd()} & {*sys.path}:  # nor may Python find modules there in a child process
        os.environ["PYTHONSAFEPATH"] = "1"
    if os.path.lexists("matplotlibrc"):  # read where matplotlib is imported, as by torchmetrics
        with contextlib.suppress(ImportError), contextlib.chdir(os.path.dirname(__file__)):
            importlib.import_module("matplotlib")
    # what odd numbers of a record, or odd tensors of a checkpoint, do is no news to a user
    own = r"(lmtemplate|uniplot)(\.|$)"
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=own)
    readers = r"(lmtemplate|lightning|torch\.(optim|nn))\."
    warnings.filterwarnings("ignore", "Casting complex|Using a non-tuple", module=readers)
    try:
        run(sys.argv[1:])
        print(end="", flush=True)
    except KeyboardInterrupt:
        sys.exit(errors.INTERRUPTED)
    except BrokenPipeError:  # `lmtemplate generate ... | head`
        terminal.discard(1)
        sys.exit(errors.BROKEN_PIPE)
    except Exception as error:
        line, code = explain(error)
        with terminal.forgiving():  # the exit code stands where the line cannot be shown
            print(f"error: {line}", file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    if __spec__:  # python -m; Lightning starts other ranks in the same way
        sys.argv[0] = "lmtemplate"
    main()
