"""A file of plain text in UTF-8 -> one document, streamed."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lmtemplate.data.corpus import Document
from lmtemplate.data.shards import LFS_POINTER
from lmtemplate.errors import DataError

PIECE = 2**18  # bytes read at a time: memory stays bounded, however long a line is
# A lone whitespace between two words: common tokenizers begin a new token there.
# The pattern is greedy, so it finds the last one of a text.
LAST_GAP = re.compile(r".*\w(?=\s\w)", re.DOTALL)

# First bytes of files that are not UTF-8 text -> what they are, and what to do.
NOT_TEXT: dict[bytes | tuple[bytes, ...], str] = {
    LFS_POINTER: "a git-lfs pointer, not the text itself; type: git lfs pull",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"PK\x03\x04": "a zip file; unpack it first",
    b"%PDF-": "a PDF file; take the text out of it first",
    (b"\xff\xfe", b"\xfe\xff"): "UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
}


def open_text(path: Path) -> BinaryIO:
    """Open a file at its first character, behind a byte-order mark. DataError if it is no text."""
    try:
        file = path.open("rb")
        head = file.read(len(LFS_POINTER))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    for start, what in NOT_TEXT.items():
        if head.startswith(start):
            file.close()
            raise DataError(f"{path} is {what}")
    file.seek(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)
    return file


def invalid_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> DataError:
    """Name the byte at this offset of the file and, by reading the file again, its line."""
    line = 1
    with path.open("rb") as file:
        for start in range(0, offset, PIECE):
            line += file.read(min(PIECE, offset - start)).count(b"\n")
    return DataError(
        f"{path}: invalid UTF-8 at byte {offset} (0x{error.object[error.start]:02x}), line {line}; "
        f"save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.txt"
    )


def _pieces(path: Path) -> Iterator[str]:
    """The text, cut where its tokens stay the same; without such a place, anywhere."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with open_text(path) as file:
        rest, chunk = "", b"-"
        while chunk:
            chunk = file.read(PIECE)
            pending = len(decoder.getstate()[0])
            try:
                rest += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = file.tell() - len(chunk) - pending + error.start
                raise invalid_utf8(path, offset, error) from error
            gap = LAST_GAP.match(rest) if chunk else None
            end = gap.end() if gap else len(rest)
            if end:
                yield rest[:end]
            rest = rest[end:]


def read_text(path: Path) -> Iterator[Document]:
    yield Document(path.name, _pieces(path))
