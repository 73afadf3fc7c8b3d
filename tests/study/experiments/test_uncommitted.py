"""What no commit holds: complete enough for `git apply`, without secrets, and of bounded size."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.study.check import reproduce
from lmtemplate.study.experiments import uncommitted
from lmtemplate.study.experiments.uncommitted import (
    Uncommitted,
    uncommitted_changes,
    without_secrets,
)


def git(*words: str, folder: Path) -> None:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with a committed file, which was changed, and a new one."""
    tree = tmp_path / "tree"
    (tree / "package").mkdir(parents=True)
    (tree / "package" / "net.py").write_text("layers = 2\nheads = 4\n")
    (tree / ".gitignore").write_text("ignored.py\n")
    git("init", folder=tree)
    git("add", ".", folder=tree)
    git("commit", "-m", "first", folder=tree)
    (tree / "package" / "net.py").write_text("layers = 3\nheads = 4\n")
    for name in ("new.py", "ignored.py", "text.txt"):
        (tree / name).write_text(f"name = '{name}'\n")
    return tree


def test_the_commit_and_the_diff_make_the_tree_again(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.diff").write_text(uncommitted_changes(tree / "package"))
    git("clone", str(tree), str(tmp_path / "clone"), folder=tmp_path)
    git("apply", str(tmp_path / "kept.diff"), folder=tmp_path / "clone")
    for name in ("package/net.py", "new.py"):
        assert (tmp_path / "clone" / name).read_text() == (tree / name).read_text()
    assert not (tmp_path / "clone" / "text.txt").exists()  # a corpus, as a rule
    git("add", "new.py", folder=tree)
    git("commit", "-am", "second", folder=tree)
    assert uncommitted_changes(tree) == ""
    assert uncommitted_changes(tmp_path) == ""  # no repository


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ('+api_key = "abcdefgh12"', '+api_key = "***"'),
        ("+  wandb: {'api_key': 'abcdefgh12'}", "+  wandb: {'api_key': '***'}"),
        ("+password: correcthorse4battery", "+password: ***"),
        ("+export HF_TOKEN=abcdefgh12345678", "+export HF_TOKEN=***"),
        ("+login('hf_abcdefgh1234567890')", "+login('***')"),
        ('+eos_token = "<endoftext>"', '+eos_token = "<endoftext>"'),
        ("+tokens = tokenizer.encode(text)", "+tokens = tokenizer.encode(text)"),
    ],
)
def test_secrets_are_hidden_and_code_stays(line: str, hidden: str) -> None:
    assert without_secrets(line) == hidden


def trainer(run: Path, step: int = 0) -> Any:
    run.mkdir(exist_ok=True)
    return SimpleNamespace(is_global_zero=True, default_root_dir=str(run), global_step=step)


def test_the_first_start_is_kept_and_a_later_one_only_where_it_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = iter(["one\n", "one\n", "two\n", ""])
    monkeypatch.setattr(uncommitted, "uncommitted_changes", lambda: next(changes))
    keep, run = Uncommitted(), tmp_path / "run"
    for step in (0, 5, 9):
        keep.on_train_start(trainer(run, step), None)  # type: ignore[arg-type]
    assert {path.name: path.read_text() for path in run.iterdir()} == {
        "uncommitted.diff": "one\n",
        "uncommitted-9.diff": "two\n",
    }
    keep.on_train_start(trainer(run), None)  # type: ignore[arg-type]
    assert not (run / "uncommitted.diff").exists()


def test_changes_that_are_too_large_are_not_kept_but_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(uncommitted, "uncommitted_changes", lambda: "x" * 11)
    Uncommitted(most_bytes=10).on_train_start(trainer(tmp_path), None)  # type: ignore[arg-type]
    assert "11 bytes of uncommitted changes: not kept" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"uncommitted\.most_bytes=-1"):
        Uncommitted(most_bytes=-1)


def test_reproduce_names_the_changes_unless_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uncommitted, "uncommitted_changes", lambda: "one\n")
    (tmp_path / "uncommitted.diff").write_text("one\n")
    assert reproduce.other_changes(tmp_path, "0123abc") == []
    (tmp_path / "uncommitted.diff").write_text("two\n")
    (said,) = reproduce.other_changes(tmp_path, "0123abc")
    assert f"git checkout 0123abc; git apply {tmp_path}/uncommitted.diff" in said
