"""Verification: what is sound says so, and each damage is listed with its file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lmtemplate import record
from lmtemplate.checkpoint import files as checkpoint
from lmtemplate.checkpoint import resume
from lmtemplate.errors import CheckpointError, ConfigError, DataError
from lmtemplate.run_dir import folder_of, write_json
from lmtemplate.study.check.verify import verify
from tests.runs import contents

Verified = Callable[[Path], list[str]]


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Verified:
    """Verify a damaged folder: the lines about what is damaged."""

    def call(folder: Path) -> list[str]:
        before = contents(folder)
        capsys.readouterr()
        with pytest.raises((CheckpointError, DataError)) as caught:
            verify(folder)
        lines = capsys.readouterr().out.splitlines()
        damaged = [line for line in lines if line.startswith("damaged ")]
        assert f"{len(damaged)} of {len(lines)} files in {folder} are damaged" in str(caught.value)
        assert contents(folder) == before
        return damaged

    return call


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "data"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What `lmtemplate fit` leaves behind, in small."""
    run = tmp_path / "run"
    folder = folder_of(run)
    state = {"state_dict": {"net.weight": torch.arange(6.0)}}
    for path in ("step-000000002.ckpt", "step-000000004.ckpt", "milestones/step-000000000.ckpt"):
        checkpoint.write(state, folder / path)
    resume.write_best(run, 2, 3.5)
    writer = record.Writer(run, 1)
    for step in range(5):
        writer.append(step, {"train/loss": 4.0 - step, "data/epoch": 0.1 * step})
    writer.write_arrays()
    write_json(run / "manifest.json", {"seed": 1})
    write_json(run / "summary.json", {"step": 4})
    (run / "config.yaml").write_text("seed_everything: 1\n")
    return run


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_sound_corpus_has_a_line_for_each_file(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(data)
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", name]
        for name in ("index.json", "train_000000.bin", "val_000000.bin", "tokenizer.json")
    ]
    assert last == f"4 files in {data}, all sound"


def test_a_sound_run_has_a_line_for_each_file(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify(run)
    lines = capsys.readouterr().out.splitlines()
    listed = {line.split()[1] for line in lines[:-1]}
    assert listed == contents(run).keys() - {
        f"checkpoints/{place}SHA256SUMS" for place in ("", "milestones/")
    }
    assert lines[-1] == f"9 files in {run}, all sound"


def test_all_damage_of_a_corpus_is_listed_not_the_first_alone(
    data: Path, verified: Verified
) -> None:
    flip(data / "train_000000.bin", 2000)
    (data / "val_000000.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (data / "tokenizer.json").write_text('{"kind": "char", "characters": "abc"}')
    train, val, tokenizer = verified(data)
    assert "train_000000.bin: block at byte offset 1,024 fails its CRC-32" in train
    assert "run git lfs pull" in val
    assert "not the tokenizer that made the shards" in tokenizer


@pytest.mark.parametrize("content", ["", "{}", "version https://git-lfs.github.com/spec/v1\n"])
def test_a_corpus_with_a_broken_index_says_so(content: str, data: Path, verified: Verified) -> None:
    (data / "index.json").write_text(content)
    (index,) = verified(data)
    assert index.startswith("damaged  index.json")


@pytest.mark.parametrize("place", ["step-000000002.ckpt", "milestones/step-000000000.ckpt"])
def test_a_flipped_bit_in_a_checkpoint_is_listed(place: str, run: Path, verified: Verified) -> None:
    flip(run / "checkpoints" / place, 700)
    (line,) = verified(run)
    assert f"checkpoints/{place}" in line
    assert "sha256 is" in line


def test_a_checkpoint_that_is_not_listed_is_held_to_its_own_sums(
    run: Path, verified: Verified, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "SHA256SUMS").unlink()
    verify(run)
    assert "not in SHA256SUMS; its own CRC-32 sums are right" in capsys.readouterr().out
    flip(run / "checkpoints" / "step-000000002.ckpt", 700)
    assert "step-000000002.ckpt" in verified(run)[0]


def test_a_pruned_checkpoint_that_a_kill_left_listed_is_no_damage(
    run: Path, verified: Verified, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints" / "step-000000004.ckpt").unlink()
    verify(run)
    assert "listed in SHA256SUMS, and not there" in capsys.readouterr().out
    (run / "checkpoints" / "milestones" / "step-000000000.ckpt").unlink()
    assert "milestones/step-000000000.ckpt" in verified(run)[0]


def test_a_best_that_is_gone_is_damage(run: Path, verified: Verified) -> None:
    (run / "checkpoints" / "step-000000002.ckpt").unlink()
    (line,) = verified(run)
    assert "best.json" in line
    assert "points at step-000000002.ckpt, which is not there" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoints/best.json", '{"step": 2, "val_loss": NaN, "file": "step-000000002.ckpt"}'),
        ("checkpoints/best.json", '{"step": 2, "val_loss": 1.0, "file": "../../secret"}'),
        ("checkpoints/best.json", "[" * 10**5),
        ("checkpoints/SHA256SUMS", "3fa1  step-000000002.ckpt\n"),
        ("checkpoints/SHA256SUMS", f"{'ab' * 32}  ../step-000000002.ckpt\n"),
        ("checkpoints/training_metrics.jsonl", '{"step": 1, "train/loss": NaN}\n'),
        ("checkpoints/training_metrics.jsonl", '{"step": 2}\n{"step": 1}\n'),
        ("checkpoints/training_metrics.jsonl", '{"step": 2}\n{"st\n{"step": 3}\n'),
        ("checkpoints/training_metrics.jsonl", '{"train/loss": 2.0}\n'),
        ("checkpoints/training_metrics.json", '{"steps": [1, 2], "train_loss": [1.0]}'),
        ("manifest.json", "[]"),
        ("summary.json", '{"seconds": Infinity}'),
        ("config.yaml", "data: ["),
        ("config.yaml", ""),
    ],
)
def test_a_damaged_file_of_a_run_is_listed(
    name: str, content: str, run: Path, verified: Verified
) -> None:
    (run / name).write_text(content)
    (line,) = verified(run)
    assert line.split()[1] == name


def test_a_missing_manifest_is_damage(run: Path, verified: Verified) -> None:
    (run / "manifest.json").unlink()
    assert verified(run) == ["damaged  manifest.json                      missing"]


def test_what_a_kill_and_a_rewind_leave_in_the_record_is_sound(run: Path) -> None:
    path = run / "checkpoints" / record.LINES
    path.write_text('{"step": 7, "nonfinite": ["train/loss"]}\n{"step": 5}\n{"step": 6, "tra')
    verify(run)


@pytest.mark.parametrize("name", ["nothing", "a file", "an empty folder"])
def test_what_is_neither_corpus_nor_run_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("text")
    (tmp_path / "an empty folder").mkdir()
    with pytest.raises(ConfigError, match=r"neither a prepared corpus .* nor a run directory"):
        verify(tmp_path / name)
