"""Plain text: nothing lost, nothing changed, mistakes named by file and line."""

import gzip
import re
import tracemalloc
from pathlib import Path

import pytest

from lmtemplate.data.corpus import open_corpus
from lmtemplate.data.formats import text as plain
from lmtemplate.data.train_tokenizer import train_tokenizer
from lmtemplate.errors import DataError
from tests.data.corpora import texts, write

MIXED = "Grüße, 世界! 🙂\r\n\r\nword  word\tword\n\n\nend\x00 " * 9


@pytest.mark.filterwarnings("ignore:.* were kept")
@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
def test_pieces_join_to_the_text_wherever_they_are_cut(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "PIECE", size)
    source = write(tmp_path / "text.txt", MIXED)
    assert texts(open_corpus(source, seed=0)) == [MIXED]


def test_cuts_leave_the_tokens_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        "It's 1 o'clock,  and\nall is well.\n\n\n \"Who goes there?\" he said; nobody\t(12 345) \n"
        * 40
    )
    tokenizer = train_tokenizer("bpe", [text], 300)
    source = open_corpus(write(tmp_path / "text.txt", text), seed=0)
    monkeypatch.setattr(plain, "PIECE", 97)
    pieces = [piece for document in source for piece in document.pieces]
    assert len(pieces) > 20
    ids = [number for array in tokenizer.encode(pieces) for number in array.tolist()]
    assert ids == tokenizer.encode([text])[0].tolist()


def test_an_endless_line_needs_little_memory(tmp_path: Path) -> None:
    source = write(tmp_path / "line.txt", b"some words " * 2_000_000)
    tracemalloc.start()
    size = sum(len(piece) for document in open_corpus(source, seed=0) for piece in document.pieces)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 22_000_000
    assert peak < 4_000_000


@pytest.mark.parametrize("size", [1, 5, 10_000])
def test_invalid_utf8_is_said_with_byte_and_line(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = "héllo\nwörld\n".encode()
    source = write(tmp_path / "text.txt", good + b"ab\xffcd\n")
    monkeypatch.setattr(plain, "PIECE", size)
    where = rf"text\.txt: invalid UTF-8 at byte {len(good) + 2} \(0xff\), line 3"
    with pytest.raises(DataError, match=where):
        texts(open_corpus(source, seed=0))


def test_a_character_cut_off_at_the_end_is_invalid(tmp_path: Path) -> None:
    source = write(tmp_path / "text.txt", "ab\né".encode()[:-1])
    with pytest.raises(DataError, match=r"at byte 3 \(0xc3\), line 2"):
        texts(open_corpus(source, seed=0))


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"text", mtime=0), "a gzip file; unpack it first"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "a zstd file; unpack it first"),
        (b"PK\x03\x04\x14\x00", "a packed file; unpack it first"),
        (b"%PDF-1.7\n\xe2", "a PDF file; take the text out"),
        ("text".encode("utf-16"), "UTF-16; save it as UTF-8: iconv -f UTF-16"),
        (b"\xfe\xff\x00t", "UTF-16; save it as UTF-8: iconv -f UTF-16"),
    ],
)
def test_a_file_of_another_format_is_known_by_its_first_bytes(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    source = write(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{name} is {re.escape(kind)}"):
        open_corpus(source, seed=0)


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_a_git_lfs_pointer_is_recognised(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / name, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(DataError, match=rf"{name} is a git-lfs pointer.*git lfs pull"):
        texts(open_corpus(source, seed=0))


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "text.txt", "x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*text\.txt: Permission denied"):
        open_corpus(source, seed=0)
