"""Faults, by the hundred -> the figures of what lmtemplate promises to survive.

    make bench BENCH=reliability                        all of it, about twenty minutes
    make bench BENCH=reliability ARGS="--only kills flips --kills 20 --cuts 10"

Each row says how many faults there were, and how many went as promised.
"""

import argparse
import io
import os
import random
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from lmtemplate.callbacks.exact_resume import random_states
from lmtemplate.checkpoint import files, resume
from lmtemplate.data.shards import Shards
from lmtemplate.errors import DataError
from tests.faults import experiments, figures, harness
from tests.faults.experiments import CONFIGURATIONS, DAMAGES, Configuration

SELDOM = ("--trainer.val_check_interval=20",)


def prepare(folder: Path) -> Path:
    """A small corpus, prepared in another process like everything here."""
    words = ["prepare", "--input=grammar:300", f"--output={folder}/data", "--tokenizer=byte"]
    assert harness.start(words, folder / "log").wait() == 0
    return folder / "data"


def kills(corpus: Path, folder: Path, count: int) -> str:
    """SIGKILL, every other time inside a write; TMPDIR is on another device where there is one."""
    told, (share, rest) = list[str](), divmod(count, len(CONFIGURATIONS))
    device = Path("/dev/shm") if Path("/dev/shm").is_dir() else folder
    for number, (name, configuration) in enumerate(CONFIGURATIONS.items()):
        if not (times := share + (number < rest)):
            continue
        (folder / str(number)).mkdir()
        with tempfile.TemporaryDirectory(dir=device) as temporary:
            told += experiments.kill_and_compare(
                configuration, corpus, folder / str(number), Path(temporary), times, seed=number
            )
        print(f"    {times} kills: {name}", flush=True)
    killed = [line for line in told if line.endswith(": -9")]
    inside = [line for line in killed if line.startswith("operation")]
    return f"{len(killed)}/{count} bitwise equal in the end, {len(inside)} inside a write"


def cuts(corpus: Path, folder: Path, count: int) -> str:
    """Resume what a power cut leaves after each step of a run of so many steps."""
    configuration = Configuration(accumulate=3, steps=count + 1, flags=SELDOM)
    found = experiments.resume_at_each(configuration, corpus, folder, range(1, count + 1))
    wrong = {cut: what for cut, what in found.items() if what}
    return f"{len(found) - len(wrong)}/{len(found)} bitwise equal in the end {wrong or ''}"


def flips(corpus: Path, folder: Path, count: int) -> str:
    """Single bits of a checkpoint, and of a shard."""
    path = folder / "run" / "checkpoints" / files.file_name(4)
    words = Configuration(steps=4).words(corpus, folder / "run")
    assert harness.start(words, folder / "log").wait() == 0
    missed = experiments.unnoticed_flips(path, files.damage, count, random.Random(0))

    def look_at_shard(_: Path) -> bool:
        try:
            for shard in Shards(corpus, "train").shards:
                shard.verify_all()
        except DataError:
            return True
        return False

    shard = corpus / "train_000000.bin"
    missed_too = experiments.unnoticed_flips(shard, look_at_shard, count, random.Random(1))
    found = (count - len(missed), count - len(missed_too))
    return f"{found[0]}/{count} found in a checkpoint, {found[1]}/{count} in a shard"


def damages(corpus: Path, folder: Path, count: int) -> str:
    """Truncations and zeroing of the newest checkpoint: found, and the one before it taken."""
    configuration, taken = Configuration(steps=8), 0
    assert harness.start(configuration.words(corpus, folder / "run"), folder / "log").wait() == 0
    before, newest = (folder / "run/checkpoints" / files.file_name(step) for step in (4, 8))
    content = newest.read_bytes()
    with redirect_stdout(io.StringIO()):
        for damage in DAMAGES.values():
            newest.write_bytes(damage(content))
            resumed = resume.resume_from(folder / "run", "auto")
            taken += resumed is not None and resumed.path == before
    return f"{taken}/{len(DAMAGES)} found and fallen back from"


