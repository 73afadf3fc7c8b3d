"""A copy of the project without rooms that a clone may not want -> it still trains."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.copies import ROOT, copy_of_the_project, python_in
from tests.source import modules, own_imports

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git to list the files"),
]

# Each of the others may go; docs/house.md says with which tests.
NEEDED = {
    *("models/__init__.py", "models/base.py", "models/layers.py", "models/gpt.py"),
    *("data/formats/__init__.py", "data/formats/text.py", "callbacks/__init__.py"),
    # Without these there is no record, no checkpoint, no exact resume, or no end of a run.
    *("callbacks/loggers.py", "callbacks/checkpointing.py", "callbacks/progress.py"),
    "callbacks/exact_resume.py",
    *("callbacks/run_end.py", "callbacks/run_summary.py"),
}
CANDIDATES = sorted(
    name
    for pattern in ("models/*.py", "callbacks/*.py", "data/formats/*.py")
    for path in (ROOT / "lmtemplate").glob(pattern)
    if (name := str(path.relative_to(ROOT / "lmtemplate"))) not in NEEDED
)
FLAGS = [flag for flag in TINY if not flag.startswith(("--samples", "--trainer.max_steps"))]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_of_the_project(tmp_path)


def trains_ten_steps(copy: Path) -> None:
    """Prepare a text and train on it, in processes that see the copy alone."""
    place = python_in(copy, "-c", "import lmtemplate; print(lmtemplate.__file__)")
    assert Path(place.strip()).is_relative_to(copy)
    (copy / "text.txt").write_text("".join(f"line {n}, and {n} again\n" for n in range(500)))
    words = ["prepare", "--input", "text.txt", "--output", "data/text", "--tokenizer", "byte"]
    python_in(copy, "-m", "lmtemplate", *words)
    words = ["fit", "--data.path", "data/text", "--run_dir", "runs/a", "--trainer.max_steps=10"]
    python_in(copy, "-m", "lmtemplate", *words, *FLAGS)
    assert (copy / "runs/a/checkpoints/step-000000010.ckpt").is_file()


@pytest.fixture
def without_study(copy: Path) -> Path:
    for folder in ("lmtemplate/study", "tests/study"):
        shutil.rmtree(copy / folder)
    return copy


def test_without_study_it_trains(without_study: Path) -> None:
    copy = without_study
    shown = python_in(copy, "-m", "lmtemplate", "--help")
    assert "fit" in shown
    assert "diagnose" not in shown
    trains_ten_steps(copy)


def test_without_study_all_other_tests_can_be_imported(without_study: Path) -> None:
    python_in(without_study, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider")


@pytest.mark.parametrize(
    "names", [CANDIDATES, CANDIDATES[::2], CANDIDATES[1::2]], ids=["all", "half", "other half"]
)
def test_without_these_files_it_trains(copy: Path, names: list[str]) -> None:
    """That each may go alone follows, for no file imports one of them."""
    known = modules()
    dotted = {name.removesuffix(".py").replace("/", ".") for name in CANDIDATES}
    assert not [path for path in known.values() if dotted & own_imports(path, known)]
    for name in names:
        (copy / "lmtemplate" / name).unlink()
    trains_ten_steps(copy)
