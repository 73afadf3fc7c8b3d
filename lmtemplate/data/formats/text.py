"""A file of plain text in UTF-8 -> one document, streamed."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from lmtemplate.data.corpus import Document
from lmtemplate.errors import DataError

PIECE = 2**18  # bytes read at a time: memory stays bounded, however long a line is
# A lone whitespace between two words: common tokenizers begin a new token there.
# The pattern is greedy, so it finds the last one of a text.
LAST_GAP = re.compile(r".*\w(?=\s\w)", re.DOTALL)


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
                byte = file.tell() - len(error.object) + error.start
                raise DataError(
                    f"{path}: invalid UTF-8 at byte {byte} (0x{error.object[error.start]:02x}), "
                    f"line {line}; save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 "
                    f"{quote(str(path))} > utf8.txt"
                ) from error
            line += chunk.count(b"\n")
            gap = LAST_GAP.match(rest) if chunk else None
            end = gap.end() if gap else len(rest)
            if end:
                yield rest[:end]
            rest = rest[end:]


def read_text(path: Path) -> Iterator[Document]:
    yield Document(path.name, _pieces(path))
