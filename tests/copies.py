"""The project -> a copy in a folder, and programs that import the copy and nothing of the original."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# An editable install answers for a module that the copy lacks: its finder and its path are removed.
STRIP = f"""
import sys
sys.meta_path[:] = [one for one in sys.meta_path if "__editable__" not in getattr(one, "__module__", "")]
sys.path[:] = [place for place in sys.path if place != {str(ROOT)!r}]
"""


def copy_of_the_project(folder: Path) -> Path:
    """Copy what git has or would take, uncommitted changes included, to ``folder/copy``."""
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    around = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    listed = subprocess.run(words, cwd=ROOT, env=around, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "copy" / name)
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(STRIP)
    return folder / "copy"


def python_in(copy: Path, *words: object) -> str:
    """Run `python WORDS ...` in a copy; returns what it prints. It has to end with 0."""
    paths = os.pathsep.join(map(str, (copy.with_name("site"), copy)))
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
