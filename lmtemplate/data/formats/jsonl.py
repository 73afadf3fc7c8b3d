"""A file of JSON lines -> one document for each line, its text in one field."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lmtemplate.data.corpus import Document
from lmtemplate.errors import DataError


def _parse(line: bytes, field: str) -> str:
    """The text of a line. Raises ValueError, with what the line is instead."""
    try:
        row = json.loads(line)
        if isinstance(row, dict) and isinstance(text := row.get(field), str):
            text.encode()  # refuses lone surrogates, which JSON can spell
            return text
    except (ValueError, RecursionError) as error:
        like = f'{{"{field}": "..."}}'
        raise ValueError(f"is not valid JSON ({error}), an object such as {like}") from error
    fields = row.items() if isinstance(row, dict) else [("no JSON object", row)]
    found = ", ".join(f"{key} ({type(value).__name__})" for key, value in fields) or "nothing"
    raise ValueError(f"has no text under {field!r}, but {found}; name the field with --text_field")


def read_jsonl(
    path: Path, text_field: str = "text", bad_lines: Counter[str] | None = None
) -> Iterator[Document]:
    bad = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                if not line.isspace():
                    yield Document(path.name, [_parse(line, text_field)])
            except ValueError as error:
                if bad_lines is None:
                    skip = "leave such lines out with --skip_bad_lines true"
                    raise DataError(f"{path}: line {number} {error}; {skip}") from error
                bad += 1
    if bad_lines is not None:
        bad_lines[str(path)] = bad