def signals(corpus: Path, folder: Path, count: int) -> str:
    """SIGTERM at random times of a tiny run."""
    ends = [figures.terminate(corpus, folder / str(n), random.Random(n)) for n in range(count)]
    seconds = sorted(end.seconds for end in ends)
    lost = sum(max(0, end.lost) for end in ends)
    return (
        f"{count} runs ended with a verified checkpoint in {seconds[0]:.2f} to {seconds[-1]:.2f} s "
        f"(median {seconds[count // 2]:.2f}), {lost} steps lost"
    )


def numbers(corpus: Path, folder: Path, count: int) -> str:
    """Objectives and gradients that are not finite."""
    skipped, bad = figures.inject_bad_numbers(corpus, folder, count)
    return f"{skipped}/{count} updates skipped, {len(bad)} checkpoints with such a number"


def memory(corpus: Path, folder: Path, count: int) -> str:
    """What a save holds besides the state itself."""
    if not figures.FORGET.exists():
        return "not measured: only Linux counts the memory that was held"
    raised, size = figures.memory_while_saving(corpus, folder)
    return f"{raised / 1e6:.1f} MB more while saving {size / 1e6:.0f} MB"


def saves(corpus: Path, folder: Path, count: int) -> str:
    """What checksum, reading back and random states add to torch.save and fsync; in turns."""
    told = []
    for numbers in (50_000, 50_000_000):
        state = {"state_dict": {"net.a": torch.randn(numbers)}, "global_step": 1}

        def plainly(state: dict[str, Any] = state) -> None:
            with (folder / "plain.ckpt").open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

        def ours(state: dict[str, Any] = state) -> None:
            files.write({**state, "random_states": [random_states()]}, folder / "a.ckpt")

        acts = (plainly, ours, lambda: files.read(folder / "a.ckpt"))
        rounds = [[1000 * timeit.timeit(act, number=1) for act in acts] for _ in range(count)]
        plain, own, read = (statistics.median(times) for times in zip(*rounds, strict=True))
        told.append(
            f"{numbers * 4 / 1e6:g} MB saved in {own:.1f} ms ({plain:.1f} plainly), verified and "
            f"loaded in {read:.1f} ms"
        )
    return "; ".join(told)


def plugs(corpus: Path, folder: Path, count: int) -> str:
    """`make train`, whose plug is pulled at random moments, and `make resume` each time."""
    runs = [run for run in figures.pull_plugs(folder, count, random.Random(0)) if run[0]]
    steps = [step for pulled, _ in runs for step in pulled]
    wrong = [what for _, what in runs if what]
    return (
        f"{len(steps)} plugs pulled ({sum(map(bool, steps))} after a checkpoint); best.json, "
        f"weights and record equal at {len(runs) - len(wrong)}/{len(runs)} ends {wrong or ''}"
    )


ROWS: dict[str, tuple[Callable[[Path, Path, int], str], int]] = {
    "kills": (kills, 200),
    "cuts": (cuts, 200),
    "flips": (flips, 1000),
    "damages": (damages, 0),
    "signals": (signals, 20),
    "numbers": (numbers, 500),
    "memory": (memory, 0),
    "saves": (saves, 9),
    "plugs": (plugs, 10),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="rows to make")
    for name, (_, count) in ROWS.items():
        if count:
            parser.add_argument(f"--{name}", type=int, default=count, help=f"default: {count}")
    asked = vars(parser.parse_args())
    with tempfile.TemporaryDirectory() as temporary:
        corpus = prepare(Path(temporary))
        for name in asked["only"]:
            folder = Path(temporary) / name
            folder.mkdir()
            begin = time.monotonic()
            figure = ROWS[name][0](corpus, folder, asked.get(name, 0))
            print(f"{name:<8} {figure} ({time.monotonic() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
