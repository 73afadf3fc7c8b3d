"""Run directory -> what its plain files say, each key that is read checked for its type."""

import errno
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lmtemplate.checkpoint.compatibility import flatten
from lmtemplate.errors import CheckpointError
from lmtemplate.plain_file import LARGEST, LARGEST_YAML, nests_deep, read_plain

DIFF = "uncommitted.diff"  # what the code had beyond its commit
YEAR = 365.25 * 24 * 3600  # seconds
MOST_VALUES = 100_000  # in a YAML file, with what its anchors repeat
SUMMARY = {
    **dict.fromkeys(("stop_reason", "stop_message"), str),
    **dict.fromkeys(("step", "max_steps", "tokens", "parameters", "devices"), int),
    **dict.fromkeys(("flops", "flops_6nd", "passes", "seconds", "tokens_per_second", "mfu"), float),
}
KINDS_OF_BEST = {"best": {"val_loss": float}}  # null in a run without a validation
MANIFEST = {
    "started": str,
    "command": [str],
    "git": {"commit": str, "dirty": bool},
    **dict.fromkeys(("python", "platform"), str),
    "versions": dict,
    "hardware": {"device": str, "name": str, "devices": int, "precision": str, "threads": int},
    "settings": {"data": {"path": str}, "trainer": dict},
    "data": {"path": str, "fingerprint": str, "tokenizer_sha256": str},
    "resumed": [
        {"step": int, "started": str, "command": [str], "changed": dict, "environment": dict}
    ],
}
SETTINGS = {
    "data.path": str,
    **dict.fromkeys(("data.batch_size", "data.block_size"), 1),
    **dict.fromkeys(("data.max_train_blocks", "data.max_val_blocks"), 1),
    "seed_everything": 0,
    "trainer.max_steps": int,
    "model.optimizer.class_path": str,
    **dict.fromkeys(("planned.init_args.tokens_per_second", "planned.init_args.val_loss"), float),
    "model.schedule.init_args.warmup_steps": float,
}
KIND_NAMES = {
    bool: "true or false",
    dict: "a mapping",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "text",
}


def _not_of_kind(value: Any, kind: Any, key: str) -> Iterator[str]:
    """What is wrong below a key, in words."""
    plain = kind if isinstance(kind, type) else type(kind)
    if value is None and plain not in (dict, list):
        return
    if plain in (int, float):
        limit = 2**53 if plain is int else 1e150  # beyond these, sums of squares fail
        sound = type(value) in (int, plain) and abs(value) < limit
        sound = sound and (kind is plain or value >= kind)
    else:
        sound = isinstance(value, plain)
    if not sound:
        least = "" if kind is plain or plain not in (int, float) else f" from {kind} on"
        yield f"{key or 'its content'} is not {KIND_NAMES[plain]}{least}"
    elif isinstance(kind, dict):
        for name in (name for name in kind if name in value):
            yield from _not_of_kind(value[name], kind[name], f"{key}.{name}".strip("."))
    elif isinstance(kind, list):
        for number, item in enumerate(value):
            yield from _not_of_kind(item, kind[0], f"{key}[{number}]")


def check_kinds(content: Any, kinds: Any, path: Path) -> None:
    """Raises CheckpointError, with file and key, where a value is of another kind.

    Kinds are types, the least number, dictionaries of the keys below, or a list that holds the kind
    of all items. A key may be absent; a text or a number may be null.
    """
    is_deep = nests_deep(content)
    problem = "it nests too deep" if is_deep else next(_not_of_kind(content, kinds, ""), "")
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}; restore it, or move it away")


@functools.lru_cache(maxsize=1)  # several parts of a report read the same config
def parse_yaml(text: str) -> Any:
    """Raises ValueError where anchors make a few lines into more than anyone can read."""
    loader = yaml.SafeLoader(text)
    root = loader.get_single_node()
    waiting = [root] if root else []
    for _ in range(MOST_VALUES):
        if not waiting:
            return root and loader.construct_document(root)
        node = waiting.pop()
        if isinstance(node, yaml.MappingNode):
            waiting += [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    raise ValueError(f"it has more than {MOST_VALUES:,} values, counting what anchors repeat")


def read_checked(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    """A JSON or YAML file of a run, checked; {} where there is none. Raises CheckpointError."""
    if not path.exists():
        return {}
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link, and what it leads to is not shown; copy the file")
    try:
        is_yaml = path.suffix == ".yaml"
        text = read_plain(path, LARGEST_YAML if is_yaml else LARGEST)
        if is_yaml:  # it has dates and sets, which become text
            text = json.dumps(parse_yaml(text), default=str)
        content = json.loads(text, parse_constant=str)  # what is infinite or NaN is text, too
    except Exception as error:  # PyYAML raises what it stumbles over, as for !!int ""
        reason = " ".join(str(error).split())[:200]
        says = f"{path} cannot be read ({reason}); restore it, or move it away"
        raise CheckpointError(says) from error
    check_kinds(content, kinds, path)
    return dict(content)


def read_summary(run: Path) -> dict[str, Any]:
    """summary.json; {} where there is none. Raises CheckpointError where it is damaged."""
    summary = read_checked(run / "summary.json", SUMMARY)
    check_kinds({"best": summary.get("best") or {}}, KINDS_OF_BEST, run / "summary.json")
    return summary


def read_manifest(run: Path) -> dict[str, Any]:
    """manifest.json; {} where there is none. Raises CheckpointError where it is damaged."""
    return read_checked(run / "manifest.json", MANIFEST)


def read_settings(run: Path) -> dict[str, Any]:
    """config.yaml as "data.path" -> value; {} where there is none. Raises CheckpointError."""
    path = run / "config.yaml"
    settings = flatten(read_checked(path, {}))
    check_kinds(settings, SETTINGS, path)
    return settings


def open_no_link(path: str, flags: int) -> int:
    """For `open`: a stranger's link leads to no file of the user. Raises OSError for a pipe."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags, 0o644)
    if not os.path.isfile(handle):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no plain file", path)
    return handle


def append_line(path: Path, text: str) -> None:
    """Add a line by one write, which other writers cannot come between, after a torn one too."""
    with open(path, "a+b", buffering=0, opener=open_no_link) as file:
        end = file.seek(0, os.SEEK_END)
        is_torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
        file.write(b"\n" * is_torn + text.encode() + b"\n")
        os.fsync(file.fileno())


def command(*words: str) -> list[str]:
    """This program as another process, which imports from no folder that this one does not."""
    unsafe = os.getcwd() in sys.path  # where `python -m` would look first
    return [sys.executable, *([] if unsafe else ["-P"]), "-m", "lmtemplate", *words]


def duration(seconds: float) -> str:
    """75 -> "1 min 15 s"; beyond two years in years."""
    if seconds > 2 * YEAR:
        return f"{seconds / YEAR:,.0f} years"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
