"""Sources of text -> documents: which files are read, in which order, by which reader."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmtemplate.data import corpus
from lmtemplate.data.corpus import open_corpus
from lmtemplate.errors import ConfigError, DataError
from tests.data.corpora import texts, write


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "text.txt", "text")

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=rf"cannot read {tmp_path}: Permission denied"):
        open_corpus(str(tmp_path), seed=0)


def test_folders_in_each_other_without_end_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(*_: object, **__: object) -> None:  # as Python 3.11 does, a thousand levels below
        raise RecursionError

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(DataError, match=f"{tmp_path} nests its folders too deep"):
        open_corpus(str(tmp_path), seed=0)


def test_a_folder_gives_its_visible_text_files_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "deep/er/c.TXT", ".git/d.txt", ".hidden.txt", "e.pdf"):
        write(tmp_path / name, name)
    write(tmp_path / "z.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    found = open_corpus(str(tmp_path), seed=0)
    assert texts(found) == ["a.md", "b.txt", "deep/er/c.TXT", "one", "two"]
    assert [document.name for document in found][-2:] == ["z.jsonl", "z.jsonl"]
    assert len(found.texts) == 5


def test_a_folder_without_text_says_what_would_be_text(tmp_path: Path) -> None:
    write(tmp_path / "a.pdf", "x")
    with pytest.raises(DataError, match=r"no text file \(\.jsonl .*\.txt .*give a pattern"):
        open_corpus(str(tmp_path), seed=0)


def test_a_pattern_takes_files_of_any_kind(tmp_path: Path) -> None:
    for name in ("a.tex", "deep/b.tex", "c.txt"):
        write(tmp_path / name, name)
    assert texts(open_corpus(str(tmp_path / "**/*.tex"), seed=0)) == ["a.tex", "deep/b.tex"]


@pytest.mark.filterwarnings("ignore:.*byte-order mark")
@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff"])
def test_a_file_without_text_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt holds no text"):
        open_corpus(write(tmp_path / "nothing.txt", content), seed=0)


def test_a_misspelt_preset_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean 'sotu-tiny'"):
        open_corpus("sotu_tiny", seed=0)


def test_the_signature_changes_with_the_files_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    before = open_corpus(str(tmp_path), seed=0).signature
    assert open_corpus(str(tmp_path), seed=1).signature == before
    write(tmp_path / "b.txt", "two")
    assert open_corpus(str(tmp_path), seed=0).signature != before


def test_a_format_can_be_named_for_files_of_any_suffix(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.data", '{"text": "one"}\n{"text": "two"}\n')
    assert texts(open_corpus(source, seed=0, format="jsonl")) == ["one", "two"]
    assert len(open_corpus(source, seed=0, format="text").texts) == 1


def test_a_reader_that_yields_plain_strings_is_told_what_to_yield(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "strings_alone.py", "def read(path):\n    yield path.read_text()\n")
    source = write(tmp_path / "text.txt", "text")
    with pytest.raises(
        ConfigError, match=r"strings_alone.read yields no Document\(name, \[text\]\)"
    ):
        open_corpus(source, seed=0, format="strings_alone.read", allow=["strings_alone"])


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("jsnl", "no format 'jsnl'; there are jsonl, text"),
        (
            "theirs.read",
            "--format: theirs.read is of a package that is not allowed; add --allow th",
        ),
        ("lmtemplate.run_dir.write_text", "no format 'lmtemplate.run_dir.write_text'; there are"),
        ("mine.nothing.read", "--format: cannot import 'mine.nothing.read'"),
    ],
)
def test_a_format_that_cannot_be_used_is_named(format: str, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "text.txt", "text")
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_corpus(source, seed=0, format=format, allow=["mine"])


def test_formats_can_be_deleted_and_text_is_still_prepared(tmp_path: Path) -> None:
    package = Path(corpus.__file__).parents[1]
    copy = shutil.copytree(package, tmp_path / package.name)
    for deleted in ("jsonl", "sotu", "grammar"):
        (copy / "data/formats" / f"{deleted}.py").unlink()
    write(tmp_path / "text.txt", "some text " * 50)
    program = (
        f"from {package.name}.data import corpus, prepare; from pathlib import Path\n"
        "assert corpus.__file__.startswith(str(Path.cwd()))\n"
        "prepare.prepare('text.txt', Path('data'), 'byte')"
    )
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "data/train_000000.bin").stat().st_size > 1024


def test_links_to_folders_are_followed_and_no_file_comes_twice(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/far.txt", "far")
    for name in ("a", "deep/b"):
        write(tmp_path / f"books/{name}.txt", name)
    for link, target in (("deep/up", ".."), ("up", "."), ("far", "../elsewhere")):
        (tmp_path / "books" / link).symlink_to(target)  # two of these lead around
    (tmp_path / "books/hard.txt").hardlink_to(tmp_path / "books/a.txt")
    (tmp_path / "books/soft.txt").symlink_to("a.txt")
    for source in ("books", "books/**/*.txt", "books/**", "*/**/[a-z]*.txt"):
        found = open_corpus(str(tmp_path / source), seed=0)
        assert sorted(texts(found)) == ["a", "deep/b", "far"], source
        assert found.left_out["further names of a file"] >= 2


def test_what_a_folder_leaves_out_is_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.PDF", "c.pdf", "Makefile", ".hidden.txt", ".git/config"):
        write(tmp_path / name, name)
    write(tmp_path / "empty.txt", "")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    found = open_corpus(str(tmp_path), seed=0)
    assert texts(found) == ["a.txt"]
    assert {what: count for what, count in found.left_out.items() if count} == {
        "hidden": 2,
        ".pdf": 2,
        "without suffix": 1,
        "empty": 1,
        "broken links or devices": 1,
    }


@pytest.mark.parametrize("name", ["log.txt", "log.jsonl"])
def test_a_text_that_grows_while_it_is_read_is_named(name: str, tmp_path: Path) -> None:
    line = '{"text": "A line."}\n'
    path = Path(write(tmp_path / name, line * 9))
    found = open_corpus(str(path), seed=0, format=name.replace("log.txt", "text")[-5:].strip("."))
    documents = iter(found)
    next(documents)
    path.write_text(line * 99)
    with pytest.raises(DataError, match="changed while it was read"):
        list(documents)


def test_the_copies_of_a_text_have_its_number(tmp_path: Path) -> None:
    for name, text in zip("abcdef", ("one", "two", "one", "three", "two", "one"), strict=True):
        write(tmp_path / f"{name}.txt", text)
    found = open_corpus(str(tmp_path), seed=0)
    assert found.texts.tolist() == [0, 1, 0, 2, 1, 0]
    assert found.copies == 3
