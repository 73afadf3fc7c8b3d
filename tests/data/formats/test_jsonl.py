"""JSON lines: a document each, or the line that is wrong."""

import json
from pathlib import Path

import pytest

from lmtemplate.data.corpus import open_corpus
from lmtemplate.errors import DataError
from tests.data.corpora import texts, write


def test_a_line_of_jsonl_is_a_document(tmp_path: Path) -> None:
    rows = ["first\nline", "zweite 🙂", "a" * 50]
    lines = [json.dumps({"id": 1, "body": row}) for row in rows]
    source = write(tmp_path / "rows.jsonl", "\n\n".join(lines))
    found = open_corpus(source, seed=0, text_field="body")
    assert len(found.texts) == 3
    assert texts(found) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"line 2 is not valid JSON"),
        (
            b'{"body": "x", "id": 3}',
            r"line 2 has no text under 'text', but body \(str\), id \(int\); name .*--text_field",
        ),
        (b'{"text": null}', r"line 2 has no text under 'text', but text \(NoneType\)"),
        (b'{"text": ["x"]}', r"line 2 has no text under 'text', but text \(list\)"),
        (b'["x"]', r"line 2 has no text under 'text', but no JSON object"),
        (b'{"text": "\\ud83d"}', r"line 2 is not valid JSON .*surrogates"),
        (b'{"text": "\xe9"}', r"line 2 is not valid JSON .*0xe9 in position 10"),
        (b"[" * 100_000, r"line 2 is not valid JSON"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"rows\.jsonl: {message}"):
        texts(open_corpus(source, seed=0))
