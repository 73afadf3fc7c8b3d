"""SIGKILL at any moment, inside a write or not -> the run that was never killed, bit for bit."""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import harness
from tests.faults.experiments import (
    CONFIGURATIONS,
    Configuration,
    kill_and_compare,
    leftovers,
)
from tests.runs import different


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another device."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second device")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_run_killed_twice_ends_bitwise_like_one_that_was_not(
    corpus: Path, tmp_path: Path, elsewhere: Path
) -> None:
    configuration = CONFIGURATIONS["adamw, 2 workers, accumulation 3"]
    kill_and_compare(configuration, corpus, tmp_path, elsewhere, kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_killed_5_times_ends_bitwise_like_one_that_was_not(
    corpus: Path, tmp_path: Path, elsewhere: Path, name: str
) -> None:
    kill_and_compare(CONFIGURATIONS[name], corpus, tmp_path, elsewhere, kills=5, seed=2)


def test_a_run_killed_after_its_last_checkpoint_is_brought_to_its_end(
    corpus: Path, tmp_path: Path
) -> None:
    """Death comes before best.json is renamed at the second, last and best, validation."""
    configuration = Configuration(steps=4, flags=("--trainer.val_check_interval=2",))
    start = functools.partial(harness.start, of_this_process=True)
    whole = configuration.words(corpus, tmp_path / "reference")
    assert start(whole, tmp_path / "log").wait() == 0
    run, words = tmp_path / "run", configuration.words(corpus, tmp_path / "run")
    die = functools.partial(harness.die_at_rename_to, "best.json", 2)
    assert start(words, tmp_path / "log", die).wait() == -9
    assert leftovers(run)
    assert start(words, tmp_path / "log").wait() == 0
    assert not different(tmp_path / "reference", run, 4)
    assert not leftovers(run)
    assert (run / "summary.json").exists()
