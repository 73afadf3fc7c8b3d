"""Environment, corpus, run directory, config -> one line per check: fine, or what to mend."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lmtemplate.checkpoint.files import ROOM
from lmtemplate.errors import LockedError, UserError
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.check import environment
from lmtemplate.study.check.environment import Check, judged, probe


class Config(NamedTuple):
    """What the checks need of a config."""

    run: Path
    data: Path | None  # None where a class of the user's own reads it
    steps: int
    build: Callable[[], LanguageModel]


def look_for_overlay(paths: list[Path]) -> Iterator[Check]:
    """Whether the configs leave out what a whole one names. Raises ConfigError."""
    from lmtemplate.cli_words import read_config

    if not {"data.path", "data.class_path"} & {one.key for p in paths for one in read_config(p)[1]}:
        flags = " ".join(f"--config {shlex.quote(str(path))}" for path in paths)
        text = f"{flags} names no data: an overlay? name the config that it changes first, as in: "
        text += f"lmtemplate doctor --config configs/quickstart.yaml {flags}"
        yield Check("warning", "config", text)


def parse_config(paths: list[Path], allow: list[str]) -> Config:
    """Parse and check configs as `fit` does, and build nothing that writes. Raises UserError."""
    from lmtemplate.cli import TrainingCLI, check_settings
    from lmtemplate.data.datamodule import TokenData
    from lmtemplate.fit import make_plan

    cli = TrainingCLI([f"--config={path}" for path in paths], allow, "doctor")
    cli.datamodule.setup("fit")
    steps = make_plan(cli).steps
    check_settings(cli, steps)

    def build() -> LanguageModel:
        cli.instantiate_classes()
        net: LanguageModel = cli.model.net
        return net

    data = Path(cli.datamodule.name) if isinstance(cli.datamodule, TokenData) else None
    return Config(Path(cli.config.run_dir), data, steps, build)


def corpus(run: Path | None, data: Path | None) -> Iterator[Check]:
    """Index, sizes and headers of the shards, tokenizer; `verify` reads every byte."""
    from lmtemplate.data.shards import Shards, read_index
    from lmtemplate.data.tokenizer import tokenizer_of
    from lmtemplate.study.run_files import read_manifest

    if data is None and run is not None:
        path = read_manifest(run).get("data", {}).get("path")
        data = Path(path) if path else None
    if data is None:
        yield Check("ok", "data", "not checked; name a corpus with --data FOLDER")
        return
    index = read_index(data)
    sizes = ", ".join(f"{split} {Shards(data, split, index).tokens:,}" for split in index["splits"])
    yield Check("ok", "data", f"{data}: tokens: {sizes}; {index['vocab_size']:,} ids")
    if copies := index.get("source", {}).get("copies"):
        text = f"exact copies of other documents, in the same split as these: {copies:,}"
        yield Check("ok", "data", text)
    digests = [e["sha256"] for split in index["splits"].values() for e in split["shards"]]
    if len(set(digests)) < len(digests):
        text = "two shards hold the same tokens: validation may measure memory; split them anew"
        yield Check("warning", "data", text)
    tokenizer_of(data, index)


def default_checkpoint_bytes() -> int:
    """Size of a checkpoint of the default GPT: weights and two moments, in float32."""
    import torch

    from lmtemplate.models.gpt import GPT

    with torch.device("meta"):
        return 3 * 4 * GPT(environment.VOCABULARY, environment.BLOCK).parameter_count()


def run_directory(run: Path | None) -> Iterator[Check]:
    """Whether checkpoints can be written there, by us, and how many the disk has room for."""
    from lmtemplate.checkpoint.files import damage, file_name
    from lmtemplate.checkpoint.resume import steps_saved
    from lmtemplate.run_dir import LOCK, folder_of, lock, refuse_links

    if run:
        refuse_links(run)
    run = run or Path("runs")
    place = next(p for p in (run.absolute(), *run.absolute().parents) if p.exists())
    try:
        probe(place)
    except OSError as error:
        owner, mode = place.stat().st_uid, place.stat().st_mode & 0o7777
        text = f"cannot write {place} (owner {owner}, mode {mode:04o}): {error.strerror}"
        yield Check("problem", "run", f"{text}; name another with --run_dir")
        return
    try:
        if (run / LOCK).exists():
            with lock(run):
                pass
        yield Check("ok", "run", f"{run} can be written")
    except LockedError as error:
        yield Check("problem", "run", str(error))
    size, what = default_checkpoint_bytes(), "a checkpoint of the default GPT"
    if steps := steps_saved(run):
        newest = folder_of(run) / file_name(steps[-1])
        size, what = newest.stat().st_size, "its last checkpoint"
        if problem := damage(newest):
            text = f"{newest} is damaged ({problem}); see which are not: lmtemplate verify {shlex.quote(str(run))}"
            yield Check("problem", "run", text)
    free = shutil.disk_usage(place).free
    text = f"{free / 1e6:,.0f} MB free, {what} has {size / 1e6:,.0f} MB"
    need = f"saving needs {ROOM * size / 1e6:,.0f} MB: make room, or name another --run_dir"
    yield judged(free >= ROOM * size, "disk", text, need)


def guarded(name: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """What a check says; an error that it raises is a problem too, and the others go on."""
    try:
        yield from look()
    except Exception as error:  # a UserError's line, a missing package, a broken driver
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        yield Check("problem", name, kind + " ".join(str(error).split()))


def checks(
    run: Path | None,
    data: Path | None,
    config: list[Path] | None = None,
    allow: list[str] | None = None,
) -> Iterator[Check]:
    """The results of all checks, of those that need least first."""
    from lmtemplate.study.check.contract import check_net

    read = list[Config]()
    for look in environment.CHECKS:
        yield from guarded(look.__name__, look)
    if config:

        def parse() -> Iterator[Check]:
            yield from look_for_overlay(config)
            read.append(parse_config(config, allow or []))
            names = ", ".join(map(str, config))
            yield Check("ok", "config", f"{names}: a run of {read[0].steps:,} steps")

        yield from guarded("config", parse)
        if not read:
            yield Check("warning", "net", "net and data were not checked: the config was refused")
    if read:
        run, data = run or read[0].run, data or read[0].data
    if data or not config:
        yield from guarded("data", lambda: corpus(run, data))
    yield from guarded("run", lambda: run_directory(run))
    if read:
        yield from guarded("net", lambda: iter(check_net(read[0].build)))


def doctor(
    run: Path | None = None,
    data: Path | None = None,
    config: list[Path] | None = None,
    allow: list[str] | None = None,
) -> None:
    """Check what a run needs before it starts: one line per check.

    Exit code 0 says that nothing was found that would stop a run, else it is 1.

    Args:
        run: run directory to begin or continue.
        data: folder of a prepared corpus; without it, the one that the run was trained on.
        config: configs of a run: they are parsed as `fit` does, the net is built and trained for
            seconds, and corpus and run directory are checked.
        allow: packages outside lmtemplate whose classes the config names.
    """
    done = list[Check]()
    for check in checks(run, data, config, allow):
        print(check, flush=True)
        done.append(check)
    problems = sum(check.status == "problem" for check in done)
    if problems:
        raise UserError(f"{problems} of {len(done)} checks found a problem; see those marked ✗")
    print("nothing found that would stop a run")
