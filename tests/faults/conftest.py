"""A run of four steps, which many tests look at, or copy to spoil the copy."""

from pathlib import Path

import pytest

from tests.runs import train


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    return train(run, corpus, "--trainer.max_steps=4", "--samples=null")
