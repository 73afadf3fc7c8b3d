"""Files that are no prose are known by their content; prose, code, poems and chats are taken."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lmtemplate.data.content import HEAD, check, syntax_kind
from lmtemplate.data.corpus import open_corpus
from lmtemplate.errors import DataError
from tests.data.corpora import texts, write

ROWS = [{"id": number, "body": f"A text, number {number}.\n"} for number in range(2000)]
TABLE = "id,body\n" + "".join(f'{row["id"]},"{row["body"].strip()}"\n' for row in ROWS)
AS_JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
SYNTAX = {
    "rows.csv": (TABLE, "a table; type: python3 "),
    "rows.txt": (TABLE.replace(",", ";", 1).replace(',"', ';"'), "a table; type"),
    "uneven.txt": (TABLE + "1,2,3\n", "a table; type"),
    "old.txt": ("<HTML>\n<title>Examples</title>\n<p>Some text.\n", "XML or HTML"),
    "pairs.txt": ("en\tde\n" + "good day\tguten Tag\n" * 9, "a table; type"),
    "rows.data": (json.dumps(ROWS), "JSON; type: python3 "),
    "one.txt": (json.dumps({"rows": ROWS}, indent=1), "JSON; type"),
    "server.log": (AS_JSONL, "JSON lines; add --format jsonl --text_field body"),
    "long.txt": (json.dumps({"text": "words " * 20_000}), "JSON lines; add --format jsonl"),
    "genome.txt": (">one the first\nACGT\nAC\n" * 9, "FASTA; add --format examples.fasta.read"),
    "page.txt": ("<!DOCTYPE html>\n<html><body><p>Some text.</p></body></html>", "XML or HTML"),
    "feed.txt": ("<posts>\n" + "<post>Some words.</post>\n" * 9999 + "</posts>\n", "XML or HTML"),
}


@pytest.mark.parametrize("name", SYNTAX)
def test_a_text_of_syntax_is_refused_with_what_to_type(name: str, tmp_path: Path) -> None:
    content, says = SYNTAX[name]
    source = write(tmp_path / name, content)
    with pytest.raises(DataError, match=rf"{name} is {says}.*add --format text$"):
        open_corpus(source, seed=0)
    assert texts(open_corpus(source, seed=0, format="text")) == [content]


@pytest.mark.parametrize("name", ["rows.csv", "rows.txt", "rows.data"])
def test_the_command_of_the_refusal_makes_json_lines(name: str, tmp_path: Path) -> None:
    if not shutil.which("python3"):
        pytest.skip("no python3 on the path")
    source = write(tmp_path / "my 'rows" / name, SYNTAX[name][0])
    with pytest.raises(DataError) as refused:
        check(Path(source))
    command = str(refused.value).split("type: ")[1].split(", then --input")[0]
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    found = texts(open_corpus(str(tmp_path / "rows.jsonl"), seed=0, text_field="body"))
    assert [text.strip() for text in found] == [row["body"].strip() for row in ROWS]


PROSE = {
    "commas": "When he came, he sat, and spoke.\nWe left, though late, and ate.\n" * 99,
    "one comma a line": "if it rains, we stay\nif it snows, we go\n" * 99,
    "names": "Austen, Jane\nBrontë, Anne\nWoolf, Virginia\n" * 30,
    "markdown": '<p align="center"><img src="x.png"></p>\n\n# Title\n\nSome *text*.\n' * 9,
    "markdown table": "# Results\n\n| a | b |\n| - | - |\n| 1 | 2 |\n",
    "quote": "> He said\n> that it rains.\n\nIt did.\n",
    "irc": "<alice> hello there\n<bob> hi\n" * 99,
    "weechat": "2024-01-01 10:00:00\talice\thello\n2024-01-01 10:00:09\tbob\thi\n" * 99,
    "play": "First Citizen:\nBefore we proceed, hear me.\n\nAll:\nSpeak, speak.\n" * 9,
    "code": "#include <map>\nint main() {\n  f(1,2);\n  g(3,4);\n  return 0;\n}\n" * 9,
    "assembly": "mov eax, ebx\nadd eax, ecx\nsub ebx, eax\n" * 9,
    "php": "<?php\necho '<b>hello</b>';\n" * 9,
    "song": "[Verse 1]\nI walk the line, I walk the line\n\n[Chorus]\nOh, oh\n",
    "notes": '[1] "The first", by Doe.\n[2] "The second", by Roe.\n',
    "list": "1,000 men\n2,000 horses\n",
    "terminal": "\x1b[31mred\x1b[0m and \x1b[32mgreen\x1b[0m\n" * 99,
}


@pytest.mark.parametrize("name", PROSE)
def test_language_and_code_are_no_syntax(name: str, tmp_path: Path) -> None:
    check(Path(write(tmp_path / "text.txt", PROSE[name])))


def test_this_project_is_text() -> None:
    root = Path(__file__).parents[2]
    files = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("lmtemplate/**/*.py")]
    assert len(files) > 50
    for path in files:
        check(path)


WIDE = {
    "latin": "Grüße aus der großen Stadt, sagte er.\n" * 40,
    "cyrillic": "Привет, мир. Как дела?\n" * 40,
    "chinese": "你好，世界。今天天气很好，我们去公园。\n" * 40,
}


@pytest.mark.parametrize("text", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("codec", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
def test_wide_characters_without_a_mark_are_named(codec: str, text: str, tmp_path: Path) -> None:
    source = write(tmp_path / "my text.txt", text.encode(codec))
    with pytest.raises(DataError, match=rf"iconv -f {codec} -t UTF-8 '.*my text\.txt' >"):
        texts(open_corpus(source, seed=0))


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PAR1\x15\x04", "a Parquet file; type: python3 .*read_parquet"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "a NumPy file"),
        (b"\xff\xfe\0\0a\0\0\0", "UTF-32; save it as UTF-8"),
        (bytes(range(32)) * 9, "full of control characters"),
    ],
)
def test_a_binary_file_is_named(start: bytes, kind: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=kind):
        open_corpus(write(tmp_path / "file.txt", start), seed=0)


def test_control_characters_can_be_taken_as_text(tmp_path: Path) -> None:
    source = write(tmp_path / "codes.txt", "\1\2\3" * 99)
    with pytest.raises(DataError, match=r"control characters; .*--format text"):
        open_corpus(source, seed=0)
    assert texts(open_corpus(source, seed=0, format="text")) == ["\1\2\3" * 99]


def test_a_field_that_looks_like_the_place_of_a_path_stays_one_word(tmp_path: Path) -> None:
    lines = json.dumps({"{path}": "some text"}) + "\n"
    with pytest.raises(DataError) as refused:
        check(Path(write(tmp_path / "a;touch x;{path}.txt", lines)))
    assert str(refused.value) == (
        f"{tmp_path}/a;touch x;{{path}}.txt is JSON lines; add --format jsonl "
        "--text_field 'NAME'; to train on it as it is, add --format text"
    )


def test_western_text_of_old_is_still_called_windows_1252(tmp_path: Path) -> None:
    source = write(tmp_path / "old.txt", ("Grüße aus Köln, sagte er.\n" * 40).encode("cp1252"))
    with pytest.raises(DataError, match="iconv -f WINDOWS-1252"):
        texts(open_corpus(source, seed=0))


@pytest.mark.parametrize("text", ["<!-- x -->", "<", '["', '{"a":', '"a",', "a,b\n", ">A\n", "\\"])
def test_what_repeats_without_end_is_judged_in_a_moment(text: str) -> None:
    start = time.process_time()
    for suffix in ("", "!"):
        syntax_kind((text * 70_000)[:HEAD] + suffix, text, whole=False, suffix=".txt")
        syntax_kind("<" + "a" * (HEAD - 1) + suffix, "a", whole=False, suffix=".txt")
    assert time.process_time() - start < 1
