"""The first bytes of a file -> what it is if it is not plain text, and what to type then."""

import json
import re
from pathlib import Path
from shlex import quote

from lmtemplate.data import LFS_POINTER
from lmtemplate.errors import DataError

HEAD = 2**16  # bytes that are looked at
AS_TEXT = "to train on it as it is, add --format text"

JSON_ROWS = 'python3 -c "import csv, json, sys; [print(json.dumps(r)) for r in {rows}]" < {path}'
TO_ROWS = "> rows.jsonl, then --input rows.jsonl --text_field NAME"
PARQUET = """python3 -c "import pandas, sys; pandas.read_parquet(sys.argv[1]).to_json(sys.stdout, \
orient='records', lines=True)" {path}"""
ICONV = "{0}; save it as UTF-8: iconv -f {0} -t UTF-8 {{path}} > utf8.txt"
BINARY: dict[bytes | tuple[bytes, ...], str] = {  # first bytes -> what, and what to do
    LFS_POINTER: "a git-lfs pointer, not the text itself; type: git lfs pull",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    (b"PK\x03\x04", b"BZh", b"\xfd7zXZ"): "a zip or other packed file; unpack it first",
    b"%PDF-": "a PDF file; take the text out of it first",
    b"\x93NUMPY": "a NumPy file, not text; examples/token_files.py trains on token ids in .npy",
    (b"SQLite format 3", b"\x89HDF", b"ARROW1"): "a database; export its text as JSON lines",
    b"PAR1": f"a Parquet file; type: {PARQUET} {TO_ROWS}",
    (b"\xff\xfe\0\0", b"\0\0\xfe\xff"): ICONV.format("UTF-32"),
    (b"\xff\xfe", b"\xfe\xff"): ICONV.format("UTF-16"),
}
CONTROL = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]")  # seldom in text, everywhere in UTF-16
MARKUP = re.compile(
    r"\s*(?:<!--.*?-->\s*)*+<(?:\?xml|!doctype|html|\w[^<>]*\sxmlns)\b", re.IGNORECASE | re.DOTALL
)


def syntax_kind(text: str, suffix: str) -> str | None:
    """What a text is that begins so, if it is syntax above all, and what to type."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    try:
        row = json.loads(lines[0])
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        texts = [(len(value), key) for key, value in row.items() if isinstance(value, str)]
        field = max(texts, default=(0, "NAME"))[1]
        return f"JSON lines; add --format jsonl --text_field {quote(field)}"
    if suffix in (".csv", ".tsv", ".json"):
        delimiter = max("\t,;", key=lines[0].count)
        rows = f"csv.DictReader(sys.stdin, delimiter={delimiter!r})"
        what, rows = ("JSON", "json.load(sys.stdin)") if suffix == ".json" else ("a table", rows)
        return f"{what}; type: {JSON_ROWS} {TO_ROWS}".replace("{rows}", rows)
    if MARKUP.match(text):
        return "XML or HTML; take the text out, for example: pandoc -t plain -o plain.txt {path}"
    letters = "".join(line for line in lines if not line.startswith(">"))
    if re.match(r">\S", text) and re.fullmatch(r"[A-Z*-]+|[a-z*-]+", letters):
        return "FASTA; add --format examples.fasta.read --allow examples --tokenizer char"
    return None


def check(path: Path, format: str | None = None) -> None:
    """Raises DataError, with what to type, for a file that is not of this format, and OSError.

    Without a format for all but prose and code: for tables, JSON, XML, FASTA.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    what = next((what for start, what in BINARY.items() if head.startswith(start)), None)
    if not what and format != "text" and 4 * len(CONTROL.findall(head)) > len(head):
        what = f"no plain text, but full of control characters; save it as UTF-8, or, {AS_TEXT}"
    if not what and not format:
        what = syntax_kind(head.decode("utf-8-sig", "ignore"), path.suffix.lower())
        what = what and f"{what}; {AS_TEXT}"
    if what:
        raise DataError(f"{path} is {what}".replace("{path}", quote(str(path))))
