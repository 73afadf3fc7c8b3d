"""Runs and files -> the same with faults, and what came of it; tests do few, the benchmark many."""

import functools
import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmtemplate.checkpoint import files, resume
from lmtemplate.run_dir import folder_of
from tests.conftest import TINY
from tests.faults import harness
from tests.runs import different

LATEST_OPERATION = 130  # of about 200 that a run of 18 steps does to files


@dataclass(frozen=True)
class Configuration:
    """A run with dropout and validations, and moments that would tell a lost step."""

    optimizer: str = "MuonAdamW"
    workers: int = 0
    accumulate: int = 1
    steps: int = 18
    flags: tuple[str, ...] = ()

    def words(self, corpus: Path, run: Path) -> list[str]:
        """`fit` it, going on where there is something to go on from."""
        return [
            *("fit", "--data.path", str(corpus), *TINY, "--run_dir", str(run), "--resume=auto"),
            *("--samples=null", "--model.net.dropout=0.1", "--trainer.log_every_n_steps=1"),
            f"--model.optimizer=lmtemplate.optimizers.{self.optimizer}",
            "--model.optimizer.lr=0.01",
            f"--data.num_workers={self.workers}",
            f"--trainer.accumulate_grad_batches={self.accumulate}",
            f"--trainer.max_steps={self.steps}",
            "--trainer.val_check_interval=4",
            "--checkpoint.milestones=4",
            *self.flags,
        ]


CONFIGURATIONS = {
    "muon": Configuration(),
    "adamw, 2 workers, accumulation 3": Configuration("AdamW", workers=2, accumulate=3),
    "muon, 2 workers, accumulation 3": Configuration(workers=2, accumulate=3),
    "adamw": Configuration("AdamW"),
}


