"""A prepared corpus, or a run directory -> each of its files: sound, or damaged and how."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmtemplate import record
from lmtemplate.checkpoint.files import SUMS, damage
from lmtemplate.checkpoint.resume import read_best
from lmtemplate.data.shards import Shard, file_sha256, read_index
from lmtemplate.data.tokenizer import load_tokenizer
from lmtemplate.errors import CheckpointError, ConfigError, DataError, UserError
from lmtemplate.run_dir import folder_of, refuse_links
from lmtemplate.study.run_files import read_checked, read_manifest, read_settings, read_summary

COLUMNS = ("steps", "train_loss", "val_loss", "learning_rate", "epochs")  # of equal length
State = tuple[str, str, str]  # a file, its damage, and what else is worth knowing of a sound one


def problem_of(check: Callable[..., object], *given: object) -> str:
    """What a check objects to; empty where it passes."""
    try:
        check(*given)
    except (UserError, OSError, ValueError, RecursionError) as error:
        return " ".join(str(error).split())
    return ""


def check_shard(folder: Path, index: dict[str, Any], entry: dict[str, Any]) -> None:
    """Size, header, every block and the whole file. Raises DataError."""
    shard = Shard(folder, index, entry)
    shard.verify_all()
    if (found := file_sha256(shard.path)) != entry["sha256"]:
        raise DataError(f"sha256 is {found}, the index says another")


def corpus_files(folder: Path) -> Iterator[State]:
    """Index, shards, tokenizer."""
    problem = problem_of(read_index, folder)
    yield "index.json", problem, ""
    if problem:
        return
    index = read_index(folder)
    for entry in (shard for split in index["splits"].values() for shard in split["shards"]):
        problem = problem_of(check_shard, folder, index, entry)
        yield entry["file"], problem, f"{entry['tokens']:,} tokens"
    name, digest = index["tokenizer"]["file"], index["tokenizer"]["sha256"]
    yield name, problem_of(load_tokenizer, folder / name, digest), f"{index['vocab_size']:,} ids"


def listed(folder: Path) -> set[str]:
    """Names in a folder's list of checksums. Raises ValueError, OSError."""
    path = folder / SUMS
    rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [re.fullmatch(r"[0-9a-f]{64}  ([\w.-]+)", row) for row in rows]
    if None in found:
        raise ValueError(f"line {found.index(None) + 1} is not a checksum and a name")
    return {row[1] for row in found if row}


def checkpoints(run: Path, folder: Path) -> Iterator[State]:
    """Each checkpoint of a folder against SHA256SUMS; those that are listed and gone."""
    place = folder.relative_to(run)
    if problem := problem_of(listed, folder):
        yield str(place / SUMS), f"{problem}: what it lists cannot be verified", ""
        return
    names = listed(folder)
    for path in sorted(folder.glob("*.ckpt")):
        # a kill between rename and list leaves it so; its zip entries have sums of their own
        note = "" if path.name in names else f"not in {SUMS}; its own CRC-32 sums are right"
        yield str(place / path.name), damage(path) or "", note
    for name in sorted(name for name in names if not (folder / name).exists()):
        # milestones alone are kept for ever; of other checkpoints a kill can leave the line behind
        gone = f"listed in {SUMS}, and not there"
        yield str(place / name), gone if folder.name == "milestones" else "", gone


def check_best(run: Path) -> None:
    """It points at a checkpoint that is there. Raises CheckpointError."""
    path = folder_of(run) / "best.json"
    name, best = read_checked(path, {"file": str}).get("file"), read_best(run)
    if best is None or name != best["file"]:
        raise CheckpointError("it has not the fields step, val_loss and file")
    if not (path.parent / name).is_file():
        raise CheckpointError(f"it points at {name}, which is not there")


def check_record(run: Path) -> None:
    """Lines are what a run writes, and steps never go back. Raises ValueError, OSError."""
    last, text = 0, (folder_of(run) / record.LINES).read_text(encoding="utf-8")
    *rows, _ = text.split("\n")  # a kill cut the last short; a resume drops it, as the reader does
    for number, row in enumerate(rows, 1):
        entry = record.parse_line(row)
        if entry is None:
            raise ValueError(f"line {number} is damaged: {row[:60]}")
        if "nonfinite" in entry:  # what a rewound run keeps of the steps that it left
            continue
        if entry["step"] < last:
            raise ValueError(f"line {number} goes back from step {last:,} to {entry['step']:,}")
        last = entry["step"]


def check_arrays(run: Path) -> None:
    """Raises CheckpointError for arrays that are not of numbers, or of several lengths."""
    arrays = read_checked(folder_of(run) / record.ARRAYS, {name: [float] for name in COLUMNS})
    if len({len(arrays.get(name, [])) for name in COLUMNS}) != 1:
        raise CheckpointError("its arrays are not of one length")


RUN_FILES: dict[str, Callable[[Path], object]] = {
    "manifest.json": read_manifest,
    "config.yaml": read_settings,
    "checkpoints/best.json": check_best,
    f"checkpoints/{record.LINES}": check_record,
    f"checkpoints/{record.ARRAYS}": check_arrays,
    "summary.json": read_summary,
}


def run_files(run: Path) -> Iterator[State]:
    """Checkpoints and milestones against their sums, what points at them, record, manifest."""
    yield from checkpoints(run, folder_of(run))
    yield from checkpoints(run, folder_of(run) / "milestones")
    for name, check in RUN_FILES.items():
        if (run / name).is_file():
            yield name, problem_of(check, run), ""
        elif check in (read_manifest, read_settings):
            yield name, "missing", ""


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
    if is_run:
        refuse_links(run)
    problems = list[str]()
    for file, problem, note in run_files(run) if is_run else corpus_files(run):
        state = "damaged" if problem else "ok"
        print(f"{state:<8} {file:<34} {problem or note}".rstrip(), flush=True)
        problems.append(problem)
    if any(problems):
        kind: type[UserError] = CheckpointError if is_run else DataError
        remedy = "resume takes the newest sound checkpoint" if is_run else "prepare it again"
        damaged = f"{sum(map(bool, problems))} of {len(problems)} files in {run} are damaged"
        raise kind(f"{damaged}; {remedy}, or restore them")
    print(f"{len(problems)} files in {run}, all sound")
