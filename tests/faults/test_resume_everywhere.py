"""A power cut, or a signal, after any step -> the run that never stopped, bit for bit.

With the signal in the middle of step 7 and the kill after the last checkpoint (test_kill.py), these
are six places.
"""

import functools
import signal
from pathlib import Path

import pytest

from tests.faults import harness
from tests.faults.experiments import Configuration, resume_at_each, sound_steps
from tests.runs import different

STEPS, ACCUMULATE = 12, 3  # validated at 4, 8 and 12
CUTS = [1, 4, 5, STEPS - 1]
EVERYWHERE = Configuration(accumulate=ACCUMULATE, steps=STEPS)


@pytest.fixture(scope="module")
def resumed(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, list[str]]]:
    """The folder with the uninterrupted run, and what ended differently after each cut."""
    folder = tmp_path_factory.mktemp("everywhere")
    return folder, resume_at_each(EVERYWHERE, corpus, folder, CUTS)


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_a_run_resumed_after_this_step_ends_bitwise_like_the_uninterrupted_one(
    resumed: tuple[Path, dict[int, list[str]]], cut: int
) -> None:
    assert resumed[1][cut] == []


@pytest.mark.slow
def test_a_run_stopped_inside_a_step_ends_bitwise_like_the_uninterrupted_one(
    resumed: tuple[Path, dict[int, list[str]]], corpus: Path, tmp_path: Path
) -> None:
    words = EVERYWHERE.words(corpus, tmp_path / "run")
    stop = functools.partial(harness.raise_signal_at, signal.SIGTERM, 6 * ACCUMULATE + 1)
    run = harness.start(words, tmp_path / "log", stop)
    assert run.wait() == 143, run.printed()
    assert sound_steps(tmp_path / "run")[-1] == 7
    assert harness.start(words, tmp_path / "log").wait() == 0
    assert different(resumed[0] / "reference", tmp_path / "run", STEPS) == []


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_loses_no_step(corpus: Path, tmp_path: Path) -> None:
    words = EVERYWHERE.words(corpus, tmp_path / "run")
    close = functools.partial(harness.close_terminal_at, 6 * ACCUMULATE)
    assert harness.start(words, tmp_path / "log", close).wait() == 129
    assert sound_steps(tmp_path / "run")[-1] == 7
