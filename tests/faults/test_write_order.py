"""What the system is asked to do when a run saves, by strace -> in an order that survives all."""

import functools
import multiprocessing
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lmtemplate.checkpoint import files
from tests.faults import harness
from tests.faults.experiments import Configuration

CALLS = "openat,creat,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"


def follow(run: harness.Run, trace: Path) -> subprocess.Popen[str]:
    """Have strace write down what a process does, each thread in TRACE.ID; skips where it may not.

    In one file for all, a call that another thread interrupts comes in two pieces.
    """
    words = ["strace", "-ff", "-y", "-p", str(run.pid), "-o", str(trace), "-e", f"trace={CALLS}"]
    tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    if "attached" not in (said := tracer.stderr.readline()):
        run.kill()
        pytest.skip(f"strace may not look at other processes here: {said.strip()}")
    return tracer


@pytest.fixture(scope="module")
def traced(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a run with saves at 4, 8 and 12, and of its traces; and its process."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    folder = tmp_path_factory.mktemp("traced")
    (folder / "temporary").mkdir()
    wait, go = multiprocessing.Pipe()
    words = Configuration(steps=12).words(corpus, folder / "run")
    environment = {"TMPDIR": str(folder / "temporary")}
    prepare = functools.partial(harness.wait_for_word, wait)
    run = harness.start(words, folder / "log", prepare, environment=environment)
    tracer = follow(run, folder / "trace")
    go.send("go")
    assert run.wait() == 0, run.printed()
    tracer.communicate(timeout=30)
    return folder, run.pid


@pytest.fixture
def calls(traced: tuple[Path, int]) -> list[str]:
    """What the thread that saves asked for, as `fsync(5</run/a>) = 0`."""
    folder, pid = traced
    return (folder / f"trace.{pid}").read_text().splitlines()


def first(calls: list[str], pattern: str, after: int = -1) -> int:
    """Number of the first such call after another one."""
    found = (n for n, call in enumerate(calls) if n > after and re.match(pattern, call))
    number = next(found, None)
    assert number is not None, f"no {pattern} after {calls[after] if after >= 0 else 'the start'}"
    return number


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 8, 12])
def test_a_file_is_synced_then_renamed_and_its_folder_synced(calls: list[str], step: int) -> None:
    name = re.escape(files.file_name(step))
    folder = r"fsync\(\d+<[^>]*/checkpoints>\) += 0"
    opened = first(calls, rf'openat\(.*checkpoints/\.{name}\.tmp", O_WRONLY.*O_CREAT')
    synced = first(calls, rf"fsync\(\d+<[^>]*/checkpoints/\.{name}\.tmp>\) += 0", opened)
    read_back = first(calls, rf'openat\(.*checkpoints/\.{name}\.tmp", O_RDONLY', synced)
    sums = first(calls, r'rename\(".*/\.SHA256SUMS\.tmp", ".*/checkpoints/SHA256SUMS"\)', read_back)
    renamed = first(calls, rf'rename\(".*/checkpoints/\.{name}\.tmp", ".*/{name}"\) += 0', sums)
    first(calls, folder, renamed)


@pytest.mark.slow
def test_an_old_file_is_deleted_only_when_the_folder_with_the_new_one_is_synced(
    calls: list[str],
) -> None:
    newest, oldest = re.escape(files.file_name(12)), re.escape(files.file_name(4))
    renamed = first(calls, rf'rename\(.*/checkpoints/\.{newest}\.tmp"')
    synced = first(calls, r"fsync\(\d+<[^>]*/checkpoints>\) += 0", renamed)
    deleted = first(calls, rf'unlink\(".*/checkpoints/{oldest}"\) += 0')
    assert renamed < synced < deleted


@pytest.mark.slow
def test_best_json_is_written_like_a_checkpoint(calls: list[str]) -> None:
    synced = first(calls, r"fsync\(\d+<[^>]*/\.best\.json\.tmp>\) += 0")
    renamed = first(calls, r'rename\(".*/\.best\.json\.tmp", ".*/best\.json"\) += 0', synced)
    first(calls, r"fsync\(\d+<[^>]*/checkpoints>\) += 0", renamed)


@pytest.mark.slow
def test_no_file_is_opened_in_tmpdir(traced: tuple[Path, int]) -> None:
    folder, _ = traced
    lines = [line for trace in folder.glob("trace.*") for line in trace.read_text().splitlines()]
    opened = [line for line in lines if line.startswith(("open", "creat"))]
    assert opened
    assert not [line for line in opened if str(folder / "temporary") in line]
    assert list((folder / "temporary").iterdir()) == []
