"""The first bytes of a file -> what it is if it is not plain text, and what to type then."""

import csv
import json
import re
from pathlib import Path
from shlex import quote
from typing import Any

from lmtemplate.data import LFS_POINTER
from lmtemplate.errors import DataError

HEAD, TAIL = 2**16, 2**10  # bytes that are looked at
AS_TEXT = "to train on it as it is, add --format text"

JSON_ROWS = 'python3 -c "import csv, json, sys; [print(json.dumps(r)) for r in {rows}]" < {path}'
TO_ROWS = "> rows.jsonl, then --input rows.jsonl --text_field NAME"
PARQUET = """python3 -c "import pandas, sys; pandas.read_parquet(sys.argv[1]).to_json(sys.stdout, \
orient='records', lines=True)" {path}"""
BINARY: dict[bytes | tuple[bytes, ...], str] = {  # first bytes -> what, and what to do
    LFS_POINTER: "a git-lfs pointer, not the text itself; type: git lfs pull",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    (b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf"): "a packed file; unpack it first",
    b"%PDF-": "a PDF file; take the text out of it first",
    b"\x93NUMPY": "a NumPy file, not text; examples/token_files.py trains on token ids in .npy",
    (b"SQLite format 3", b"\x89HDF", b"ARROW1"): "a database; export its text as JSON lines",
    b"PAR1": f"a Parquet file; type: {PARQUET} {TO_ROWS}",
}
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # seldom in text, everywhere in UTF-16
JSON = re.compile(
    r'\s*[\[{](?:"(?:[^"\\]|\\.)*+"|[\[\]{}:,\s]|-?\d[\d.eE+-]*|true|false|null)*+', re.DOTALL
)
ROOT = re.compile(r"\s*(?:<!--.*?-->\s*)*+<([?!]?[a-z][\w:.-]*+)[^<>]*>", re.IGNORECASE | re.DOTALL)
COLUMN = re.compile(r"[^\W\d][\w .#/()-]{0,39}")  # the name of one, in a table's first line


def wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, which no mark tells, by the commonest characters of texts."""
    found = dict[str, int]()
    for codec, width in (("UTF-32LE", 4), ("UTF-32BE", 4), ("UTF-16LE", 2), ("UTF-16BE", 2)):
        text = head[: len(head) // 4 * 4].decode(codec, "ignore")
        common = sum(text.count(character) for character in " \r\n,.，。、")
        if len(text) * width > 0.9 * len(head) and common > len(text) / 100:
            found[codec] = common
    return max(found, key=found.__getitem__, default=None)


def binary_kind(head: bytes, guess: bool = True) -> str | None:
    """What a file is that is no text in UTF-8, and what to do with it, by its first bytes.

    Without `guess` only if it says so itself, with a mark of its format.
    """
    for start, what in BINARY.items():
        if head.startswith(start):
            return what
    codec = None
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        codec = "UTF-32"
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")):
        codec = "UTF-16"
    elif guess and 4 * len(CONTROL.findall(head)) > len(head):
        codec = wide_encoding(head)
        if not codec:
            return f"no plain text, but full of control characters; {AS_TEXT}"
    return codec and f"{codec}; save it as UTF-8: iconv -f {codec} -t UTF-8 {{path}} > utf8.txt"


def _json_kind(lines: list[str]) -> str:
    try:
        row: Any = json.loads(lines[0])
    except (ValueError, RecursionError):  # a first line longer than the head is one row, at most
        row = {} if len(lines) == 1 and lines[0].startswith("{") else None
    if not isinstance(row, dict):
        return f"JSON; type: {JSON_ROWS} {TO_ROWS}".replace("{rows}", "json.load(sys.stdin)")
    texts = [(len(value), key) for key, value in row.items() if isinstance(value, str)]
    field = max(texts, default=(0, "NAME"))[1]
    named = quote(field).replace("{path}", "NAME")  # `check` puts the file's name there
    return f"JSON lines; add --format jsonl --text_field {named}"


def _is_table(lines: list[str], delimiter: str, named: bool) -> bool:
    """Whether all lines have as many cells as the first one, which names them, or are numbers."""
    quotes = None if delimiter == "\t" else '"'
    try:
        first, *rows = csv.reader(lines, delimiter=delimiter, quotechar=quotes)
    except (csv.Error, ValueError):
        return False
    cells = [cell for row in rows for cell in row[1:]]
    spaced = sum(cell[:1].isspace() for cell in cells)  # as in a sentence, behind a comma
    numbers = sum(cell.strip().lstrip("+-").replace(".", "", 1).isdigit() for cell in cells)
    headed = len(set(first)) == len(first) and all(map(COLUMN.fullmatch, first))
    likely = named or (headed and 5 * spaced <= len(cells)) or 2 * numbers > len(cells)
    even = sum(len(row) == len(first) for row in rows) >= 0.9 * len(rows)  # people make mistakes
    many = len(first) > 1 and len(rows) > 1 and any(row[-1:] != [""] for row in rows)
    return many and likely and (even or named)


def syntax_kind(text: str, end: str, whole: bool, suffix: str) -> str | None:
    """What a text is that begins and ends so, if it is syntax above all, and what to type."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not whole and len(lines) > 1:
        lines.pop()  # it may be cut
    if tokens := JSON.match(text):
        rest = text[tokens.end() :]
        if not rest or (not whole and re.match(r'"|-?\w{0,5}$', rest)):  # cut in a string or word
            return _json_kind(lines)
    if root := ROOT.match(text):
        name, close = root[1].lower(), f"</{root[1]}>"
        alone = text.count(close) == whole and end.rstrip().endswith(close)
        if alone or name in ("?xml", "!doctype", "html"):
            return "XML or HTML; take the text out: pandoc -t plain -o plain.txt {path}"
    letters = "".join(line for line in lines if not line.startswith(">"))
    if re.match(r">\S", text) and re.fullmatch(r"[A-Z*-]+|[a-z*-]+", letters):
        return "FASTA; add --format examples.fasta.read --allow examples --tokenizer char"
    for delimiter in "\t,;":
        if _is_table(lines, delimiter, named=suffix in (".csv", ".tsv")):
            rows = f"csv.DictReader(sys.stdin, delimiter={delimiter!r})"
            return f"a table; type: {JSON_ROWS} {TO_ROWS}".replace("{rows}", rows)
    return None


def check(path: Path, prose: bool = True, guess: bool = True) -> None:
    """Raises DataError, with what to type, for a file that is no text, and OSError.

    `prose` refuses tables, JSON, XML and FASTA too, all but prose and code; `guess` what is full of
    control characters.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, path.stat().st_size - TAIL))
        end = file.read(TAIL).decode(errors="ignore")
    what = binary_kind(head, guess)
    if prose and not what:
        text, suffix = head.decode("utf-8-sig", "ignore"), path.suffix.lower()
        what = syntax_kind(text, end, len(head) < HEAD, suffix)
        what = what and f"{what}; {AS_TEXT}"
    if what:
        raise DataError(f"{path} is " + what.replace("{path}", quote(str(path))))
