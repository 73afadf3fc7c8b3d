"""The doctor: corpus and run directory are examined, nothing is changed, a crash is a problem."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from lmtemplate.checkpoint import files as checkpoint
from lmtemplate.data.shard_writer import write_index
from lmtemplate.errors import DataError, UserError
from lmtemplate.models.gpt import GPT
from lmtemplate.run_dir import folder_of, write_json
from lmtemplate.study.check import doctor as verb
from lmtemplate.study.check import environment
from lmtemplate.study.check.doctor import corpus as look_at_corpus
from lmtemplate.study.check.doctor import default_checkpoint_bytes, doctor, run_directory
from lmtemplate.study.check.environment import Check
from tests.runs import contents


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "data"))


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave out all checks but these."""
    guarded = verb.guarded
    monkeypatch.setattr(
        verb, "guarded", lambda name, look: guarded(name, look) if name in names else ()
    )


def test_a_healthy_start_is_told_line_by_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "versions", "data", "run")
    before = contents(tmp_path)
    doctor(tmp_path / "run", data)
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["✓", subject] for subject in ("python", "packages", "data", "run", "disk")
    ]
    assert last == "nothing found that would stop a run"
    assert contents(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_a_problem_makes_the_exit_code_1_after_all_checks(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "data", "run")
    (data / "train_000000.bin").unlink()
    with pytest.raises(UserError, match=r"^1 of 3 checks found a problem") as caught:
        doctor(tmp_path / "run", data)
    assert caught.value.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["✗", "data"], ["✓", "run"], ["✓", "disk"]]
    assert f"shard {data / 'train_000000.bin'} is missing" in lines[0]


def test_a_check_that_breaks_off_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Check]:
        yield Check("ok", "torch", "here")
        raise ImportError("libcudart.so.12: cannot open\nshared object file")

    monkeypatch.setattr(environment, "CHECKS", (broken, broken))
    only(monkeypatch, "broken")
    error = "ImportError: libcudart.so.12: cannot open shared object file"
    assert [(one.status, one.subject, one.text) for one in verb.checks(None, None)] == [
        ("ok", "torch", "here"),
        ("problem", "broken", error),
    ] * 2


def test_every_check_of_the_environment_needs_neither_corpus_nor_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "BLOCK", 8)
    said = list(verb.checks(None, None))
    subjects = {one.subject for one in said}
    assert subjects >= {"python", "packages", "cpu", "threads", "TMPDIR", "run", "step"}
    (of_data,) = [one for one in said if one.subject == "data"]
    assert of_data.text == "not checked; name a corpus with --data FOLDER"


def test_the_corpus_of_a_run_is_found_by_its_manifest(data: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "manifest.json", {"data": {"path": str(data)}})
    (found,) = look_at_corpus(tmp_path / "run", None)
    assert str(data) in found.text
    assert found.text.endswith("257 ids")


