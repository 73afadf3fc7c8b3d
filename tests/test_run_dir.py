"""Texts and dictionaries -> files of a run directory, whole or not at all."""

import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtemplate.errors import ConfigError, DiskError, LockedError
from lmtemplate.run_dir import (
    git_state,
    lock,
    manifest,
    read_json,
    refuse_links,
    say_once,
    to_json,
    write_json,
    write_manifest,
    write_text,
)


def test_half_a_surrogate_pair_costs_a_character_and_not_the_file(tmp_path: Path) -> None:
    write_text(tmp_path / "page", "a\ud800b")
    assert (tmp_path / "page").read_text() == "a?b"


def test_a_text_reads_back_as_it_was_written(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "größer\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "größer\n"


def test_writing_leaves_no_other_file_behind(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    write_text(tmp_path / "a.txt", "y")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"a\.txt: No space left on device"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot open folders")
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_told_once_and_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    sync = os.fsync

    def files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    say_once.cache_clear()
    monkeypatch.setattr(os, "fsync", files_alone)
    for folder in ("a", "a", "b"):
        write_text(tmp_path / folder / "text", "x")
    assert (tmp_path / "b" / "text").read_text() == "x"
    assert capsys.readouterr().out.count("cannot sync folders") == 1


@pytest.mark.parametrize(
    ("number", "text"), [(math.nan, ".nan"), (math.inf, ".inf"), (-math.inf, "-.inf")]
)
def test_numbers_that_json_does_not_know_are_written_as_yaml_spells_them(
    tmp_path: Path, number: float, text: str
) -> None:
    write_json(tmp_path / "a.json", {"losses": [1.5, number]})
    assert read_json(tmp_path / "a.json") == {"losses": [1.5, text]}


def test_a_dictionary_reads_back_as_it_was_written(tmp_path: Path) -> None:
    content = {"loss": 1.5, "best": None, "steps": [1, 2]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


def test_what_is_missing_reads_as_nothing(tmp_path: Path) -> None:
    assert read_json(tmp_path / "a.json") == {}


@pytest.mark.parametrize("text", ["[]", "", "{", "[" * 100_000, "9" * 5000, "\udcff{}"])
def test_what_is_damaged_reads_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert read_json(tmp_path / "a.json") == {}


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_and_whether_it_was_changed_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    assert git_state(tmp_path) == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["dirty"] is True


def test_outside_a_repository_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_state() == {"commit": None, "dirty": None}


def test_the_manifest_holds_code_versions_machine_and_data() -> None:
    content = manifest(7, {"device": "cpu"}, {"fingerprint": "ab"})
    assert content["seed"] == 7
    assert content["hardware"] == {"device": "cpu"}
    assert content["data"] == {"fingerprint": "ab"}
    assert content["versions"]["torch"] == version("torch")
    assert content["versions"]["lightning"] == version("lightning")
    assert content["started"].endswith("+00:00")
    assert {"command", "git", "python", "platform"} <= content.keys()


def test_a_resumed_run_keeps_its_first_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"started": "monday", "git": 1, "seed": 1})
    for day, step in (("tuesday", 5), ("wednesday", 9)):
        start = {"step": step, "changed": {"lr": [1, 2]}}
        write_manifest(tmp_path, {"started": day, "command": [day], "git": 2, "seed": 3}, start)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert (content["started"], content["git"], content["seed"]) == ("monday", 1, 1)
    assert [(r["started"], r["command"], r["step"]) for r in content["resumed"]] == [
        ("tuesday", ["tuesday"], 5),
        ("wednesday", ["wednesday"], 9),
    ]


def test_a_new_run_overwrites_the_manifest_of_one_that_never_saved(tmp_path: Path) -> None:
    write_manifest(tmp_path, {"started": "monday", "git": 1})
    write_manifest(tmp_path, {"started": "tuesday", "git": 2})
    assert read_json(tmp_path / "manifest.json") == {"started": "tuesday", "git": 2}


HOLDS = """
import os, sys, time
from pathlib import Path
from typing import Any
from lmtemplate.run_dir import lock
held = lock(Path(sys.argv[1]))
held.__enter__()
os.write(1, b"locked\\n")
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of `tmp_path`."""
    words = [sys.executable, "-c", HOLDS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    yield child
    child.kill()
    child.communicate()


needs_locks = pytest.mark.skipif(os.name == "nt", reason="Windows has other locks")


@needs_locks
def test_a_directory_in_use_is_refused_with_who_has_it(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(LockedError, match=f"is in use by pid {holder.pid} on host .* since 20"):
        lock(tmp_path).__enter__()


@needs_locks
def test_the_lock_of_a_killed_process_is_taken_over_with_a_notice(
    tmp_path: Path, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    holder.kill()
    holder.wait()
    with lock(tmp_path):
        assert f"taking over {tmp_path} from pid {holder.pid}" in capsys.readouterr().out


def test_a_released_lock_leaves_nothing_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with lock(tmp_path):
            pass
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.iterdir())


@needs_locks
def test_a_forked_process_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    """As a data worker that outlives the training process."""
    script = HOLDS.replace("os.write", "os.fork(); os.write")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", script, str(tmp_path)]
    parent = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert parent.stdout is not None
    try:
        assert [parent.stdout.readline() for _ in range(2)] == ["locked\n"] * 2
        parent.kill()
        parent.wait()
        with lock(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"pid {os.getpid()} ")
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()


@needs_locks
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_told_once_and_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    import fcntl

    def missing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", missing)
    with lock(tmp_path):
        pass
    assert capsys.readouterr().out.count("its file system has no locks") == 1


@needs_locks
def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("text")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(DiskError, match="cannot write"):
        lock(tmp_path / "run").__enter__()
    assert (tmp_path / "precious").read_text() == "text"


def test_a_folder_that_cannot_be_listed_may_hide_a_link_and_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "hidden").mkdir(parents=True)
    refuse_links(tmp_path / "run")
    refuse_links(tmp_path / "new")
    list_folder = os.scandir

    def forbid(path: Any) -> Any:
        if str(path).endswith("hidden"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(ConfigError, match="hidden cannot be listed: Permission denied"):
        refuse_links(tmp_path / "run")


def test_links_that_lead_to_each_other_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name, other in (("loop", "loop"), ("a", "b"), ("b", "a")):
        (tmp_path / "run" / name).symlink_to(other)
    refuse_links(tmp_path / "run")


def test_json_is_strict_whatever_it_holds() -> None:
    text = to_json({"a": math.nan, "b": [math.inf, -math.inf], "c": np.float32(1)}, None, float)
    assert text == '{"a": ".nan", "b": [".inf", "-.inf"], "c": 1.0}'
