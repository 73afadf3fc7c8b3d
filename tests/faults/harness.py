"""A server that has imported everything -> runs of `lmtemplate`, each in a fork, with its faults.

A run starts some ten milliseconds after it was asked for. What is to happen to it is arranged in
the fork, before `main`: the product has no hooks for faults.
"""

import errno
import functools
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.utilities import rank_zero_only

from lmtemplate import __main__ as program
from lmtemplate.callbacks.checkpointing import Checkpoint
from lmtemplate.checkpoint import files
from lmtemplate.module import LitLanguageModel

ROOT = Path(__file__).parents[2]
PRELOADED = ["lmtemplate.fit", "torch.utils.tensorboard", "tests.faults.experiments"]
WRITTEN = re.compile(r"\.ckpt|SHA256SUMS|best\.json")  # by checkpoint.py

Prepare = Callable[[], None]


@functools.cache
def server() -> ForkServerContext:
    """Start the server, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=path):
        forkserver.ensure_running()
    return context


def _child(
    words: list[str] | None, log: Path, environment: dict[str, str], prepare: list[Prepare]
) -> None:
    """What the fork does: as if the words had been typed in a shell of that environment."""
    os.setpgid(0, 0)  # its data loaders die with it
    os.chdir(log.parent)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(handle, standard)
    multiprocessing.set_start_method("fork", force=True)  # of its data loaders
    torch.set_num_threads(1)
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", "0"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for act in prepare:
        act()
    if words is not None:
        sys.argv = ["lmtemplate", *words]
        program.main()


@dataclass
class Run:
    """One start of the program, and what it prints."""

    process: BaseProcess
    log: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def printed(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, seconds: float = 120) -> int:
        """Its exit code (negative: the signal that ended it), once all of it is gone."""
        self.process.join(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        assert self.process.exitcode is not None, f"still there: {self.printed()[-3000:]}"
        return self.process.exitcode

    def kill(self) -> int:
        """Pull the plug."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def wait_for(self, ready: Connection, seconds: float = 60) -> bool:
        """Until it sends a word; returns whether it did before its end."""
        end = time.monotonic() + seconds
        while self.process.is_alive() and not ready.poll(0.02):
            assert time.monotonic() < end, self.printed()[-3000:]
        return ready.poll()


def start(
    words: Sequence[object] | None,
    log: Path,
    *prepare: Prepare,
    environment: dict[str, str] | None = None,
    of_this_process: bool = False,
) -> Run:
    """`lmtemplate WORDS ...` in a fork of the server; without words, only what prepares it.

    A fork of this process saves the seconds in which a server imports everything.
    """
    texts = None if words is None else [str(word) for word in words]
    target = (texts, log, environment or {}, list(prepare))
    origin = multiprocessing.get_context("fork") if of_this_process else server()
    process = origin.Process(target=_child, args=target)
    process.start()
    return Run(process, log)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Cut:
    """A file that kills its writer after so many bytes."""

    def __init__(self, file: Any, size: int) -> None:
        self.file, self.left = file, size

    def write(self, data: Any) -> int:
        content = bytes(data)
        if len(content) >= self.left:
            inner = self.file.file
            inner.write(content[: self.left])
            inner.flush()
            _die()
        self.left -= len(content)
        written: int = self.file.write(content)
        return written

    def flush(self) -> None:
        self.file.flush()


def die_at(number: int, share: float = 0.5) -> None:
    """Die right before the N-th thing done to a file, most of them files of checkpoint.py.

    These things are: open, write (there death comes after a share of the bytes), synchronise,
    rename, delete. All moments of a save lie between two of them.
    """
    done = 0

    def is_now() -> bool:
        nonlocal done
        done += 1
        return done == number

    def heard(event: str, words: tuple[Any, ...]) -> None:
        known = event in ("open", "os.rename", "os.remove") and WRITTEN.search(str(words[:2]))
        if known and is_now():
            _die()

    synchronise, save = os.fsync, torch.save

    def fsync(handle: int) -> None:
        if is_now():
            _die()
        synchronise(handle)

    def save_a_part(content: Any, file: Any) -> None:
        save(content, _Cut(file, int(files.size(content) * share)) if is_now() else file)

    sys.addaudithook(heard)
    mock.patch.object(os, "fsync", fsync).start()
    mock.patch.object(torch, "save", save_a_part).start()


def die_at_rename_to(name: str, number: int) -> None:
    """Die right before a file gets this name for the N-th time."""
    left = number

    def heard(event: str, words: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "os.rename" and Path(words[1]).name == name:
            left -= 1
            if left == 0:
                _die()

    sys.addaudithook(heard)


def tell_when_it_trains(ready: Connection) -> None:
    """Send a word when the first step begins."""
    begin = Checkpoint.on_train_start

    def on_train_start(self: Checkpoint, *words: Any) -> None:
        begin(self, *words)
        with suppress(BrokenPipeError):  # of a second start, nobody waits for a word
            ready.send("training")

    mock.patch.object(Checkpoint, "on_train_start", on_train_start).start()


def before_each_batch(act: Callable[[LitLanguageModel, int], None]) -> None:
    """Call this with the module and the micro-batch, after all callbacks have seen its start."""

    def on_train_batch_start(module: LitLanguageModel, batch: Any, batch_idx: int) -> None:
        act(module, batch_idx)

    mock.patch.object(LitLanguageModel, "on_train_batch_start", on_train_batch_start).start()


def wait_for_word(go: Connection) -> None:
    """Begin when told to."""
    go.recv()


def raise_signal_at(number: int, batch_idx: int) -> None:
    """Get a signal at this micro-batch, counted over the whole run."""

    def act(module: LitLanguageModel, index: int) -> None:
        if index == batch_idx:
            signal.raise_signal(number)

    before_each_batch(act)


def close_terminal_at(batch_idx: int) -> None:
    """Run in a terminal, which is closed at this micro-batch."""
    master, slave = os.openpty()
    for standard in (1, 2):
        os.dup2(slave, standard)
    os.close(slave)
    # those of the fork server take it for a file, in which one may seek
    sys.stdout, sys.stderr = (os.fdopen(standard, "w", closefd=False) for standard in (1, 2))

    def act(module: LitLanguageModel, index: int) -> None:
        if index == batch_idx:
            os.close(master)
            signal.raise_signal(signal.SIGHUP)

    before_each_batch(act)


def full_disk_at(steps: Sequence[int]) -> None:
    """No checkpoint of these steps can be written."""
    save = torch.save

    def refuse(content: Any, file: Any, **more: Any) -> None:
        # processes send each other tensors by torch.save, too
        if isinstance(content, dict) and content["global_step"] in steps:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file, **more)

    mock.patch.object(torch, "save", refuse).start()


def keep_copies(steps: Sequence[int], run: Path, copies: Path) -> None:
    """Keep what a power cut would leave after each of these steps, as copies/STEP."""

    def copy(source: str, target: str) -> None:
        (os.link if source.endswith(".ckpt") else shutil.copy2)(source, target)

    def act(module: LitLanguageModel, _: int) -> None:
        step = module.global_step
        if step in steps and not (copies / str(step)).exists():
            shutil.copytree(run, copies / str(step), copy_function=copy)

    before_each_batch(act)
