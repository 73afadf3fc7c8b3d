"""Pipes, devices and endless files -> one line in no time, wherever a plain file is expected."""

import errno
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from lmtemplate.__main__ import LOG, log_crash
from lmtemplate.checkpoint.files import SUMS
from lmtemplate.checkpoint.files import read as read_checkpoint
from lmtemplate.cli_words import read_config
from lmtemplate.data.prepare import prepare
from lmtemplate.data.shard_writer import new_folder
from lmtemplate.data.tokenizer import load_tokenizer
from lmtemplate.errors import CheckpointError, ConfigError, DataError, UserError
from lmtemplate.generate import read_prompts
from lmtemplate.plain_file import at_home, read_plain
from lmtemplate.record import LINES, Writer
from lmtemplate.run_dir import folder_of, lock, read_json
from tests.faults.spy import within

NAMES = "abcdefghij"
MERGES = "a: &a {k: 1}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}" for before, name in pairwise(NAMES)
)

READERS: dict[str, Callable[[Path], object]] = {
    "config": read_config,
    "config to prepare": lambda path: prepare(for_config=path),
    "tokenizer": load_tokenizer,
    "prompts": lambda path: read_prompts("", path),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("make", [pipe, zeros, sparse])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_never_ends_is_not_read(
    tmp_path: Path, read: Callable[[Path], object], make: Callable[[Path], None]
) -> None:
    make(tmp_path / "file")
    with within(20), pytest.raises(UserError, match=r"plain file|more than"):
        read(tmp_path / "file")


def test_yaml_whose_merges_multiply_is_not_built(tmp_path: Path) -> None:
    """PyYAML copies what `<<` names: nine lines would come to 9^9 keys."""
    config = tmp_path / "config.yaml"
    config.write_text(MERGES)
    with within(20), pytest.raises(ConfigError):
        read_config(config)
    with within(20), pytest.raises(ConfigError):
        prepare(for_config=config)


def test_a_pipe_where_a_run_has_its_files_is_no_file(tmp_path: Path) -> None:
    pipe(tmp_path / "best.json")
    pipe(tmp_path / ".lock")
    with within(20):
        assert read_json(tmp_path / "best.json") == {}
        with lock(tmp_path):
            assert (tmp_path / ".lock").exists()


def test_a_record_that_is_a_pipe_is_replaced(tmp_path: Path) -> None:
    path = folder_of(tmp_path) / LINES
    path.parent.mkdir()
    pipe(path)
    with within(20):
        Writer(tmp_path, first_step=2).append(2, {"loss": 1.0})
    assert path.read_text() == '{"step": 2, "loss": 1.0}\n'


def test_a_pipe_in_the_place_of_the_crash_log_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pipe(tmp_path / LOG)
    start = time.monotonic()
    with within(20):  # whose error would be taken for one of the disk
        assert log_crash(ValueError("x")).startswith("no file")
    assert time.monotonic() - start < 10


def test_a_pipe_where_a_corpus_would_grow_is_not_waited_for(tmp_path: Path) -> None:
    pipe(tmp_path / ".mine.partial")
    with within(20), pytest.raises(FileExistsError), new_folder(tmp_path / "mine"):
        pass


def test_a_folder_that_is_a_loop_of_links_is_an_error_of_the_disk(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"), new_folder(tmp_path / "loop"):
        pass


def test_a_list_of_checksums_without_end_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "step-000000001.ckpt").write_bytes(b"PK")
    sparse(tmp_path / SUMS)
    with within(20), pytest.raises(CheckpointError, match="more than"):
        read_checkpoint(tmp_path / "step-000000001.ckpt")


def test_text_comes_whole_with_its_line_ends_as_python_reads_them(tmp_path: Path) -> None:
    text = "ü" * 1000 + "\r\n"
    (tmp_path / "file").write_bytes(text.encode())
    assert read_plain(tmp_path / "file", most=2002) == text.replace("\r\n", "\n")
    with pytest.raises(OSError, match="more than 500") as large:
        read_plain(tmp_path / "file", most=500)
    assert large.value.errno == errno.EFBIG
    for mistake, read in ((ConfigError, read_config), (DataError, load_tokenizer)):
        with pytest.raises(mistake, match=r"No such file|Is a directory"):
            read(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux has such files")
def test_a_file_of_the_kernel_which_has_no_size_is_empty(tmp_path: Path) -> None:
    """As root, /proc/kmsg would be waited for, and an error of /proc/self/mem has no name."""
    link = tmp_path / "tokenizer.json"
    link.symlink_to("/proc/self/mem")
    assert read_plain(link) == ""
    words = {"output": tmp_path / "data", "tokenizer": str(link)}
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be used"):
        prepare("grammar:9", **words)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="holds no text: it is empty"):
        prepare(str(link), **words | {"tokenizer": "byte"})  # type: ignore[arg-type]


def test_a_tilde_is_the_user_s_home_and_a_name_that_nobody_has_is_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert at_home("~/runs/a") == Path("/home/me/runs/a")
    assert at_home("~no-such-user/a") == Path("~no-such-user/a")
