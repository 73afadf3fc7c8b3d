"""One of two processes (gloo) dies or stands still -> the other ends and says so; both go on."""

import functools
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from lmtemplate.module import LitLanguageModel
from tests.faults import harness
from tests.faults.experiments import Configuration, sound_steps
from tests.runs import different, load

SEQUENCES = 8  # that both read in a step
PATIENCE = 20  # seconds that an end may take besides the time limit of a collective


def two(timeout: int = 30) -> tuple[str, ...]:
    """Flags for two processes whose collectives may take so many seconds, start-up included."""
    return (
        "--trainer.devices=2",
        "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
        "--allow=lightning",
        f"--trainer.strategy.timeout=0:00:{timeout:02d}",
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def start_two(
    words: list[str], folder: Path, *prepare: harness.Prepare
) -> Iterator[tuple[harness.Run, bool]]:
    """Both processes of a run, as a cluster would start them; each once it trains."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    started = []
    for rank in (0, 1):
        ready, child_end = multiprocessing.Pipe()
        tell = functools.partial(harness.tell_when_it_trains, child_end)
        environment = {**shared, "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        log = folder / f"log{rank}"
        run = harness.start(words, log, tell, *prepare, environment=environment)
        started.append((run, ready))
        child_end.close()
    for run, ready in started:
        yield run, run.wait_for(ready)


pytestmark = pytest.mark.slow
FAULTS = [  # with the time limit: only what stands still takes so long to be noticed
    ("SIGKILL", 0, 30),
    ("SIGKILL", 1, 30),
    ("SIGSTOP", 0, 8),
    ("SIGSTOP", 1, 8),
]


@pytest.mark.parametrize(("name", "victim", "timeout"), FAULTS)
def test_when_one_process_dies_or_stands_still_the_other_ends_with_a_line(
    corpus: Path, tmp_path: Path, name: str, victim: int, timeout: int
) -> None:
    words = Configuration(steps=100_000, flags=two(timeout)).words(corpus, tmp_path / "run")
    runs = [run for run, trains in start_two(words, tmp_path) if trains]
    try:
        time.sleep(0.5)
        os.kill(runs[victim].pid, signal.Signals[name])
        assert runs[1 - victim].wait(timeout + PATIENCE) == 9
        lines = runs[1 - victim].printed().splitlines()
        told = f"error: process {1 - victim} of 2 has lost another one at step "
        assert [line for line in lines if line.startswith(told)]
        assert not [line for line in lines if line.startswith("Traceback")]
    finally:
        for run in runs:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    sound_steps(tmp_path / "run")


@pytest.mark.parametrize(("full_at", "code"), [([4, 8], 0), ([4, 8, 12], 5)])
def test_when_the_first_process_cannot_save_both_go_on_or_both_end(
    corpus: Path, tmp_path: Path, full_at: list[int], code: int
) -> None:
    """Only the first one writes: the other must not wait for it elsewhere than it waits."""
    flags = (*two(), "--checkpoint.milestones=null", "--early_stopping=null")
    words = Configuration(steps=20, flags=flags).words(corpus, tmp_path / "run")
    full = functools.partial(harness.full_disk_at, full_at)
    runs = [run for run, trains in start_two(words, tmp_path, full) if trains]
    assert [run.wait() for run in runs] == [code, code], runs[1].printed()
    assert "save failed (2/3): " in runs[0].printed()
    assert sound_steps(tmp_path / "run") == ([16, 20] if code == 0 else [])


def bad_between(first: int, last: int) -> None:
    """What is read in these steps makes bad numbers, at the first attempt."""
    step_of = LitLanguageModel.training_step

    def training_step(module: LitLanguageModel, batch: Any, batch_idx: int) -> Any:
        read = module.trainer.datamodule.sequences  # type: ignore[attr-defined]
        bad = first * SEQUENCES <= read < last * SEQUENCES
        return step_of(module, batch, batch_idx) * (math.nan if bad else 1.0)

    mock.patch.object(LitLanguageModel, "training_step", training_step).start()


def test_two_processes_go_back_together_and_leave_out_what_was_bad(
    corpus: Path, tmp_path: Path
) -> None:
    words = Configuration(steps=12, flags=two()).words(corpus, tmp_path / "run")
    bad = functools.partial(bad_between, 4, 8)
    runs = [run for run, _ in start_two(words, tmp_path, bad)]
    assert [run.wait() for run in runs] == [0, 0], runs[0].printed()
    assert "up to step 8: going back (1/2) and leaving out what was read" in runs[0].printed()
    assert "going back" not in runs[1].printed()
    data = load(tmp_path / "run", 12)["TokenData"]
    assert data["sequences"] == (12 + 4) * SEQUENCES


# else those started again may read the addresses of those that died (pytorch issue 135712)
NEW_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
DIES_ONCE = """
import os, signal, sys
from lmtemplate.__main__ import main
from lmtemplate.module import LitLanguageModel

def die(module, batch, batch_idx):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == VICTIM and module.global_step == 6:
        os.kill(os.getpid(), signal.SIGKILL)

LitLanguageModel.on_train_batch_start = die
sys.argv = sys.argv[1:]
main()
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_starts_both_again_and_they_end_bitwise_like_two_that_never_died(
    corpus: Path, tmp_path: Path, victim: int
) -> None:
    configuration = Configuration(steps=12, flags=two()[:1])
    (tmp_path / "whole").mkdir()
    for run, _ in start_two(
        configuration.words(corpus, tmp_path / "reference"), tmp_path / "whole"
    ):
        assert run.wait() == 0, run.printed()
    script = tmp_path / "fit.py"
    script.write_text(DIES_ONCE.replace("VICTIM", repr(str(victim))))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc_per_node=2", "--max_restarts=1", "--monitor_interval=0.1"]
    done = subprocess.run(
        [*torchrun, str(script), "lmtemplate", *configuration.words(corpus, tmp_path / "run")],
        env={**os.environ, **NEW_STORE, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(harness.ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "at step 4" in done.stdout
    assert different(tmp_path / "reference", tmp_path / "run", 12) == []
