"""A tiny prepared corpus, runs that many tests look at, and the command line called in-process."""

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tensorboard.summary.writer import event_file_writer

from lmtemplate import plug
from lmtemplate.__main__ import run
from lmtemplate.errors import UserError

torch.set_num_threads(1)
gc.disable()  # until all is imported

# For tests of verbs of study/, outside its folder: a clone may have deleted it.
needs_study = pytest.mark.skipif(plug.load() is None, reason="study/ is deleted")

# Event files of one second are read in the order of their names, which end in this count: it needs
# as many digits for the first as for the last, or a run continued at once seems to come before.
event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)


@dataclass
class Result:
    """What a call of the command line came to."""

    code: int
    out: str
    error: str


Command = Callable[..., Result]


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the collector need not look at it."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No test cuts the power: wait for no disk, only see that the file is open.

    tests/faults/test_write_order.py looks at what another process really syncs.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)
        yield


TINY = [
    "--model.net.n_layer=2",
    "--model.net.n_head=2",
    "--model.net.n_embd=32",
    "--model.schedule.warmup_steps=2",
    "--data.block_size=16",
    "--data.batch_size=4",
    "--data.max_val_blocks=8",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=12",
    "--trainer.val_check_interval=4",
    "--trainer.log_every_n_steps=2",
    "--samples.max_new_tokens=5",
    "--report=false",
]

DIVERGING = [
    "--model.optimizer=lmtemplate.optimizers.Adam",
    "--model.optimizer.lr=60",
    "--model.schedule.warmup_steps=18",
    "--trainer.max_steps=18",
    "--trainer.val_check_interval=3",
    "--early_stopping=null",
]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `lmtemplate WORDS ...`; a user's mistake comes back as its exit code and its line."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        try:
            run([str(word) for word in words])
        except UserError as mistake:
            return Result(mistake.exit_code, capsys.readouterr().out, str(mistake))
        except SystemExit as end:
            captured = capsys.readouterr()
            return Result(int(end.code or 0), captured.out, captured.err)
        captured = capsys.readouterr()
        return Result(0, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus: 300 documents of the grammar, in bytes."""
    folder = tmp_path_factory.mktemp("data") / "grammar"
    run(["prepare", "--input", "grammar:300", "--output", str(folder), "--tokenizer", "byte"])
    return folder


def train(folder: Path, corpus: Path, *flags: object) -> Path:
    """`lmtemplate fit` of a tiny model, for fixtures that outlive one test. Returns the run."""
    words = ["fit", "--data.path", corpus, *TINY, "--run_dir", folder, *flags]
    run([str(word) for word in words])
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run of 12 steps; copy it before changing anything in it."""
    return train(tmp_path_factory.mktemp("runs") / "run", corpus)


@pytest.fixture(scope="session")
def diverged(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """18 steps with a learning rate that grows until it diverges: its best is not its last."""
    return train(tmp_path_factory.mktemp("runs") / "run", corpus, *DIVERGING)


@pytest.fixture
def fit(command: Command, corpus: Path) -> Command:
    """Train a tiny model: `fit(run_dir, *flags)`."""

    def call(run_dir: Path, *flags: object) -> Result:
        return command("fit", "--data.path", corpus, *TINY, "--run_dir", run_dir, *flags)

    return call
