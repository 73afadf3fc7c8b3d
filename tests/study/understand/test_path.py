"""A run's landscape, against its checkpoints as torch reads them, and linear algebra."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmtemplate.checkpoint.compatibility import build_net
from lmtemplate.checkpoint.files import read, write
from lmtemplate.errors import CheckpointError, DataError
from lmtemplate.study.understand import path as study
from lmtemplate.study.understand.snapshots import snapshot_files
from lmtemplate.study.understand.surface import NetOnText
from tests.conftest import Command

GRID, WINDOWS = 5, 3


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("landscape") / "run"))


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    return study.explore(run, GRID, WINDOWS, "ab")


def vector(path: Path) -> Tensor:
    """(P,) weights of a checkpoint, in float64."""
    state = torch.load(path, weights_only=True)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values()])


def loss_of(path: Path, corpus: Path) -> float:
    """Of a checkpoint, on WINDOWS evenly spaced of the 8 blocks that the run validates on."""
    tokens = np.fromfile(corpus / "val_000000.bin", "<u2", offset=1024).astype(np.int64)
    sums = 0.0
    for block in np.linspace(0, 7, WINDOWS).astype(int):
        here = torch.from_numpy(tokens[block * 16 : block * 16 + 17])
        with torch.no_grad():
            logits = build_net(read(path))(here[None, :-1])[0]
        sums += F.cross_entropy(logits, here[1:], reduction="sum").item()
    return sums / 16 / WINDOWS


@pytest.mark.slow
def test_at_the_corners_of_the_plane_the_loss_is_the_checkpoints_own(
    run: Path, corpus: Path, found: dict[str, Any]
) -> None:
    files, at = snapshot_files(run), {s["step"]: s for s in found["snapshots"]}
    for step in found["through"]:
        assert step is not None
        own = loss_of(files[step], corpus)
        assert at[step]["off_plane"] < 1e-3
        assert at[step]["loss"] == pytest.approx(own, abs=1e-5)
        assert at[step]["loss_on_plane"] == pytest.approx(own, abs=1e-5)
    assert found["tokens"] == 16 * WINDOWS


@pytest.mark.slow
def test_the_plane_goes_through_start_best_and_end_of_the_path(
    run: Path, found: dict[str, Any]
) -> None:
    best = study.open_model(run).step
    assert (found["through"][0], found["best"]) == (0, best)
    assert found["through"][1] == best
    assert found["through"][2] == 12 or best == 12
    at = {s["step"]: s for s in found["snapshots"]}
    assert (at[0]["x"], at[0]["y"]) == pytest.approx((0, 0), abs=1e-5)
    assert (at[best]["x"], at[best]["y"]) == pytest.approx((1, 0), abs=1e-5)


@pytest.mark.slow
def test_snapshots_lie_where_linear_algebra_puts_them(run: Path, found: dict[str, Any]) -> None:
    files = snapshot_files(run)
    assert [s["step"] for s in found["snapshots"]] == [*files]
    first, second, third = (vector(files[step or 0]) for step in found["through"])
    axes = torch.linalg.qr(torch.stack([second - first, third - first], 1)).Q
    unit = (second - first).norm()
    assert found["surfaces"][0]["unit"] == pytest.approx(unit.item(), rel=1e-5)
    inside = whole = 0.0
    before = first
    for snapshot in found["snapshots"]:
        weights = vector(files[snapshot["step"]])
        way = weights - first
        off = (way - axes @ (axes.T @ way)).norm() / unit
        assert snapshot["off_plane"] == pytest.approx(off.item(), abs=1e-3)
        inside += (axes.T @ (weights - before)).norm().item()
        whole += (weights - before).norm().item()
        before = weights
    assert found["share_in_plane"] == pytest.approx(inside / whole, abs=1e-4)
    assert 0 < found["share_in_plane"] < 1


@pytest.mark.slow
def test_both_maps_hold_what_is_drawn_on_them(found: dict[str, Any]) -> None:
    path, around = found["surfaces"]
    assert min(path["x"]) < min(s["x"] for s in found["snapshots"])
    assert max(path["y"]) > max(s["y"] for s in found["snapshots"])
    assert path["x"][1] - path["x"][0] == pytest.approx(path["y"][1] - path["y"][0], abs=1e-4)
    assert (len(path["x"]), len(path["loss"]), len(path["loss"][0])) == (GRID, GRID, GRID)
    best = next(s for s in found["snapshots"] if s["step"] == found["best"])
    middle = len(around["x"]) // 2
    assert around["loss"][middle][middle] == pytest.approx(best["loss"], abs=1e-5)


@pytest.mark.slow
def test_decay_pulls_towards_the_weights_that_are_all_0(run: Path, found: dict[str, Any]) -> None:
    files = snapshot_files(run)
    first, second = (vector(files[step or 0]) for step in found["through"][:2])
    line = (second - first) / (second - first).norm() ** 2
    assert found["surfaces"][0]["zero"][0] == pytest.approx(-(first @ line).item(), abs=1e-4)


@pytest.mark.slow
def test_each_snapshot_writes_what_generate_writes_with_it(
    run: Path, found: dict[str, Any], command: Command
) -> None:
    path = snapshot_files(run)[4]
    words = ("--prompt", "ab", "--max_new_tokens", study.TEXT_TOKENS, "--checkpoint", path)
    assert command("generate", run, *words).out == f"{found['texts'][4]}\n"


@pytest.mark.slow
def test_a_second_look_computes_no_loss_again(
    run: Path, found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("loss", "sharpness"):
        monkeypatch.setattr(NetOnText, name, None)
    assert study.explore(run, GRID, WINDOWS, "ab") == found


def only(finished: Path, folder: Path, *steps: int) -> Path:
    """A copy of the run that keeps the weights of these steps alone."""
    run = Path(shutil.copytree(finished, folder / "run"))
    names = {f"step-{step:09d}.ckpt" for step in steps}
    for path in run.rglob("*.ckpt"):
        if path.name not in names:
            path.unlink()
    (run / "checkpoints/best.json").unlink()
    return run


@pytest.mark.slow
def test_two_snapshots_and_a_random_direction_make_a_plane(finished: Path, tmp_path: Path) -> None:
    found = study.explore(only(finished, tmp_path, 0, 12), 5, 1, "")
    assert found["through"] == (0, 12, None)
    assert found["share_in_plane"] == pytest.approx(1, abs=1e-4)


def test_one_snapshot_is_too_few(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="keeps one snapshot of its weights"):
        study.explore(only(finished, tmp_path, 12), 5, 1, "")


@pytest.mark.slow
def test_weights_that_never_moved_have_no_plane(finished: Path, tmp_path: Path) -> None:
    run = only(finished, tmp_path, 0, 12)
    untrained = read(run / "checkpoints/milestones/step-000000000.ckpt")
    for path in [*(run / "checkpoints").glob("step-*.ckpt")]:
        write({**untrained, "global_step": int(path.stem[5:])}, path)
    shutil.rmtree(run / "checkpoints/milestones")
    shutil.copytree(finished / "checkpoints/milestones", run / "checkpoints/milestones")
    (run / "checkpoints/SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match="no plane"):
        study.explore(run, 5, 1, "")


def test_a_run_whose_corpus_is_gone_is_told(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("grammar", "gone"))
    with pytest.raises(DataError, match="no prepared corpus"):
        study.explore(run, 5, 1, "")
