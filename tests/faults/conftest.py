"""A run of four steps -> many tests look at it, or make a copy hostile and see what comes of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  # looks for fonts once, which no spy should see
import pytest

from lmtemplate.checkpoint import files
from tests.conftest import Command, Result
from tests.faults.spy import nothing_in, watching, within
from tests.runs import train

MODULE = "open({!r}, 'w')\n"  # what canary_module.py does when it is imported
LAST = "checkpoints/step-000000004.ckpt"

# Ways for a checkpoint to be read: the words that do it.
READERS: dict[str, Callable[[Path], list[object]]] = {
    "generate": lambda run: ["generate", run],
    "validate": lambda run: ["validate", run],
    "resume": lambda run: [
        *("fit", "--config", run / "config.yaml", "--resume=must", "--run_dir", run)
    ],
    "init_from": lambda run: [
        *("fit", "--config", run / "config.yaml", "--init_from", run / LAST),
        *("--run_dir", run.with_name("new")),
    ],
}


def vouch_for(path: Path) -> None:
    """Whoever can write a hostile file can write its checksum, too."""
    files.set_sum(path.parent, path.name, files.file_sha256(path))


@pytest.fixture(scope="session")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    return train(run, corpus, "--trainer.max_steps=4", "--samples=null")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run, to make hostile."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that no file may bring about. Modules that would lie in the working directory."""
    path = tmp_path / "canary"
    for name in ("canary_module", "lmtemplate_canary", "torch_canary", "lightning_canary"):
        (tmp_path / f"{name}.py").write_text(MODULE.format(str(path)))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return path


@pytest.fixture
def ask(command: Command, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call `lmtemplate WORDS ...` and see that nothing happens."""

    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as `main` does

    def call(*words: object) -> Result:
        with watching(tmp_path) as events, within(60):
            answer = command(*words)
        assert nothing_in(events), events
        assert not canary.exists()
        return answer

    return call
