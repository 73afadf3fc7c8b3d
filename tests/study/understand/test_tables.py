"""Rows of plain values as a table of text: one cell for each kind of value."""

import math

import pytest

from lmtemplate.study.understand.tables import as_lines, as_table, cell, pairs

CELLS = [
    (0.0, "0"),
    (0.12345, "0.1235"),
    (-1.5e-7, "-1.500e-07"),
    (123456.0, "1.235e+05"),
    (math.nan, "–"),
    (None, "–"),
    (1234, "1,234"),
    (" are", "·are"),
    ("\n", "⏎"),
    ("two words", "two words"),
    ([0.5, 2], "0.5, 2"),
    ([[" are", 0.834], ["x", 1e-6], [" is", None]], "·are 83.4%, x 0.0001%, ·is –"),
    ({" is": 0.5}, "·is 50.0%"),
]


@pytest.mark.parametrize(("value", "text"), CELLS)
def test_a_value_is_written_by_its_kind(value: object, text: str) -> None:
    assert cell(value) == text


def test_a_row_without_a_key_leaves_its_column_empty() -> None:
    made = as_table([{"name": "a", "big_value": 1}, {"name": "b"}])
    assert made.head == ("name", "big value")
    assert made.rows == [("a", "1"), ("b", "")]


def test_the_terminal_has_titles_sentences_and_columns_that_line_up() -> None:
    text = as_lines("A run", ["It is so."], {"Numbers": pairs({"one": 1, "eleven": 11})})
    assert text == "A run\n  It is so.\n\nNumbers\n  one     1\n  eleven  11"
