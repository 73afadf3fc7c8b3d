"""Settings, command lines, texts -> the same with `***` for every secret, to be stored."""

import re
from collections.abc import Sequence
from typing import Any

HIDDEN = "***"

# Names of settings that hold a secret: api_key, hf_token, client_secret, password_file ...
# but not the keys and tokens of a language model: eos_token, attention_key.
SECRET = re.compile(
    r"(?s)(?!(.*_)?(attention|bos|cls|d|end|eos|eot|mask|n|num|pad|query|sep|sort|special|start|stop"
    r"|unk|unknown)_(keys?|token)$)"
    r"(.*_)?(keys?|token|auth|(secrets?|passwords?|passwd|credentials?)(_.*)?)"
)

# Tokens that are known by their shape, wherever they stand.
SHAPES = re.compile(
    r"(?<![\w-])(?:"
    r"sk-(?=[\w-]*\d)[\w-]{16,}"  # OpenAI, Anthropic and others
    r"|gh[opsur]_\w{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|hf_[A-Za-z0-9]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|xox[abprs]-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{30,}"  # Google
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"  # JSON Web Token
    r")|(?<=Bearer )[\w.~+/=-]{8,}"
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"  # user:password@host
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|$)",
    re.ASCII,
)

# A setting in YAML or JSON that is one word of a command line: its name, its value.
INSIDE = re.compile(r"""((?<![\w-])["']?([\w-]+)["']?: ?)("[^"]*"|'[^']*'|[^\s,{}\[\]]+)""")


def is_secret(name: str) -> bool:
    """Whether a setting of this name, or key path, holds a secret."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2])
    words = words.strip("-").replace("-", "_").lower()
    return bool(SECRET.fullmatch(words))


def settings(nested: Any, is_hidden: bool = False) -> Any:
    """Nested settings with `***` for secrets, known by the setting's name or the value's shape."""
    if isinstance(nested, dict):
        return {k: settings(v, is_hidden or is_secret(str(k))) for k, v in nested.items()}
    if isinstance(nested, (list, tuple)):
        return [settings(value, is_hidden) for value in nested]
    if is_hidden and nested not in (None, "") and not isinstance(nested, bool):
        return HIDDEN
    return text(nested) if isinstance(nested, str) else nested


def text(content: str, command: Sequence[str] = ()) -> str:
    """A text without the tokens known by their shape, and without the secrets of a command line."""
    for word, shown in zip(command, words(command), strict=True):
        if word != shown:
            content = content.replace(word.partition("=")[2] or word, HIDDEN)
    return SHAPES.sub(HIDDEN, content)


def words(command: Sequence[str]) -> list[str]:
    """A command line without its secrets: --x.api_key ***, --x.api_key=***."""
    shown, secret_follows = list[str](), False
    for word in command:
        flag, equals, _ = word.partition("=")
        is_secret_flag = flag.startswith("--") and is_secret(flag)
        if secret_follows and not flag.startswith("--"):
            word = HIDDEN
        elif is_secret_flag and equals:
            word = f"{flag}={HIDDEN}"
        elif "{" in word:
            word = INSIDE.sub(lambda m: f"{m[1]}{HIDDEN}" if is_secret(m[2]) else m[0], word)
        shown.append(SHAPES.sub(HIDDEN, word))
        secret_follows = is_secret_flag and not equals
    return shown
