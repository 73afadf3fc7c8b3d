"""Bad numbers, memory and time while saving -> the figures that are promised."""

import random
from pathlib import Path

import pytest

from tests.faults.figures import FORGET, inject_bad_numbers, memory_while_saving, terminate


@pytest.mark.slow
def test_none_of_24_bad_numbers_reaches_a_checkpoint(corpus: Path, tmp_path: Path) -> None:
    assert inject_bad_numbers(corpus, tmp_path, 24) == (24, [])


@pytest.mark.slow
def test_after_a_sigterm_no_step_is_lost(corpus: Path, tmp_path: Path) -> None:
    ending = terminate(corpus, tmp_path / "run", random.Random(1))
    assert ending.step > 0
    assert ending.lost <= 0


@pytest.mark.slow
@pytest.mark.skipif(not FORGET.exists(), reason="only Linux counts the memory that was held")
def test_a_save_takes_less_than_64_mb_besides_the_state(corpus: Path, tmp_path: Path) -> None:
    raised, size = memory_while_saving(corpus, tmp_path)
    assert size > 200e6
    assert raised < 64e6
