"""One finished tiny run for all who only look at it."""

from pathlib import Path

import pytest

from tests.runs import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run directory; copy it before changing anything in it."""
    return train(tmp_path_factory.mktemp("runs") / "run", corpus)
