"""`lmtemplate VERB ...` -> the module that does it, imported only then."""

import importlib
import io
import os
import sys
from difflib import get_close_matches

from lmtemplate import __version__, plug
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.plug import Verb

# The core's own verbs; `plug` adds those of study/. A function with a signature gets its flags from
# it; one that takes the words themselves parses configs with Lightning.
VERBS = {
    "prepare": Verb("lmtemplate.data.prepare", "prepare", "text -> token shards, by document"),
    "fit": Verb("lmtemplate.fit", "fit", "train: shards -> checkpoints, curves, samples", True),
    "validate": Verb("lmtemplate.evaluate", "validate", "RUN: validation loss", True),
    "test": Verb("lmtemplate.evaluate", "test", "RUN: loss on the test split", True),
    "generate": Verb("lmtemplate.generate", "generate", "RUN: continue a prompt"),
    **plug.verbs(),
}

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


def usage() -> str:
    verbs = "\n".join(f"  {name:<10} {verb.says}" for name, verb in VERBS.items())
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
    module, name, what, reads_configs = VERBS[verb]
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
