"""A file of JSON lines -> one document for each line, its text in one field."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lmtemplate.data.corpus import Document
from lmtemplate.data.formats.text import invalid_utf8, open_text
from lmtemplate.errors import DataError


def _parse(path: Path, line: bytes, number: int, offset: int, field: str) -> str:
    """The text of line `number`, which begins at this offset of its file. Raises DataError."""
    try:
        row = json.loads(line.decode())
        text = row.get(field) if isinstance(row, dict) else None
        if isinstance(text, str):
            text.encode()  # refuses lone surrogates, which JSON can spell
            return text
    except UnicodeDecodeError as error:
        raise invalid_utf8(path, offset + error.start, number, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: line {number} is not valid JSON ({error}); each line is to be an object "
            f'such as {{"{field}": "..."}}; --skip_bad_lines true leaves others out'
        ) from error
    fields = row.items() if isinstance(row, dict) else [("no JSON object", row)]
    found = ", ".join(f"{key} ({type(value).__name__})" for key, value in fields) or "nothing"
    raise DataError(
        f"{path}: line {number} has no text under {field!r}, but {found}; name the field with "
        "--text_field, or leave such lines out with --skip_bad_lines true"
    )


def read_jsonl(
    path: Path, text_field: str = "text", bad_lines: Counter[str] | None = None
) -> Iterator[Document]:
    with open_text(path) as file:
        offset, bad = file.tell(), 0
        for number, line in enumerate(file, start=1):
            try:
                if not line.isspace():
                    text = _parse(path, line, number, offset, text_field)
                    yield Document(f"{path.name}:{number}", [text])
            except DataError:
                if bad_lines is None:
                    raise
                bad += 1
            offset += len(line)
    if bad_lines is not None:
        bad_lines[str(path)] = bad
