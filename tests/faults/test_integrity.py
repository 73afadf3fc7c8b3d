"""One bit, or half of a file, is not what was written -> found, named, and not trained on."""

import random
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from lmtemplate.checkpoint import files, resume
from lmtemplate.errors import CheckpointError
from lmtemplate.run_dir import folder_of
from tests.conftest import Command
from tests.faults.experiments import DAMAGES, unnoticed_flips
from tests.runs import contents, equal

LIKE_BEFORE = ("a byte more", "twice")  # to whoever has no checksum, all is still there


def resumed_path(run: Path, mode: resume.ResumeMode) -> Path | None:
    """The file that a new start would continue."""
    resumed = resume.resume_from(run, mode)
    return resumed.path if resumed else None


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run that has the checkpoints of steps 8 and 12, and is best at 12; to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def file_of(run: Path, step: int) -> Path:
    return folder_of(run) / files.file_name(step)


def spoil(path: Path, how: str) -> None:
    path.write_bytes(DAMAGES[how](path.read_bytes()))


@pytest.mark.slow
def test_each_of_100_flipped_bits_is_found(run: Path) -> None:
    path = file_of(run, 12)
    assert unnoticed_flips(path, files.damage, 100, random.Random(1)) == []
    assert files.damage(path) is None


def test_without_a_checksum_no_flipped_bit_changes_a_number(tmp_path: Path) -> None:
    """Zip files have bytes that mean nothing; all others are found, or refused in one line."""
    path, state = tmp_path / "foreign.ckpt", {"state_dict": {"net.a": torch.arange(40.0)}}
    state |= {"global_step": 3, "config": {"text": "ü"}}  # type: ignore[dict-item]
    torch.save(state, path)

    def notice(path: Path) -> bool:
        try:
            return equal(files.read(path), state)
        except CheckpointError:
            return True

    assert unnoticed_flips(path, notice, 300, random.Random(2)) == []


def test_without_a_checksum_an_entry_marked_as_a_folder_is_found(tmp_path: Path) -> None:
    """Torch would read such an entry as zeros, without a word."""
    path = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"net.a": torch.arange(40.0)}, "global_step": 1}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename for entry in archive.infolist()]
    name = next(name for name in names if name.endswith("data/0")).encode()
    content[content.rindex(name) - 46 + 38] ^= 0x10  # of the central directory's entry
    path.write_bytes(content)
    assert files.damage(path) == "its zip directory has wrong sizes or attributes"


@pytest.mark.parametrize("how", DAMAGES)
def test_a_spoilt_file_is_found_named_and_kept_and_the_one_before_it_taken(
    run: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(run, 12)
    spoil(path, how)
    spoilt = path.read_bytes()
    assert resumed_path(run, "auto") == file_of(run, 8)
    (line,) = capsys.readouterr().out.splitlines()
    assert str(path) in line
    assert "is damaged (sha256 is " in line
    assert "going on from step 8" in line
    aside = path.with_name(f"{path.name}.corrupt")
    assert aside.name in line
    assert not path.exists()
    assert aside.read_bytes() == spoilt


@pytest.mark.parametrize("how", [how for how in DAMAGES if how not in LIKE_BEFORE])
def test_without_a_checksum_a_spoilt_file_is_found_too(run: Path, how: str) -> None:
    (folder_of(run) / "SHA256SUMS").unlink()
    path = file_of(run, 12)
    assert files.damage(path) is None
    spoil(path, how)
    assert resumed_path(run, "auto") == file_of(run, 8)


@pytest.mark.slow
def test_where_all_are_spoilt_nothing_is_touched_and_nothing_begun_anew(
    fit: Command, run: Path
) -> None:
    for step in resume.steps_saved(run):
        spoil(file_of(run, step), "50 % left")
    before = contents(run)
    for _ in range(2):
        mistake = fit(run, "--resume=auto")
        assert mistake.code == 3
        assert "all checkpoints in" in mistake.error
        assert contents(run) == before


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_and_ends_the_same(
    fit: Command, run: Path, finished: Path
) -> None:
    best = resume.read_best(finished)
    assert best is not None
    assert best["step"] == 12
    spoil(file_of(run, 12), "90 % left")
    shown = fit(run, "--samples=null", "--resume=auto")
    assert shown.code == 0
    assert f"continuing {run} at step 8" in shown.out
    assert resume.read_best(run) == best
    states = [files.read(file_of(folder, 12))["state_dict"] for folder in (run, finished)]
    assert equal(*states)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["generate", "validate"])