def test_a_damaged_corpus_is_refused_with_the_line_of_training(data: Path) -> None:
    (data / "val_000000.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="run git lfs pull"):
        list(look_at_corpus(None, data))


def test_another_tokenizer_is_a_problem(data: Path) -> None:
    (data / "tokenizer.json").write_text('{"kind": "char", "characters": "abc"}')
    with pytest.raises(DataError, match="not the tokenizer that made the shards"):
        list(look_at_corpus(None, data))


def test_validation_on_the_training_text_is_a_warning(data: Path) -> None:
    index = json.loads((data / "index.json").read_text())
    train, val = index["splits"]["train"], index["splits"]["val"]
    shutil.copy(data / "train_000000.bin", data / "val_000000.bin")
    val.update(train, shards=[{**train["shards"][0], "file": "val_000000.bin"}])
    write_index(data, {key: value for key, value in index.items() if key != "fingerprint"})
    _, warning = look_at_corpus(None, data)
    assert (warning.status, warning.subject) == ("warning", "data")
    assert "the same tokens" in warning.text


def test_copies_in_a_corpus_are_said(data: Path) -> None:
    index = json.loads((data / "index.json").read_text())
    index["source"]["copies"] = 7
    (data / "index.json").write_text(json.dumps(index))
    assert "in the same split as these: 7" in " ".join(x.text for x in look_at_corpus(None, data))


def test_a_run_directory_that_cannot_be_written_names_owner_and_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(verb, "probe", refuse)
    tmp_path.chmod(0o755)
    (problem,) = run_directory(tmp_path / "runs" / "new")
    assert problem.status == "problem"
    wanted = f"cannot write {tmp_path} (owner {tmp_path.stat().st_uid}, mode 0755): Read-only file"
    assert problem.text.startswith(wanted)


def test_a_file_in_place_of_the_run_directory_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("text")
    (problem,) = run_directory(tmp_path / "run")
    assert (problem.status, "cannot write" in problem.text) == ("problem", True)


HOLDER = "pid 77 on host a since 10:02"


def test_who_has_the_run_directory_is_named_and_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(HOLDER)
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-S", "-c", code, str(tmp_path / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == "held\n"
        held = next(iter(run_directory(tmp_path)))
        assert (tmp_path / ".lock").read_text() == HOLDER
        child.stdin.close()
        child.wait()
    died = next(iter(run_directory(tmp_path)))
    assert (held.status, died.status) == ("problem", "ok")
    assert f"is in use by {HOLDER}" in held.text
    assert not (tmp_path / ".lock").exists()  # its holder is dead


def test_the_disk_has_to_hold_two_of_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"state_dict": {"a": torch.zeros(250_000)}, "global_step": 7}
    path = folder_of(tmp_path) / checkpoint.file_name(7)
    checkpoint.write(state, path)
    usage = type("Usage", (), {"free": 2_100_000})
    monkeypatch.setattr(verb.shutil, "disk_usage", lambda _: usage)
    _, problem = run_directory(tmp_path)
    assert problem.status == "problem"
    assert "2 MB free, its last checkpoint has 1 MB; saving needs 2 MB" in problem.text
    usage.free = 2_300_000
    assert [one.status for one in run_directory(tmp_path)] == ["ok", "ok"]


def test_a_damaged_last_checkpoint_is_a_problem(tmp_path: Path) -> None:
    path = folder_of(tmp_path) / checkpoint.file_name(7)
    checkpoint.write({"state_dict": {}, "global_step": 7}, path)
    path.write_bytes(path.read_bytes()[:100])
    problems = [one for one in run_directory(tmp_path) if one.status == "problem"]
    assert [f"lmtemplate verify {tmp_path}" in problem.text for problem in problems] == [True]


def test_a_first_checkpoint_is_reckoned_as_three_float32_tensors_per_weight() -> None:
    net = GPT(4096, 256)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    moments = [m for of in optimizer.state.values() for m in of.values() if m.dim()]
    tensors = [*net.parameters(), *moments]
    assert default_checkpoint_bytes() == sum(t.numel() * t.element_size() for t in tensors)


def test_data_of_ones_own_is_not_asked_for_an_index(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only(monkeypatch, "config", "data")
    for split in ("train", "val"):
        np.arange(2_000, dtype=np.uint16).tofile(tmp_path / f"{split}.bin")
    (tmp_path / "own.yaml").write_text(
        f"data: {{class_path: examples.token_files.TokenFiles, train: {tmp_path}/train.bin, "
        f"val: {tmp_path}/val.bin, vocab_size: 2000, block_size: 16, batch_size: 2}}\n"
        f"run_dir: {tmp_path}/run\ntrainer: {{max_steps: 100}}"
    )
    doctor(config=[tmp_path / "own.yaml"], allow=["examples"])
    (line,) = capsys.readouterr().out.splitlines()[:-1]
    assert "a run of 100 steps" in line


def test_an_overlay_is_named_with_what_to_type_and_then_read_with_its_base(
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    only(monkeypatch, "config")
    monkeypatch.chdir(tmp_path)  # where data/sotu-tiny is not prepared
    base, more = tmp_path / "base.yaml", tmp_path / "more; x.yaml"
    base.write_text(f"data: {{path: {corpus}, block_size: 16, batch_size: 2}}")
    more.write_text("trainer: {max_steps: 100}\nmodel: {optimizer: {init_args: {betas: [0.9, 2]}}}")
    with pytest.raises(UserError):
        doctor(config=[more])
    hint, problem, net, *_ = capsys.readouterr().out.splitlines()
    assert hint.startswith(f"! config      --config '{more}' names no data: an overlay?")
    assert hint.endswith(f"doctor --config configs/quickstart.yaml --config '{more}'")
    assert (problem[:8], net[:5]) == ("✗ config", "! net")
    more.write_text("trainer: {max_steps: 100}")
    doctor(config=[base, more])
    (line, _) = capsys.readouterr().out.splitlines()
    assert line == f"✓ config      {base}, {more}: a run of 100 steps"
