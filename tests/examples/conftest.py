"""An overlay of examples/ -> a tiny run with it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import TINY, Command, Result

EXAMPLES = Path(__file__).parents[2] / "examples"

Train = Callable[..., Result]


@pytest.fixture
def train(command: Command, corpus: Path) -> Train:
    """`train(run_dir, example, *flags)`: 12 steps with examples/<example>.yaml; it has to work.

    Without an example, the same run as it would be.
    """

    def call(run_dir: Path, example: str | None = None, *flags: object) -> Result:
        path = EXAMPLES / f"{example}.yaml"
        overlay = ["--config", path] if example else []
        is_torchs = "torch.optim.lr_scheduler" in path.read_text() if example else False
        tiny = [flag for flag in TINY if not (is_torchs and "warmup_steps" in flag)]
        names = ["examples", "schedulefree", "prodigyopt"]
        names += ["lightning"] if example and "lightning.pytorch" in path.read_text() else []
        allow = [f"--allow={name}" for name in names]
        words = [*overlay, "--data.path", corpus, *tiny, "--run_dir", run_dir, *flags, *allow]
        result = command("fit", *words)
        assert result.code == 0, result
        return result

    return call


def copy_killed_after_8(run: Path, copy: Path) -> Path:
    """A run of 12 steps as if it had been killed before its last checkpoint."""
    shutil.copytree(run, copy)
    last, sums = copy / "checkpoints/step-000000012.ckpt", copy / "checkpoints/SHA256SUMS"
    last.unlink()
    kept = [line for line in sums.read_text().splitlines() if last.name not in line]
    sums.write_text("".join(f"{line}\n" for line in kept))
    return copy
