"""Settings, command lines, texts -> the same with `***` for every secret, to be stored."""

import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

HIDDEN = "***"

# A setting whose last word says so: api_key and hf_token, but not key_size or token_shift ...
LAST_WORD = re.compile(r"(?:.*_)?(?:keys?|token|auth)")
# ... unless it is one of a language model, which opens nothing: eos_token, attention_key ...
OF_A_MODEL = re.compile(
    r"(?:.*_)?(?:attention|bos|cls|d|end|eos|eot|mask|n|num|pad|query|sep|sort|special|start|stop"
    r"|unk|unknown)_.*"
)
# ... or which has such a word anywhere: client_secret, password_file.
ANY_WORD = re.compile(r"(?:.*_)?(?:secrets?|passwords?|passwd|credentials?)(?:_.*)?")

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
    r"|(?<=://)[^\s/@]*:[^\s/@]+(?=@)"  # user:password@host
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|$)",
    re.ASCII,
)


def is_secret(name: str) -> bool:
    """Whether a setting of this name, or key path, holds a secret."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.rpartition(".")[2])
    name = re.sub(r"[\W_]+", "_", name).strip("_").lower()
    if ANY_WORD.fullmatch(name):
        return True
    return bool(LAST_WORD.fullmatch(name)) and not OF_A_MODEL.fullmatch(name)


def text(content: str, command: Sequence[str] = ()) -> str:
    """A text without the tokens known by their shape, and without the secrets of a command line."""
    for word, shown in zip(command, words(command), strict=True):
        if word != shown:
            content = content.replace(word.partition("=")[2] or word, HIDDEN)
    return SHAPES.sub(HIDDEN, content)


def _hidden(value: Any) -> Any:
    """The value of a setting that holds a secret; nothing and yes or no tell nothing."""
    if isinstance(value, dict):
        return {key: _hidden(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(item) for item in value]
    return value if value is None or value == "" or isinstance(value, bool) else HIDDEN


def settings(nested: Any) -> Any:
    """Nested settings with `***` for secrets, known by the setting's name or the value's shape."""
    if isinstance(nested, dict):
        return {
            key: _hidden(value) if is_secret(str(key)) else settings(value)
            for key, value in nested.items()
        }
    if isinstance(nested, (list, tuple)):
        return [settings(value) for value in nested]
    return text(nested) if isinstance(nested, str) else nested


def _flag(value: str) -> str:
    """What stands after a flag: a plain text, or settings in YAML."""
    try:
        nested = yaml.safe_load(value) if set(":{[") & {*value} else value
    except (yaml.YAMLError, ValueError, RecursionError):
        return text(value)
    hidden = settings(nested)
    is_nested = isinstance(nested, (dict, list)) and hidden != nested
    return json.dumps(hidden, default=str) if is_nested else text(value)


def words(command: Sequence[str]) -> list[str]:
    """A command line without its secrets: --x.api_key ***, --x.api_key=***, --x {api_key: ***}."""
    shown, secret_follows = list[str](), False
    for word in command:
        name, equals, value = word.partition("=")
        is_flag = name.startswith("--")
        if is_flag and is_secret(name):
            shown.append(f"{name}={HIDDEN}" if equals else name)
        elif secret_follows and not is_flag:
            shown.append(HIDDEN)
        else:
            shown.append(f"{name}={_flag(value)}" if is_flag and equals else _flag(word))
        secret_follows = is_flag and not equals and is_secret(name)
    return shown
