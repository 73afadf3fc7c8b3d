"""A file of plain text in UTF-8 -> one document, streamed."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import BinaryIO

from lmtemplate.data.content import HEAD, wide_encoding
from lmtemplate.data.corpus import Document
from lmtemplate.errors import DataError

PIECE = 2**18  # bytes read at a time: memory stays bounded, however long a line is
# A lone whitespace between two words: common tokenizers begin a new token there.
# The pattern is greedy, so it finds the last one of a text.
LAST_GAP = re.compile(r".*\w(?=\s\w)", re.DOTALL)


def open_text(path: Path) -> BinaryIO:
    """Open a file at its first character, behind a byte-order mark. Raises DataError."""
    try:
        file = path.open("rb")
        head = file.read(len(codecs.BOM_UTF8))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    file.seek(len(head) if head == codecs.BOM_UTF8 else 0)
    return file


def invalid_utf8(path: Path, offset: int, line: int, error: UnicodeDecodeError) -> DataError:
    """Name the byte at this offset of the file, its line, and how to save the file as UTF-8."""
    with path.open("rb") as file:
        codec = wide_encoding(file.read(HEAD)) or "WINDOWS-1252"
    return DataError(
        f"{path}: invalid UTF-8 at byte {offset} (0x{error.object[error.start]:02x}), line {line}; "
        f"save it as UTF-8, for example: iconv -f {codec} -t UTF-8 {quote(str(path))} > utf8.txt"
    )


def _pieces(path: Path) -> Iterator[str]:
    """The text, cut where its tokens stay the same; without such a place, anywhere."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_text(path) as file:
        rest, chunk, line = "", b"-", 1
        while chunk:
            chunk = file.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                rest += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = file.tell() - len(chunk) - pending + error.start
                line += error.object[: error.start].count(b"\n")
                raise invalid_utf8(path, offset, line, error) from error
            line += chunk.count(b"\n")
            gap = LAST_GAP.match(rest) if chunk else None
            end = gap.end() if gap else len(rest)
            if end:
                yield rest[:end]
            rest = rest[end:]


def read_text(path: Path) -> Iterator[Document]:
    yield Document(path.name, _pieces(path))
