"""A run's checkpoints -> the best, those that stay, and the one to go on from."""

import json
from pathlib import Path

import pytest

from lmtemplate.checkpoint import files, resume
from lmtemplate.errors import CheckpointError, ConfigError
from tests.runs import contents, flip_bit, save, state


def test_steps_are_listed_ascending_and_nothing_else_is(tmp_path: Path) -> None:
    save(tmp_path, 20, 3, 1_000_000_000)
    (tmp_path / "checkpoints" / "step-7.ckpt").touch()
    (tmp_path / "checkpoints" / "step-000000009.ckpt.bak").touch()
    assert resume.steps_saved(tmp_path) == [3, 20, 1_000_000_000]


def test_pruning_keeps_the_best_and_the_newest_two(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    resume.prune(tmp_path, newest=5, best=2)
    assert resume.steps_saved(tmp_path) == [2, 4, 5]


def test_pruning_leaves_later_steps_alone_and_does_not_count_them(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 8, 9)
    resume.prune(tmp_path, newest=4, best=1)
    assert resume.steps_saved(tmp_path) == [1, 3, 4, 8, 9]


def test_pruning_keeps_the_checksums_of_what_stays(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    resume.prune(tmp_path, newest=3, best=None)
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
    resume.prune(tmp_path, newest=3, best=None)
    assert contents(tmp_path / "checkpoints" / "milestones") == before


def test_best_is_what_a_later_process_reads(tmp_path: Path) -> None:
    assert resume.read_best(tmp_path) is None
    resume.write_best(tmp_path, 7, 1.25, 1.5)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    file = "step-000000007.ckpt"
    assert best == {"step": 7, "val_loss": 1.25, "file": file, "initial_val_loss": 1.5}
    assert resume.read_best(tmp_path) == best


def test_best_latest_and_paths_are_found(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    resume.write_best(tmp_path, 2, 1.5)
    assert resume.resolve(tmp_path, "best").name == "step-000000002.ckpt"
    assert resume.resolve(tmp_path, "latest").name == "step-000000003.ckpt"
    assert resume.resolve(tmp_path, "a/b.ckpt") == Path("a/b.ckpt")


def test_an_address_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint https:"):
        files.read(resume.resolve(tmp_path, "https://example.org/a.ckpt"))


def test_without_a_validation_the_latest_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    assert resume.resolve(tmp_path, "best").name == "step-000000002.ckpt"


def test_a_directory_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        resume.resolve(tmp_path / "none", "best")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        resume.resolve(tmp_path, "latest")


@pytest.mark.parametrize("mode", ["never", "auto"])
def test_an_unused_directory_begins_at_step_0(tmp_path: Path, mode: resume.ResumeMode) -> None:
    assert resume.resume_from(tmp_path, mode) is None
    assert resume.resume_from(tmp_path / "new", mode) is None
    assert not (tmp_path / "new").exists()


def test_a_used_directory_is_never_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(ConfigError, match=r"--resume auto.*--run_dir"):
        resume.resume_from(tmp_path, "never")


def test_must_wants_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        resume.resume_from(tmp_path, "must")


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_the_newest_sound_checkpoint_is_continued(
    tmp_path: Path, mode: resume.ResumeMode, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 5, 10, 15)
    flip_bit(tmp_path / "checkpoints" / "step-000000015.ckpt")
    resumed = resume.resume_from(tmp_path, mode)
    assert resumed is not None
    assert resumed.path == tmp_path / "checkpoints" / "step-000000010.ckpt"
    assert resumed.checkpoint["global_step"] == 10
    assert "step-000000015.ckpt is damaged" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(
    tmp_path: Path, mode: resume.ResumeMode
) -> None:
    save(tmp_path, 5, 10)
    for step in (5, 10):
        flip_bit(tmp_path / "checkpoints" / files.file_name(step))
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        resume.resume_from(tmp_path, mode)


@pytest.mark.parametrize("mode", ["auto", "must"])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(
    tmp_path: Path, mode: resume.ResumeMode
) -> None:
    """One that was killed before its first checkpoint has no best.json either."""
    save(tmp_path, 5)
    milestone = tmp_path / "checkpoints" / "milestones" / files.file_name(3)
    files.write(state(3), milestone)
    resume.write_best(tmp_path, 5, 1.5)
    (tmp_path / "checkpoints" / files.file_name(5)).unlink()
    with pytest.raises(CheckpointError, match=f"are gone; .* --init_from {milestone}"):
        resume.resume_from(tmp_path, mode)


def test_a_link_that_stays_in_the_run_is_taken(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "last.ckpt").symlink_to(Path("checkpoints", files.file_name(2)))
    assert resume.resume_from(tmp_path, "must") is not None


def test_a_checkpoint_that_lightning_would_find_by_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    with pytest.raises(ConfigError, match=r"hpc_ckpt_1\.ckpt: Lightning would go on from it"):
        resume.resume_from(tmp_path, "auto")


@pytest.mark.parametrize(
    "name", ["checkpoints", "checkpoints/milestones", "validation", "x/.y.tmp"]
)
def test_a_link_that_leaves_the_run_is_refused_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    save(other, 1, 2)
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(other / "checkpoints")
    for mode in ("never", "auto", "must"):
        with pytest.raises(ConfigError, match="is a link"):
            resume.resume_from(run, mode)  # type: ignore[arg-type]


def test_no_verb_reads_a_run_that_lightning_or_a_link_would_leave(tmp_path: Path) -> None:
    save(tmp_path / "run", 1)
    (tmp_path / "secret").touch()
    (tmp_path / "run/checkpoints/training_metrics.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="is a link that leaves"):
        resume.resolve(tmp_path / "run", "latest")


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
@pytest.mark.parametrize("mode", ["never", "auto", "must"])
def test_a_folder_of_another_program_is_left_alone(
    tmp_path: Path, name: str, mode: resume.ResumeMode
) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / ".draft.tmp").touch()
    with pytest.raises(ConfigError, match=r"and no manifest.json, so it is no run|holds a run"):
        resume.resume_from(tmp_path, mode)
    resume.clear_leftovers(tmp_path)
    assert (tmp_path / ".draft.tmp").exists()
