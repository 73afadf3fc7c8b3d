"""Machine, corpus, run directory -> one line per check: ok, or what to mend before step 1."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from lmtemplate.checkpoint.files import ROOM
from lmtemplate.errors import UserError
from lmtemplate.study.check import environment as machine
from lmtemplate.study.check.environment import Check, default_checkpoint_bytes, probe


def _data_of(run: Path | None, data: Path | None) -> Path | None:
    """The corpus that was named, or that the run was trained on."""
    from lmtemplate.run_dir import read_json

    if data is None and run is not None:
        told = (read_json(run / "manifest.json") or {}).get("data")
        if isinstance(told, dict) and isinstance(told.get("path"), str):
            return Path(told["path"])
    return data


def corpus(run: Path | None, data: Path | None) -> Iterator[Check]:
    """Index, sizes and headers of the shards, tokenizer; not every byte, as verify does."""
    from lmtemplate.data.index import read_index
    from lmtemplate.data.shards import Shards
    from lmtemplate.data.tokenizer import load_tokenizer

    folder = _data_of(run, data)
    if folder is None:
        yield Check("ok", "data", "not looked at; name a corpus with --data FOLDER")
        return
    index = read_index(folder)
    splits = {split: Shards(folder, split) for split in index["splits"]}
    tokenizer = load_tokenizer(folder / index["tokenizer"]["file"])
    sizes = ", ".join(f"{split} {shards.tokens:,}" for split, shards in splits.items())
    yield Check("ok", "data", f"{folder}: tokens: {sizes}; {index['vocab_size']:,} ids")
    if tokenizer.digest != index["tokenizer"]["sha256"]:
        yield Check("problem", "tokenizer", f"{folder} was made by another; prepare it again")
    digests = [e["sha256"] for split in index["splits"].values() for e in split["shards"]]
    if len(set(digests)) < len(digests):
        text = "two shards hold the same tokens: validation may measure memory; split them anew"
        yield Check("warning", "data", text)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _lock_holder(run: Path) -> tuple[str, bool]:
    """What the lock says of its holder, and whether that one lives."""
    from lmtemplate.run_dir import LOCK

    path = run / LOCK
    if not path.is_file():
        return "", False
    with path.open("r+", encoding="utf-8") as file:
        holder = file.read()
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # freed when the file is closed
        except ImportError:  # Windows: nothing is ever locked
            return holder, False
        except OSError:
            return holder, True
    return holder, False


def run_directory(run: Path | None) -> Iterator[Check]:
    """Whether checkpoints can be written there, by us, and how many the disk has room for."""
    from lmtemplate.checkpoint.files import damage, file_name
    from lmtemplate.checkpoint.resume import steps_saved
    from lmtemplate.run_dir import folder_of

    run = run or Path("runs")
    place = _existing(run)
    try:
        probe(place)
    except OSError as error:
        owner, mode = place.stat().st_uid, place.stat().st_mode & 0o7777
        text = f"cannot write {place} (owner {owner}, mode {mode:04o}): {error.strerror}"
        yield Check("problem", "run", f"{text}; name another with --run_dir")
        return
    holder, lives = _lock_holder(run)
    if lives:
        text = f"{run} is in use by {holder}; wait for it, or name another with --run_dir"
        yield Check("problem", "run", text)
    else:
        died = f"; {holder} died there, the next start takes over" if holder else ""
        yield Check("ok", "run", f"{run} can be written{died}")
    steps = steps_saved(run)
    if steps:
        newest = folder_of(run) / file_name(steps[-1])
        size, what = newest.stat().st_size, "its last checkpoint"
        if problem := damage(newest):
            text = f"{newest} is damaged ({problem}); see which are not: lmtemplate verify {run}"
            yield Check("problem", "run", text)
    else:
        size, what = default_checkpoint_bytes(), "a checkpoint of the default model"
    free = shutil.disk_usage(place).free
    text = f"{free / 1e6:,.0f} MB free, {what} has {size / 1e6:,.0f} MB"
    if free < ROOM * size:
        need = f"saving needs {ROOM * size / 1e6:,.0f} MB: make room, or name another --run_dir"
        yield Check("problem", "disk", f"{text}; {need}")
    else:
        yield Check("ok", "disk", text)


def checks(run: Path | None, data: Path | None) -> dict[str, Callable[[], Iterator[Check]]]:
    """All checks by name, those that need least first."""
    return {
        "packages": machine.versions,
        "devices": machine.devices,
        "threads": machine.threads,
        "encoding": machine.encoding,
        "TMPDIR": machine.temporary,
        "clock": machine.clock,
        "data": partial(corpus, run, data),
        "run": partial(run_directory, run),
        "step": machine.trial_step,
    }


def examine(run: Path | None, data: Path | None) -> Iterator[Check]:
    """What comes of every check. One that breaks off is a problem too, and not the end."""
    for name, look in checks(run, data).items():
        try:
            yield from look()
        except Exception as error:  # a UserError's line, a missing package, a broken driver
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            yield Check("problem", name, kind + " ".join(str(error).split()))


def doctor(run: Path | None = None, data: Path | None = None) -> None:
    """Check the machine, and a corpus and a run directory, before a run: one line per check.

    Exit code 0 says that nothing was found that would stop a run, else it is 1.

    Args:
        run: run directory that is to be begun or continued.
        data: folder of a prepared corpus; if not given, the one that the run was trained on.
    """
    done = list[Check]()
    for check in examine(run, data):
        print(check, flush=True)
        done.append(check)
    problems = sum(check.status == "problem" for check in done)
    if problems:
        raise UserError(f"{problems} of {len(done)} checks found a problem; mend those above")
    print("nothing found that would stop a run")