def sound_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are whole; that one is not fails here."""
    for step in (steps := resume.steps_saved(run)):
        problem = files.damage(folder_of(run) / files.file_name(step))
        assert problem is None, f"step {step}: {problem}"
    return steps


def leftovers(folder: Path) -> list[str]:
    """Temporary files below a folder."""
    return [str(path) for path in folder.rglob("*.tmp")]


@dataclass
class Victim:
    """A run that is killed again and again, and started again each time.

    Args:
        configuration: of the run.
        corpus: it trains on.
        run: its directory.
        temporary: its TMPDIR.
        chance: decides about the moments.
    """

    configuration: Configuration
    corpus: Path
    run: Path
    temporary: Path
    chance: random.Random
    newest: int = 0  # step that was safe at the last look
    told: list[str] = field(default_factory=list)

    def _start(self, *prepare: harness.Prepare) -> harness.Run:
        words = self.configuration.words(self.corpus, self.run)
        environment = {"TMPDIR": str(self.temporary)}
        return harness.start(words, self.run.with_suffix(".log"), *prepare, environment=environment)

    def _look(self, what: str, code: int) -> bool:
        """No file under its final name is torn, and what was once safe stays so."""
        self.told.append(f"{what}: {code}")
        newest = max(sound_steps(self.run), default=0)
        assert newest >= self.newest, self.told
        self.newest = newest
        return code == -signal.SIGKILL

    def kill_in_a_write(self) -> bool:
        """Returns whether it came to that before the run was over."""
        number, share = self.chance.randint(1, LATEST_OPERATION), self.chance.random()
        code = self._start(functools.partial(harness.die_at, number, share)).wait()
        return self._look(f"operation {number}", code)

    def kill_at_any_time(self, seconds: float) -> bool:
        """Within this time after the first step has begun."""
        ready, child_end = multiprocessing.Pipe()
        run = self._start(functools.partial(harness.tell_when_it_trains, child_end))
        child_end.close()
        run.wait_for(ready)
        time.sleep(self.chance.random() * seconds)
        return self._look("at any time", run.kill())

    def finish(self) -> None:
        """Let it run to its end."""
        code = self._start().wait()
        assert code == 0, self.run.with_suffix(".log").read_text()[-3000:]
        self._look("finished", code)
        assert self.newest == self.configuration.steps
        assert (self.run / "summary.json").exists(), self.told
        assert not leftovers(self.run), self.told
        assert not [path for path in self.temporary.rglob("*") if path.is_file()]


def uninterrupted(configuration: Configuration, corpus: Path, run: Path) -> float:
    """Make the run that was never killed; returns the seconds that it trained."""
    ready, child_end = multiprocessing.Pipe()
    prepare = functools.partial(harness.tell_when_it_trains, child_end)
    started = harness.start(configuration.words(corpus, run), run.with_suffix(".log"), prepare)
    child_end.close()
    assert started.wait_for(ready), started.printed()
    begin = time.monotonic()
    assert started.wait() == 0, started.printed()
    return time.monotonic() - begin


def kill_and_compare(
    configuration: Configuration, corpus: Path, folder: Path, temporary: Path, kills: int, seed: int
) -> list[str]:
    """Kill so often, every other time inside a write, and finish; returns how it went.

    A run that ends before it could be killed is compared with the uninterrupted one as well, and
    another is begun.
    """
    reference = folder / "reference"
    seconds = uninterrupted(configuration, corpus, reference)
    told, killed = list[str](), 0
    for number in range(10 * kills):
        chance = random.Random(f"{seed} {number}")
        victim = Victim(configuration, corpus, folder / str(number), temporary, chance)
        hit = True
        while hit and killed < kills:
            inside = killed % 2 == 0
            hit = victim.kill_in_a_write() if inside else victim.kill_at_any_time(seconds)
            killed += hit
        victim.finish()
        assert not different(reference, victim.run, configuration.steps), victim.told
        told += victim.told
        if killed == kills:
            return told
    raise AssertionError(told)


def resume_at_each(
    configuration: Configuration, corpus: Path, folder: Path, cuts: Sequence[int]
) -> dict[int, list[str]]:
    """Resume what a power cut left after each of these steps: step -> what ended differently.

    Only the uninterrupted run saves at each step.
    """
    reference = folder / "reference"
    words = [*configuration.words(corpus, reference), "--checkpoint.every_minutes=1e-9"]
    copy = functools.partial(harness.keep_copies, cuts, reference, folder)
    run = harness.start(words, folder / "reference.log", copy)
    assert run.wait(600) == 0, run.printed()
    found = {}
    for cut in cuts:
        assert sound_steps(folder / str(cut))[-1] == cut
        words = configuration.words(corpus, folder / str(cut))
        run = harness.start(words, folder / f"{cut}.log")
        assert run.wait() == 0, run.printed()
        found[cut] = different(reference, folder / str(cut), configuration.steps)
    return found


def unnoticed_flips(
    path: Path, look: Callable[[Path], object], flips: int, chance: random.Random
) -> list[tuple[int, int]]:
    """Turn so many bits of a file, one at a time; byte and bit where looking found nothing."""
    content, unnoticed = path.read_bytes(), []
    for _ in range(flips):
        turned, place, bit = bytearray(content), chance.randrange(len(content)), chance.randrange(8)
        turned[place] ^= 1 << bit
        path.write_bytes(turned)
        if not look(path):
            unnoticed.append((place, bit))
    path.write_bytes(content)
    return unnoticed


def shortened(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


# What a disk, or a copy that was cut short, does to a file.
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing left": lambda content: b"",
    "1 byte left": lambda content: content[:1],
    **{f"{percent} % left": shortened(percent / 100) for percent in (10, 50, 90, 99.9)},
    "all zeros": lambda content: bytes(len(content)),
    "zeros at the end": lambda content: content[: len(content) // 2].ljust(len(content), b"\0"),
    "a byte more": lambda content: content + b"\0",
    "twice": lambda content: content * 2,
}
