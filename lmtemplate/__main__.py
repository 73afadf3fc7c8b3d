"""`lmtemplate VERB ...` -> the module that does it, imported only then."""

import importlib
import io
import os
import sys
from difflib import get_close_matches

from lmtemplate import __version__
from lmtemplate.errors import ConfigError, UserError

# verb -> module, function, what it does. A function with a signature gets its flags from it; one
# that takes the words themselves (fit, validate, test) parses configs with Lightning.
VERBS = {
    "prepare": ("lmtemplate.data.prepare", "prepare", "text -> token shards, split by document"),
    "plan": (
        "lmtemplate.study.plan.plan",
        "plan",
        "a budget -> model, tokens, batch, rate, a config",
    ),
    "schedule": ("lmtemplate.fit", "schedule", "draw a config's learning rate before the run"),
    "fit": ("lmtemplate.fit", "fit", "train: shards -> checkpoints, curves, samples in a run"),
    "validate": ("lmtemplate.evaluate", "validate", "RUN: validation loss of a checkpoint"),
    "test": ("lmtemplate.evaluate", "test", "RUN: loss of a checkpoint on the test split"),
    "generate": ("lmtemplate.generate", "generate", "RUN: continue a prompt with a trained model"),
    "diagnose": (
        "lmtemplate.study.diagnose.diagnose",
        "diagnose",
        "RUN: healthy, or what is wrong and why",
    ),
    "summary": ("lmtemplate.study.show.summary", "summary", "RUN: its losses and rates in figures"),
    "plot": ("lmtemplate.study.show.plots", "plot", "RUN: draw its curves as PNG files"),
    "report": (
        "lmtemplate.study.show.report",
        "report",
        "RUN: everything about it in one HTML file",
    ),
    "compare": (
        "lmtemplate.study.show.compare",
        "compare",
        "RUN RUN ...: a table and one plot of all",
    ),
    "reproduce": (
        "lmtemplate.study.check.reproduce",
        "reproduce",
        "RUN: repeat it, compare bit for bit",
    ),
    "verify": (
        "lmtemplate.study.check.verify",
        "verify",
        "PATH: every checksum of a corpus or a run",
    ),
    "doctor": (
        "lmtemplate.study.check.doctor",
        "doctor",
        "check machine, corpus and run directory",
    ),
    "landscape": ("lmtemplate.study.show.landscape", "landscape", "a page: optimizers at work"),
}

READ_CONFIGS = ("lmtemplate.fit", "lmtemplate.evaluate")  # with Lightning
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


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
    module, name, what = VERBS[verb]
    reads_configs = module in READ_CONFIGS
    if reads_configs:
        check_ranks()
    allowed, rest = take_allowed(rest)
    if allowed:
        sys.path.append("")  # an allowed package may lie in the working directory
    function = getattr(importlib.import_module(module), name)
    if reads_configs:
        function(rest, allowed)
    else:
        from lmtemplate.flags import call_with_flags

        call_with_flags(verb, what, function, rest, allowed)


def say(line: str) -> None:
    """Print an error; where that cannot be, the exit code is still its own."""
    try:
        print(f"error: {line}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where Python flushes it again


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
        say(str(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `lmtemplate generate ... | head`: end as others do; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except Exception as error:
        from lmtemplate import crash

        says, code = crash.report(error)
        say(says)
        sys.exit(code)


if __name__ == "__main__":
    main()
