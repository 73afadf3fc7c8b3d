"""A prepared corpus, or a run directory -> each of its files: sound, or damaged and how."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lmtemplate import record
from lmtemplate.checkpoint.files import SUMS, damage, file_name
from lmtemplate.data.shards import Shard, check_not_a_pointer, file_sha256, read_index
from lmtemplate.data.tokenizer import load_tokenizer
from lmtemplate.errors import CheckpointError, ConfigError, DataError, UserError
from lmtemplate.run_dir import folder_of, parse_yaml


@dataclass(frozen=True)
class FileState:
    """What is known of one file.

    Attributes:
        file: its path, seen from the folder that is verified.
        problem: what is damaged; empty if nothing is.
        note: what one may want to know of a sound file.
    """

    file: str
    problem: str = ""
    note: str = ""

    def __str__(self) -> str:
        state = "damaged" if self.problem else "ok"
        return f"{state:<8} {self.file:<34} {self.problem or self.note}".rstrip()


def _shard_problem(folder: Path, index: dict[str, Any], entry: dict[str, Any]) -> str:
    """What is wrong with a shard: every block of it, and the whole file. Raises DataError."""
    shard, problems = Shard(folder, index, entry), list[str]()
    for block in range(len(shard.unread)):
        try:
            shard.verify(block)
        except DataError as error:
            problems.append(str(error))
    if problems:
        more = f" (and so do {len(problems) - 1:,} more blocks)" if problems[1:] else ""
        return problems[0] + more
    found = file_sha256(shard.path)
    return "" if found == entry["sha256"] else f"sha256 is {found}, the index says another"


def _tokenizer_problem(folder: Path, index: dict[str, Any]) -> str:
    path = folder / index["tokenizer"]["file"]
    if path.is_file():
        check_not_a_pointer(path)
    tokenizer = load_tokenizer(path)
    if tokenizer.digest != index["tokenizer"]["sha256"]:
        return "not the tokenizer that made the shards"
    if tokenizer.vocab_size != index["vocab_size"]:
        return f"{tokenizer.vocab_size:,} ids, the index says {index['vocab_size']:,}"
    return ""


def corpus_files(folder: Path) -> Iterator[FileState]:
    """Index, every block of every shard, tokenizer."""
    try:
        index = read_index(folder)
    except DataError as error:
        yield FileState("index.json", str(error))
        return
    yield FileState("index.json")
    for split in index["splits"].values():
        for entry in split["shards"]:
            try:
                problem = _shard_problem(folder, index, entry)
            except DataError as error:
                problem = str(error)
            yield FileState(entry["file"], problem, f"{entry['tokens']:,} tokens")
    try:
        problem = _tokenizer_problem(folder, index)
    except DataError as error:
        problem = str(error)
    yield FileState(index["tokenizer"]["file"], problem, f"{index['vocab_size']:,} ids")


def _strict_json(text: str) -> Any:
    """Raises ValueError for what is not JSON to every reader, as NaN or a number too large."""
    try:
        content = json.loads(text)
        json.dumps(content, allow_nan=False)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return content


def _fields(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises ValueError, OSError."""
    content = _strict_json(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _listed(folder: Path) -> set[str]:
    """Files that a folder's SHA256SUMS names. Raises ValueError, OSError."""
    path, names = folder / SUMS, set[str]()
    for number, row in enumerate(_lines(path) if path.is_file() else [], 1):
        match = re.fullmatch(r"[0-9a-f]{64}  ([\w.-]+)", row)
        if not match:
            raise ValueError(f"line {number} is not a checksum and a name")
        names.add(match[1])
    return names


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _checkpoints(run: Path, folder: Path) -> Iterator[FileState]:
    """Each checkpoint of a folder against SHA256SUMS; those that are listed and gone."""
    place = folder.relative_to(run)
    try:
        listed = _listed(folder)
    except (OSError, ValueError) as error:
        yield FileState(str(place / SUMS), f"{error}: what it lists cannot be verified")
        return
    for path in sorted(folder.glob("*.ckpt")):
        try:
            problem = damage(path) or ""
        except OSError as error:
            problem = f"cannot be read: {error.strerror}"
        # a kill between rename and list leaves it so; its zip entries have sums of their own
        note = "" if path.name in listed else f"not in {SUMS}; its own CRC-32 sums are right"
        yield FileState(str(place / path.name), problem, note)
    for name in sorted(listed):
        if not (folder / name).exists():
            # only milestones are kept for ever; of the others a kill can leave the line behind
            gone = f"listed in {SUMS}, and not there"
            kept = folder.name == "milestones"
            yield FileState(str(place / name), gone if kept else "", "" if kept else gone)


def _best_problem(path: Path) -> str:
    best = _fields(path)
    step, name = best.get("step"), best.get("file")
    if type(step) is not int or name != file_name(step) or type(best.get("val_loss")) is not float:
        return "it has not the fields step, val_loss and file"
    return "" if (path.parent / name).is_file() else f"it points at {name}, which is not there"


def _record_problem(path: Path) -> str:
    """Lines are strict JSON, and steps never go back. Raises ValueError, OSError."""
    text, last = path.read_text(encoding="utf-8"), 0
    lines = text.splitlines()
    if text and not text.endswith("\n"):
        lines.pop()  # a kill cut it short; a resume drops it, as the reader does
    for number, row in enumerate(lines, 1):
        try:
            entry = _strict_json(row)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(entry, dict) or type(entry.get("step")) is not int:
            return f"line {number} has no step"
        if "nonfinite" in entry:  # what a rewound run keeps of the steps that it left
            continue
        if entry["step"] < last:
            return f"line {number} goes back from step {last:,} to {entry['step']:,}"
        last = entry["step"]
    return ""


def _arrays_problem(path: Path) -> str:
    content = _fields(path)
    columns = ("steps", "train_loss", "val_loss", "learning_rate", "epochs")
    sizes = {len(content[name]) for name in columns if isinstance(content.get(name), list)}
    return "" if len(sizes) == 1 else "its arrays are not of one length"


def _json_problem(path: Path) -> str:
    _fields(path)
    return ""


def _yaml_problem(path: Path) -> str:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        return " ".join(str(error).split())
    return "" if isinstance(content, dict) else "it holds no settings"


def run_files(run: Path) -> Iterator[FileState]:
    """Checkpoints and milestones against their sums, what points at them, record, manifest."""
    folder = folder_of(run)
    yield from _checkpoints(run, folder)
    yield from _checkpoints(run, folder / "milestones")
    for path, problem_of, needed in (
        (folder / "best.json", _best_problem, False),
        (folder / record.LINES, _record_problem, False),
        (folder / record.ARRAYS, _arrays_problem, False),
        (run / "manifest.json", _json_problem, True),
        (run / "config.yaml", _yaml_problem, True),
        (run / "summary.json", _json_problem, False),
    ):
        name = str(path.relative_to(run))
        if not path.is_file():
            if needed:
                yield FileState(name, "missing")
            continue
        try:
            problem = problem_of(path)
        except (OSError, ValueError) as error:
            problem = " ".join(str(error).split())
        yield FileState(name, problem)


def verify(run: Path) -> None:
    """Read every file of a corpus or a run, compare it with its checksums, and list what is found.

    Exit code 0 says that all is sound, 8 that a corpus is damaged, 3 that a run is.

    Args:
        run: folder of a prepared corpus, or run directory.
    """
    is_run = folder_of(run).is_dir() or (run / "config.yaml").is_file()
    if not is_run and not ((run / "index.json").exists() or any(run.glob("*.bin"))):
        raise ConfigError(
            f"{run} is neither a prepared corpus (index.json) nor a run directory (checkpoints/)"
        )
    states = list[FileState]()
    for state in run_files(run) if is_run else corpus_files(run):
        print(state, flush=True)
        states.append(state)
    damaged = sum(bool(state.problem) for state in states)
    if damaged:
        kind: type[UserError] = CheckpointError if is_run else DataError
        remedy = "resume takes the newest sound checkpoint" if is_run else "prepare it again"
        raise kind(
            f"{damaged} of {len(states)} files in {run} are damaged; {remedy}, or restore them"
        )
    print(f"{len(states)} files in {run}, all sound")
