"""A disk that is full, slow to refuse, or not ours -> a line at once, and a run that goes on."""

import errno
import os
import re
import resource
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtemplate.callbacks.checkpointing import Checkpoint
from lmtemplate.checkpoint import files, resume
from lmtemplate.module import LitLanguageModel
from lmtemplate.run_dir import folder_of
from tests.conftest import Command
from tests.faults.experiments import leftovers, sound_steps
from tests.runs import contents, equal, load, train

# saves at 4, 8, 12 and 16
FLAGS = ["--samples=null", "--checkpoint.milestones=null", "--trainer.max_steps=16"]
FLAGS += ["--trainer.log_every_n_steps=1"]

Fail = Callable[..., None]


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on a disk that is well."""
    return train(tmp_path_factory.mktemp("disk") / "whole", corpus, *FLAGS)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let an operation on checkpoints fail in the saves of these steps."""
    saving: list[int] = []
    save = Checkpoint._save

    def noted(self: Checkpoint, trainer: Any) -> None:
        saving[:] = [trainer.global_step]
        try:
            save(self, trainer)
        finally:
            saving.clear()

    monkeypatch.setattr(Checkpoint, "_save", noted)

    def at(owner: object, name: str, number: int, steps: list[int]) -> None:
        original = getattr(owner, name)

        def failing(*words: Any, **more: Any) -> Any:
            if saving and saving[0] in steps:
                raise OSError(number, os.strerror(number))
            return original(*words, **more)

        monkeypatch.setattr(owner, name, failing)

    return at


OPERATIONS = {
    "write": (torch, "save"),
    "fsync": (os, "fsync"),
    "rename": (Path, "replace"),
    "open": (Path, "open"),
}
ERRORS = {"write": errno.ENOSPC, "fsync": errno.EIO, "rename": errno.EACCES, "open": errno.EACCES}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_failed_save_is_told_and_changes_nothing_else(
    fit: Command, fail: Fail, tmp_path: Path, whole: Path, name: str
) -> None:
    fail(*OPERATIONS[name], ERRORS[name], [8])
    shown = fit(tmp_path / "run", *FLAGS)
    assert shown.code == 0
    (line,) = [line for line in shown.out.splitlines() if "save failed" in line]
    assert os.strerror(ERRORS[name]) in line
    assert "(1/3)" in line
    assert line.endswith("last good: step 4")
    assert sound_steps(tmp_path / "run") == [12, 16]
    assert not leftovers(tmp_path / "run")
    assert equal(load(tmp_path / "run", 16)["state_dict"], load(whole, 16)["state_dict"])
    assert resume.read_best(tmp_path / "run") == resume.read_best(whole)


@pytest.mark.slow
def test_a_full_disk_is_told_with_the_room_that_is_needed(
    fit: Command, fail: Fail, tmp_path: Path
) -> None:
    fail(torch, "save", errno.ENOSPC, [8])
    shown = fit(tmp_path / "run", *FLAGS)
    found = re.search(r"No space left.*\(it takes ([\d.]+) MB, [\d.,]+ MB are free\)", shown.out)
    assert found
    size = (tmp_path / "run/checkpoints" / files.file_name(16)).stat().st_size / 1e6
    assert 0.5 * size < float(found[1]) < 1.1 * size


@pytest.mark.slow
def test_the_good_files_of_before_stay_while_saves_fail(
    fit: Command, fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, str]] = []
    save = Checkpoint._save

    def looked_at(self: Checkpoint, trainer: Any) -> None:
        folder = folder_of(self.run)
        seen.append({k: v for k, v in contents(folder).items() if ".jsonl" not in k})
        save(self, trainer)

    monkeypatch.setattr(Checkpoint, "_save", looked_at)
    fail(torch, "save", errno.ENOSPC, [8, 12])
    assert fit(tmp_path / "run", *FLAGS).code == 0
    kept = [{k: v for k, v in files.items() if k.endswith(".ckpt")} for files in seen]
    assert kept[1] == kept[2] == kept[3] != {}
    assert sound_steps(tmp_path / "run") == [4, 16]


@pytest.mark.slow
def test_the_third_failure_in_a_row_ends_the_run_with_5(
    fit: Command, fail: Fail, tmp_path: Path
) -> None:
    fail(os, "fsync", errno.EIO, [8, 12, 16])
    stopped = fit(tmp_path / "run", *FLAGS, "--trainer.max_steps=20")
    assert stopped.code == 5
    assert "step 16 is not saved: " in stopped.error
    assert "Input/output error" in stopped.error
    assert "last good: step 4" in stopped.error
    assert f"make resume RUN={tmp_path / 'run'}" in stopped.error
    assert "\n" not in stopped.error
    assert [f"({n}/3)" in stopped.out for n in (1, 2, 3)] == [True] * 3


