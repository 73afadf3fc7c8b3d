"""Training state -> file and back: whole, verified, and never run as code."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtemplate import checkpoint as files
from lmtemplate.errors import CheckpointError, ConfigError, DiskError
from tests.runs import contents, equal


def state(step: int = 1, **more: Any) -> dict[str, Any]:
    """What the smallest checkpoint holds."""
    return {"state_dict": {"net.a": torch.arange(6.0).view(2, 3)}, "global_step": step, **more}


def save(run: Path, *steps: int) -> None:
    for step in steps:
        files.write(state(step), run / "checkpoints" / files.file_name(step))


def flip_bit(path: Path, place: float = 0.5) -> None:
    """Turn one bit at this share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


class Evil:
    """What a pickle may hold: a call, run by whoever loads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = state(3, text="ü", nested={"a": [1, (2.5, None)], "b": torch.tensor([True])})
    files.write(written, tmp_path / "a.ckpt")
    assert equal(files.read(tmp_path / "a.ckpt"), written)


def test_anyone_can_load_it_with_weights_only(tmp_path: Path) -> None:
    files.write(state(3), tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["global_step"] == 3


def test_the_checksums_are_sha256_as_sha256sum_prints_them(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    expected = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}"
        for name in ("step-000000001.ckpt", "step-000000002.ckpt")
    ]
    assert lines == expected


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert contents(tmp_path / "checkpoints").keys() == {"SHA256SUMS", "step-000000001.ckpt"}


def test_a_full_disk_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    files.write(state(1), path)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskError, match="No space left on device"):
        files.write(state(2), path)
    assert contents(tmp_path) == before
    assert files.damage(path) is None


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_one_flipped_bit_is_found(tmp_path: Path, place: float) -> None:
    files.write(state(), tmp_path / "a.ckpt")
    flip_bit(tmp_path / "a.ckpt", place)
    with pytest.raises(CheckpointError, match=r"a\.ckpt is damaged \(sha256 is"):
        files.read(tmp_path / "a.ckpt")


def test_a_file_from_elsewhere_is_checked_by_the_sums_inside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(state(), path)
    assert files.damage(path) is None
    with zipfile.ZipFile(path) as archive:
        weights = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0"))
        start = weights.header_offset
    content = path.read_bytes()
    data = torch.arange(6.0).numpy().tobytes()
    flip_bit(path, (content.index(data, start) + 5) / (len(content) - 1))
    with pytest.raises(CheckpointError, match="fails its CRC"):
        files.read(path)


def test_a_truncated_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        files.read(path)


@pytest.mark.parametrize("known", [True, False], ids=["with a checksum", "without"])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, known: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.ckpt"
    if known:
        files.write(state(payload=Evil(canary)), path)
    else:
        torch.save(state(payload=Evil(canary)), path)
    with pytest.raises(CheckpointError, match=r"is refused: it contains the global \w+\.system"):
        files.read(path)
    assert not canary.exists()


@pytest.mark.parametrize("content", [[1, 2], {"model": 1}])
def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="has no state_dict"):
        files.read(tmp_path / "a.ckpt")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*a\.ckpt"):
        files.read(tmp_path / "a.ckpt")


def test_an_address_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="download"):
        files.read(files.resolve(tmp_path, "https://example.org/a.ckpt"))


def test_steps_are_listed_ascending_and_nothing_else_is(tmp_path: Path) -> None:
    save(tmp_path, 20, 3, 1_000_000_000)
    (tmp_path / "checkpoints" / "step-7.ckpt").touch()
    (tmp_path / "checkpoints" / "step-000000009.ckpt.bak").touch()
    assert files.steps_saved(tmp_path) == [3, 20, 1_000_000_000]


def test_pruning_keeps_the_best_and_the_newest_two(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    files.write_best(tmp_path, 2, 1.5)
    files.prune(tmp_path, newest=5)
    assert files.steps_saved(tmp_path) == [2, 4, 5]


def test_pruning_leaves_later_steps_alone_and_does_not_count_them(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 8, 9)
    files.write_best(tmp_path, 1, 1.5)
    files.prune(tmp_path, newest=4)
    assert files.steps_saved(tmp_path) == [1, 3, 4, 8, 9]


@pytest.mark.parametrize(("keep", "left"), [(1, [3]), (2, [2, 3]), (9, [1, 2, 3])])
def test_pruning_keeps_as_many_as_it_is_told(tmp_path: Path, keep: int, left: list[int]) -> None:
    save(tmp_path, 1, 2, 3)
    files.prune(tmp_path, newest=3, keep=keep)
    assert files.steps_saved(tmp_path) == left


def test_pruning_keeps_the_checksums_of_what_stays(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    files.prune(tmp_path, newest=3)
    sums = (tmp_path / "checkpoints" / "SHA256SUMS").read_text()
    assert [line.split()[1] for line in sums.splitlines()] == [
        "step-000000002.ckpt",
        "step-000000003.ckpt",
    ]


def test_pruning_leaves_milestones_alone(tmp_path: Path) -> None:
    for step in (0, 1, 2, 3):
        files.write(state(step), tmp_path / "checkpoints/milestones" / files.file_name(step))
    save(tmp_path, 1, 2, 3)
    before = contents(tmp_path / "checkpoints" / "milestones")
    files.prune(tmp_path, newest=3)
    assert contents(tmp_path / "checkpoints" / "milestones") == before


def test_best_is_what_a_later_process_reads(tmp_path: Path) -> None:
    assert files.read_best(tmp_path) is None
    files.write_best(tmp_path, 7, 1.25)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": 7, "val_loss": 1.25, "file": "step-000000007.ckpt"}
    assert files.read_best(tmp_path) == best


def test_best_latest_and_paths_are_found(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    files.write_best(tmp_path, 2, 1.5)
    assert files.resolve(tmp_path, "best").name == "step-000000002.ckpt"
    assert files.resolve(tmp_path, "latest").name == "step-000000003.ckpt"
    assert files.resolve(tmp_path, "a/b.ckpt") == Path("a/b.ckpt")


def test_without_a_validation_the_latest_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    assert files.resolve(tmp_path, "best").name == "step-000000002.ckpt"


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        files.resolve(tmp_path / "none", "best")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        files.resolve(tmp_path, "latest")


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_an_unused_directory_begins_at_step_0(tmp_path: Path, mode: files.ResumeMode) -> None:
    assert files.resume_from(tmp_path, mode) is None
    assert files.resume_from(tmp_path / "new", mode) is None
    assert not (tmp_path / "new").exists()


def test_a_used_directory_is_never_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match=r"--resume auto.*--run_dir"):
        files.resume_from(tmp_path, "never")


def test_must_wants_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        files.resume_from(tmp_path, "must")


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_the_newest_sound_checkpoint_is_continued(
    tmp_path: Path, mode: files.ResumeMode, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 5, 10, 15)
    flip_bit(tmp_path / "checkpoints" / "step-000000015.ckpt")
    path = files.resume_from(tmp_path, mode)
    assert path == tmp_path / "checkpoints" / "step-000000010.ckpt"
    assert "step-000000015.ckpt is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    tmp_path: Path, mode: files.ResumeMode
) -> None:
    save(tmp_path, 5, 10)
    for step in (5, 10):
        flip_bit(tmp_path / "checkpoints" / files.file_name(step))
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        files.resume_from(tmp_path, mode)