def test_a_spoilt_file_that_was_named_is_refused(command: Command, run: Path, verb: str) -> None:
    path = file_of(run, 12)
    spoil(path, "99.9 % left")
    before = contents(run)
    mistake = command(verb, run, "--checkpoint", path)
    assert mistake.code == 3
    assert f"checkpoint {path} is damaged (sha256 is" in mistake.error
    assert "\n" not in mistake.error
    assert contents(run) == before


@pytest.mark.slow
def test_a_spoilt_file_is_no_start_for_another_run(fit: Command, run: Path, tmp_path: Path) -> None:
    spoil(file_of(run, 12), "all zeros")
    mistake = fit(tmp_path / "new", "--init_from", file_of(run, 12))
    assert mistake.code == 3
    assert "is damaged" in mistake.error
    assert not (tmp_path / "new").exists()


SPOILT_SUMS = {
    "gone": None,
    "empty": b"",
    "not text": b"\xff\xfe\x00",
    "other words": b"hello\nworld is nice\n",
    "half a line": b"3fa1",
}


@pytest.mark.parametrize("content", SPOILT_SUMS.values(), ids=SPOILT_SUMS)
def test_without_a_list_of_checksums_the_sums_inside_the_files_count(
    run: Path, content: bytes | None
) -> None:
    path = folder_of(run) / "SHA256SUMS"
    path.unlink() if content is None else path.write_bytes(content)
    assert resumed_path(run, "auto") == file_of(run, 12)
    spoil(file_of(run, 12), "50 % left")
    assert resumed_path(run, "auto") == file_of(run, 8)


def test_a_wrong_checksum_counts_and_the_file_is_kept(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder_of(run) / "SHA256SUMS"
    before = file_of(run, 12).read_bytes()
    listed = [line for line in path.read_text().splitlines() if "000012" not in line]
    path.write_text("\n".join([f"{'0' * 64}  {files.file_name(12)}", *listed]))
    assert resumed_path(run, "auto") == file_of(run, 8)
    assert "SHA256SUMS says 00000000.." in capsys.readouterr().out
    assert file_of(run, 12).with_name(f"{files.file_name(12)}.corrupt").read_bytes() == before


def test_a_file_that_cannot_be_read_is_passed_over(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad sector: reading fails."""
    digest = files.file_sha256

    def read(path: Path) -> str:
        if "000012" in path.name:
            raise OSError(5, "Input/output error")
        return digest(path)

    monkeypatch.setattr(files, "file_sha256", read)
    assert resumed_path(run, "auto") == file_of(run, 8)
    assert "is damaged (Input/output error)" in capsys.readouterr().out


def test_a_file_has_its_checksum_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a flip in what zip does not check could pass, if a crash came in between."""
    path, rename, seen = tmp_path / "a.ckpt", Path.replace, []

    def replace(source: Path, target: Path) -> Path:
        seen.append((target.name, (tmp_path / "SHA256SUMS").exists()))
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    files.write({"state_dict": {}, "global_step": 1}, path)
    assert seen == [("SHA256SUMS", False), ("a.ckpt", True)]


def test_checksums_of_files_that_a_kill_has_left_out_go_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "SHA256SUMS"
    path.write_text(f"{'0' * 64}  step-000000001.ckpt\n")
    files.write({"state_dict": {}, "global_step": 2}, tmp_path / files.file_name(2))
    assert [line.split()[1] for line in path.read_text().splitlines()] == [files.file_name(2)]