@pytest.mark.slow
def test_a_save_in_between_starts_the_count_anew(fit: Command, fail: Fail, tmp_path: Path) -> None:
    fail(os, "fsync", errno.EIO, [4, 8, 16, 20])
    assert fit(tmp_path / "run", *FLAGS, "--trainer.max_steps=24").code == 0


@pytest.mark.slow
def test_the_last_step_has_to_be_saved_and_can_be_made_up_for(
    fit: Command, tmp_path: Path, whole: Path
) -> None:
    save = torch.save

    def full(content: Any, file: Any) -> None:
        if content["global_step"] == 16:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", full)
        stopped = fit(tmp_path / "run", *FLAGS)
    assert stopped.code == 5
    assert "step 16 is not saved" in stopped.error
    assert sound_steps(tmp_path / "run") == [8, 12]
    assert fit(tmp_path / "run", *FLAGS, "--resume=auto").code == 0
    assert equal(load(tmp_path / "run", 16)["state_dict"], load(whole, 16)["state_dict"])


@pytest.mark.slow
def test_a_milestone_that_cannot_be_saved_is_told_and_no_more(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full(content: Any, file: Any) -> None:
        if "milestones" in file.file.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    shown = fit(tmp_path / "run", "--samples=null", "--checkpoint.milestones=12")
    assert shown.code == 0
    assert shown.out.count("milestone not saved: ") > 3
    assert "save failed" not in shown.out


@pytest.mark.slow
def test_a_pruning_that_fails_is_told_and_made_up_for(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink, refused = Path.unlink, list[str]()

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == files.file_name(4) and not refused:
            refused.append(path.name)
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    shown = fit(tmp_path / "run", *FLAGS)
    assert shown.code == 0
    assert "save failed (1/3): [Errno 13] Permission denied: " in shown.out
    assert sound_steps(tmp_path / "run") == [12, 16]


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system lets no file grow beyond 200,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@pytest.mark.usefixtures("small_files")
def test_a_limit_on_the_size_of_files_is_a_failed_save_like_others(
    fit: Command, tmp_path: Path
) -> None:
    """The real thing: torch writes, and the system says no in the middle of it."""
    stopped = fit(tmp_path / "run", *FLAGS)
    assert stopped.code == 5
    assert "save failed (1/3): cannot write" in stopped.out
    assert "File too large" in stopped.out
    assert "Traceback" not in stopped.out + stopped.error
    assert sound_steps(tmp_path / "run") == []
    assert not leftovers(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no file system may be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=10)


@pytest.mark.slow
def test_a_disk_without_a_free_byte_for_a_while_costs_no_step_and_no_point(
    fit: Command, small_disk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From step 5 on nothing can be written, logs included, until after the save of step 12."""
    other, end_of = small_disk / "other", LitLanguageModel.on_train_batch_end

    def on_train_batch_end(module: LitLanguageModel, *words: Any) -> None:
        if module.global_step == 5:
            with other.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
        if module.global_step == 13:
            other.unlink()
        end_of(module, *words)

    monkeypatch.setattr(LitLanguageModel, "on_train_batch_end", on_train_batch_end)
    tracebacks: list[object] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    shown = fit(small_disk / "run", *FLAGS)
    assert shown.code == 0
    assert "save failed (2/3)" in shown.out
    assert "TensorBoard" in shown.out
    assert not tracebacks
    assert equal(load(small_disk / "run", 16)["state_dict"], load(whole, 16)["state_dict"])
    arrays = [run / "checkpoints/training_metrics.json" for run in (small_disk / "run", whole)]
    assert arrays[0].read_text() == arrays[1].read_text()


@pytest.mark.slow
def test_a_disk_that_fills_up_and_is_cleared_costs_no_step(
    fit: Command, small_disk: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone else's file leaves no room for the checkpoint of step 8, and is gone by step 12."""
    save, other = Checkpoint._save, small_disk / "other"

    def crowded(self: Checkpoint, trainer: Any) -> None:
        if trainer.global_step == 8:
            free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
            other.write_bytes(bytes(free - 300_000))
        save(self, trainer)
        other.unlink(missing_ok=True)

    monkeypatch.setattr(Checkpoint, "_save", crowded)
    shown = fit(small_disk / "run", *FLAGS)
    assert shown.code == 0
    room = r"\(1/3\): .*No space left on device \(it takes 0\.5 MB, 0\.\d MB are free\); last good"
    assert re.search(room, shown.out)
    assert sound_steps(small_disk / "run") == [12, 16]
    assert not leftovers(small_disk / "run")
    assert equal(load(small_disk / "run", 16)["state_dict"], load(whole, 16)["state_dict"])
