"""A run -> what a promise costs or keeps there: bad numbers, memory while saving, a SIGTERM."""

import functools
import itertools
import math
import multiprocessing
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from lmtemplate.callbacks.checkpointing import Checkpoint
from lmtemplate.checkpoint import files, resume
from lmtemplate.module import LitLanguageModel
from lmtemplate.record import read_record
from lmtemplate.run_dir import folder_of
from tests.faults import harness
from tests.faults.experiments import Configuration, sound_steps
from tests.runs import different, is_finite

FORGET = Path("/proc/self/clear_refs")  # 5 written there: begin anew to count the highest memory


def poison(bad_steps: int) -> None:
    """Make 3 of every 4 steps bad: its objective, or one number of its gradient, nan or infinite.

    And prune no checkpoint, so that all can be looked at later.
    """
    kinds = itertools.cycle(itertools.product((math.nan, math.inf, -math.inf), (True, False)))
    step_of, measure = LitLanguageModel.training_step, LitLanguageModel.measure_gradient
    number, in_objective, done = 1.0, True, 0

    def training_step(module: LitLanguageModel, batch: Any, batch_idx: int) -> Any:
        nonlocal number, in_objective, done
        number, in_objective = 1.0, True
        if batch_idx % 4 and done < bad_steps:
            (number, in_objective), done = next(kinds), done + 1
        return step_of(module, batch, batch_idx) * (number if in_objective else 1.0)

    def measure_gradient(module: LitLanguageModel, optimizer: Any) -> Any:
        if not in_objective:
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            gradient = gradients[done % len(gradients)].view(-1)
            gradient[done % len(gradient)] = number
        return measure(module, optimizer)

    mock.patch.object(LitLanguageModel, "training_step", training_step).start()
    mock.patch.object(LitLanguageModel, "measure_gradient", measure_gradient).start()
    mock.patch.object(resume, "prune").start()


def inject_bad_numbers(corpus: Path, folder: Path, bad_steps: int) -> tuple[int, list[str]]:
    """Returns how many updates were skipped, and the checkpoints that are not finite."""
    steps = bad_steps * 4 // 3 + 8
    flags = ("--trainer.val_check_interval=10", "--checkpoint.milestones=20")
    configuration = Configuration(steps=steps, flags=flags)
    words = configuration.words(corpus, folder / "run")
    run = harness.start(words, folder / "log", functools.partial(poison, bad_steps))
    assert run.wait(600) == 0, run.printed()[-3000:]
    paths = sorted(folder_of(folder / "run").rglob("*.ckpt"))
    assert len(paths) > steps // 10
    keys = ("state_dict", "optimizer_states")
    bad = [str(path) for path in paths if not is_finite([files.read(path).get(k) for k in keys])]
    return run.printed().count("update skipped"), bad


def _highest(of: str) -> int:
    """Bytes of memory that this process holds (VmRSS), or has held at most (VmHWM)."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(of))
    return int(line.split()[1]) * 1024


def measure_memory(result: Connection) -> None:
    """Send by how much a run's checkpoint writes ever raised the memory in use, and their size."""
    write = Checkpoint._write
    sizes, raised = list[int](), list[int]()

    def measured(self: Checkpoint, trainer: Any, path: Path, **words: bool) -> None:
        before = _highest("VmRSS")
        FORGET.write_text("5")
        write(self, trainer, path, **words)
        raised.append(_highest("VmHWM") - before)
        sizes.append(path.stat().st_size)
        result.send((max(raised), max(sizes)))

    mock.patch.object(Checkpoint, "_write", measured).start()


def memory_while_saving(corpus: Path, folder: Path) -> tuple[int, int]:
    """Bytes beyond those in use before, and bytes of the checkpoint: about 200 MB."""
    ready, child_end = multiprocessing.Pipe()
    flags = ("--model.net.n_layer=1", "--model.net.n_embd=1184", "--trainer.max_steps=2")
    flags += ("--trainer.val_check_interval=2", "--model.schedule.warmup_steps=0")
    words = Configuration("AdamW", flags=flags).words(corpus, folder / "run")
    run = harness.start(words, folder / "log", functools.partial(measure_memory, child_end))
    child_end.close()
    assert run.wait(300) == 0, run.printed()[-3000:]
    raised, size = 0, 0
    with suppress(EOFError):  # all that was sent is read
        while True:
            raised, size = ready.recv()
    return raised, size


@dataclass
class Ending:
    """What came of a SIGTERM."""

    seconds: float  # until the process was gone
    step: int  # of the checkpoint
    lost: int  # steps that were logged, and are not in it


def terminate(corpus: Path, folder: Path, chance: random.Random) -> Ending:
    """Send a SIGTERM some time after a run has begun."""
    ready, child_end = multiprocessing.Pipe()
    words = Configuration(steps=100_000).words(corpus, folder)
    prepare = functools.partial(harness.tell_when_it_trains, child_end)
    run = harness.start(words, folder.with_suffix(".log"), prepare)
    child_end.close()
    assert run.wait_for(ready), run.printed()
    time.sleep(0.05 + chance.random())
    begin = time.monotonic()
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.printed()[-3000:]
    seconds = time.monotonic() - begin
    step = sound_steps(folder)[-1]
    return Ending(seconds, step, int(read_record(folder).steps[-1]) - step)


def type_make(run: Path, seconds: float | None) -> bool:
    """`make resume`, or `make train` where there is nothing to go on from yet.

    Returns whether it ended by itself; after so many seconds, if any, the plug is pulled: SIGKILL
    for `make` and all that it has started.
    """
    word = "resume" if resume.steps_saved(run) else "train"
    # a `make` around this one hands down its own words, and ARGS among them
    around = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS")
    with run.with_suffix(".log").open("a") as log:
        process = subprocess.Popen(
            ["make", word, f"RUN={run}", "CONFIG=configs/quickstart.yaml", "ARGS="],
            cwd=harness.ROOT,
            env={name: value for name, value in os.environ.items() if name not in around},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    assert code == 0, run.with_suffix(".log").read_text()[-3000:]
    return True


def pull_plugs(
    folder: Path, count: int, chance: random.Random
) -> list[tuple[list[int], list[str]]]:
    """Pull the plug so often, go on each time until the run ends; then begin another one.

    A start is left alone for a tenth to nine tenths of the time that the whole run takes here.

    Returns:
        for each run: the step of its newest checkpoint at each pull, 0 if there was none, and what
        ended differently than in one whose plug was never pulled.
    """
    reference, begin = folder / "reference", time.monotonic()
    assert type_make(reference, None)
    whole = time.monotonic() - begin
    last = resume.steps_saved(reference)[-1]
    runs, left = list[tuple[list[int], list[str]]](), count
    while left:
        run, pulled = folder / f"run{len(runs)}", list[int]()
        while not type_make(run, chance.uniform(0.1, 0.9) * whole if left else None):
            pulled.append(max(sound_steps(run), default=0))
            left -= 1
        runs.append((pulled, different(reference, run, last)))
    return runs
