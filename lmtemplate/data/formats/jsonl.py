"""A file of JSON lines -> one document for each line, its text in one field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmtemplate.data.corpus import Document
from lmtemplate.data.formats.text import invalid_utf8, open_text
from lmtemplate.errors import DataError

SUFFIXES = (".jsonl",)


def _no_text(row: Any, field: str) -> str:
    if not isinstance(row, dict):
        return f"has no text under {field!r} (it is no JSON object)"
    if field not in row:
        return f"has no text under {field!r} (it has {', '.join(row)})"
    kind = "null" if row[field] is None else type(row[field]).__name__
    return f"has {kind} under {field!r}, not text"


def _parse(path: Path, line: bytes, number: int, offset: int, field: str) -> str:
    """The text of line `number`, which begins at this offset of its file. Raises DataError."""
    try:
        row = json.loads(line.decode())
        text = row[field] if isinstance(row, dict) and field in row else None
        if isinstance(text, str):
            text.encode()  # refuses lone surrogates, which JSON can spell
            return text
    except UnicodeDecodeError as error:
        raise invalid_utf8(path, offset + error.start, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: line {number} is not valid JSON ({error}); "
            f'each line is to be an object such as {{"{field}": "..."}}'
        ) from error
    problem = _no_text(row, field)
    raise DataError(f"{path}: line {number} {problem}; name the field with --text_field")


def read(path: Path, text_field: str = "text") -> Iterator[Document]:
    with open_text(path) as file:
        offset = file.tell()
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                text = _parse(path, line, number, offset, text_field)
                yield Document(f"{path.name}:{number}", [text])
            offset += len(line)
