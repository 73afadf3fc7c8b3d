"""A prepared corpus, or a run directory -> each of its files: sound, or damaged and how."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lmtemplate import record
from lmtemplate.checkpoint.files import SUMS, damage, file_name
from lmtemplate.data.shards import Shard, check_not_a_pointer, file_sha256, read_index
from lmtemplate.data.tokenizer import load_tokenizer
from lmtemplate.errors import CheckpointError, ConfigError, DataError, UserError
from lmtemplate.run_dir import folder_of
from lmtemplate.study.run_files import read_manifest, read_settings, read_summary

RUN_FILES = {
    "config.yaml": read_settings,
    "manifest.json": read_manifest,
    "summary.json": read_summary,
}
COLUMNS = ("steps", "train_loss", "val_loss", "learning_rate", "epochs")  # of equal length


@dataclass(frozen=True)
class FileState:
    """What is known of one file.

    Attributes:
        file: its path, relative to the folder that is verified.
        problem: the damage; empty for a sound file.
        note: what else is worth knowing of a sound file.
    """

    file: str
    problem: str = ""
    note: str = ""

    def __str__(self) -> str:
        state = "damaged" if self.problem else "ok"
        return f"{state:<8} {self.file:<34} {self.problem or self.note}".rstrip()


def check_shard(folder: Path, index: dict[str, Any], entry: dict[str, Any]) -> None:
    """Size, header, every block and the whole file. Raises DataError."""
    shard = Shard(folder, index, entry)
    shard.verify_all()
    if (found := file_sha256(shard.path)) != entry["sha256"]:
        raise DataError(f"sha256 is {found}, the index says another")


def verify_tokenizer(path: Path, index: dict[str, Any]) -> None:
    """Whether it made the shards. Raises DataError."""
    if path.is_file():
        check_not_a_pointer(path)
    tokenizer = load_tokenizer(path)
    if tokenizer.digest != index["tokenizer"]["sha256"]:
        raise DataError("not the tokenizer that made the shards")
    if tokenizer.vocab_size != index["vocab_size"]:
        raise DataError(f"{tokenizer.vocab_size:,} ids, the index says {index['vocab_size']:,}")


def state_of(file: str, check: Callable[[], None], note: str = "") -> FileState:
    """The note where the check passes, else its objection."""
    try:
        check()
    except (UserError, OSError, ValueError) as error:
        return FileState(file, " ".join(str(error).split()))
    return FileState(file, note=note)


def corpus_files(folder: Path) -> Iterator[FileState]:
    """Index, shards, tokenizer."""
    try:
        index = read_index(folder)
    except DataError as error:
        yield FileState("index.json", str(error))
        return
    yield FileState("index.json")
    for entry in (shard for split in index["splits"].values() for shard in split["shards"]):
        check = partial(check_shard, folder, index, entry)
        yield state_of(entry["file"], check, f"{entry['tokens']:,} tokens")
    name = index["tokenizer"]["file"]
    check = partial(verify_tokenizer, folder / name, index)
    yield state_of(name, check, f"{index['vocab_size']:,} ids")


def _listed(path: Path) -> set[str]:
    """Names in a list of checksums. Raises ValueError, OSError."""
    names = set[str]()
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for number, row in enumerate(text.splitlines(), 1):
        if not (match := re.fullmatch(r"[0-9a-f]{64}  ([\w.-]+)", row)):
            raise ValueError(f"line {number} is not a checksum and a name")
        names.add(match[1])
    return names


def check_checkpoint(path: Path) -> None:
    """Raises CheckpointError, OSError."""
    if problem := damage(path):
        raise CheckpointError(problem)


def checkpoints(run: Path, folder: Path) -> Iterator[FileState]:
    """Each checkpoint of a folder against SHA256SUMS; those that are listed and gone."""
    place = folder.relative_to(run)
    try:
        listed = _listed(folder / SUMS)
    except (OSError, ValueError) as error:
        yield FileState(str(place / SUMS), f"{error}: what it lists cannot be verified")
        return
    for path in sorted(folder.glob("*.ckpt")):
        # a kill between rename and list leaves it so; its zip entries have sums of their own
        note = "" if path.name in listed else f"not in {SUMS}; its own CRC-32 sums are right"
        yield state_of(str(place / path.name), partial(check_checkpoint, path), note)
    for name in sorted(name for name in listed if not (folder / name).exists()):
        # milestones alone are kept for ever; of other checkpoints a kill can leave the line behind
        gone = f"listed in {SUMS}, and not there"
        yield FileState(str(place / name), gone if folder.name == "milestones" else "", gone)


def _strict_json(text: str) -> dict[str, Any]:
    """Raises ValueError for what is no strict JSON object: NaN, or a number too large."""
    try:
        content = json.loads(text)
        json.dumps(content, allow_nan=False)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def check_record(text: str) -> None:
    """Lines are strict JSON, and steps never go back. Raises ValueError."""
    last, lines = 0, text.splitlines()
    if text and not text.endswith("\n"):
        lines.pop()  # a kill cut it short; a resume drops it, as the reader does
    for number, row in enumerate(lines, 1):
        try:
            entry = _strict_json(row)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        if type(entry.get("step")) is not int:
            raise ValueError(f"line {number} has no step")
        if "nonfinite" in entry:  # what a rewound run keeps of the steps that it left
            continue
        if entry["step"] < last:
            raise ValueError(f"line {number} goes back from step {last:,} to {entry['step']:,}")
        last = entry["step"]


def check_text(path: Path) -> None:
    """Content of a JSON, JSONL or YAML file of a run. Raises UserError, ValueError, OSError."""
    text = path.read_text(encoding="utf-8")
    if path.name in RUN_FILES:
        RUN_FILES[path.name](path.parent)
    if path.suffix == ".yaml":
        return
    if path.name == record.LINES:
        check_record(text)
    else:
        content = _strict_json(text)
        if path.name == record.ARRAYS:
            sizes = {len(content[n]) for n in COLUMNS if isinstance(content.get(n), list)}
            if len(sizes) != 1:
                raise ValueError("its arrays are not of one length")
        elif path.name == "best.json":
            step, name = content.get("step"), content.get("file")
            sound = type(step) is int and type(content.get("val_loss")) is float
            if not sound or name != file_name(step):  # type: ignore[arg-type]
                raise ValueError("it has not the fields step, val_loss and file")
            if not (path.parent / name).is_file():
                raise ValueError(f"it points at {name}, which is not there")


def run_files(run: Path) -> Iterator[FileState]:
    """Checkpoints and milestones against their sums, what points at them, record, manifest."""
    folder = folder_of(run)
    yield from checkpoints(run, folder)
    yield from checkpoints(run, folder / "milestones")
    needed = (run / "manifest.json", run / "config.yaml")
    others = (folder / "best.json", folder / record.LINES, folder / record.ARRAYS)
    for path in (*needed, *others, run / "summary.json"):
        name = str(path.relative_to(run))
        if path.is_file():
            yield state_of(name, partial(check_text, path))
        elif path in needed:
            yield FileState(name, "missing")


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
