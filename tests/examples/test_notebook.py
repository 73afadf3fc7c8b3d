"""The notebook, run from top to bottom by a Python of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmtemplate.record import read_record
from tests.runs import load

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_notebook_trains_resumes_and_writes(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "data/sotu-tiny")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "examples").mkdir()  # where a notebook starts
    cells = json.loads((ROOT / "examples/notebook.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join(code))
    done = subprocess.run(
        [sys.executable, tmp_path / "cells.py"],
        cwd=tmp_path / "examples",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = tmp_path / "runs/notebook"
    steps, losses = read_record(run).validations
    assert steps.tolist() == [25, 50, 75, 100]
    assert losses[-1] < losses[0]
    assert load(run, 100)["state_dict"]["net.embedding.weight"].shape == (257, 96)
    assert "The people" in done.stdout.rpartition("all else:")[2]
