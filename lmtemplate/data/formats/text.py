"""A file of plain text in UTF-8 -> one document, streamed."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from lmtemplate.data.content import HEAD, wide_encoding
from lmtemplate.data.corpus import Document
from lmtemplate.errors import DataError

PIECE = 2**18  # bytes read at a time: memory stays bounded, however long a line is
# A lone whitespace between two words: common tokenizers begin a new token there.
# The pattern is greedy, so it finds the last one of a text.
LAST_GAP = re.compile(r".*\w(?=\s\w)", re.DOTALL)


def invalid_utf8(path: Path, end: int, line: int, error: UnicodeDecodeError) -> DataError:
    """Name the byte, its line, and how to save the file. What was decoded ends at byte `end`."""
    byte = end - len(error.object) + error.start
    with path.open("rb") as file:
        codec = wide_encoding(file.read(HEAD)) or "WINDOWS-1252"
    return DataError(
        f"{path}: invalid UTF-8 at byte {byte} (0x{error.object[error.start]:02x}), line {line}; "
        f"save it as UTF-8, for example: iconv -f {codec} -t UTF-8 {quote(str(path))} > utf8.txt"
    )


def _pieces(path: Path) -> Iterator[str]:
    """The text, cut where its tokens stay the same; without such a place, anywhere."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    with path.open("rb") as file:
        rest, chunk, line = "", b"-", 1
        while chunk:
            chunk = file.read(PIECE)
            try:
                rest += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                raise invalid_utf8(path, file.tell(), line, error) from error
            line += chunk.count(b"\n")
            gap = LAST_GAP.match(rest) if chunk else None
            end = gap.end() if gap else len(rest)
            if end:
                yield rest[:end]
            rest = rest[end:]


def read_text(path: Path) -> Iterator[Document]:
    yield Document(path.name, _pieces(path))
