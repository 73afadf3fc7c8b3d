"""Rows of plain values, as `--json` prints them -> the same rows as a table of text.

Verbs print these tables in the terminal, and draw them on their pages.
"""

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lmtemplate.study.show.page import NONE, table_lines

LINE_WIDTH = 110  # characters of a sentence in the terminal
Row = Mapping[str, Any]  # head of a column -> value
Found = dict[str, Any]  # all that a verb has found, as `--json` prints it


class TextTable(NamedTuple):
    """Heads of the columns, which may be none, and what stands in them."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def shown_token(text: str) -> str:
    """A token in which spaces and line ends can be seen."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def share_of(value: float) -> str:
    return f"{value:.1%}" if value >= 1e-3 else f"{100 * value:.2g}%"


def cell(value: Any) -> str:
    """Text as it is; about four digits of a number; of tokens with their probabilities, shares."""
    if value is None or value != value:
        return NONE
    if isinstance(value, float):
        return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return cell([*value.items()])
    if isinstance(value, str):
        token = value != value.strip(" ")
        return shown_token(value) if token else value.replace("\n", "⏎")
    if all(isinstance(one, list | tuple) for one in value):
        return ", ".join(f"{cell(n)} {NONE if p is None else share_of(p)}" for n, p in value)
    return ", ".join(map(cell, value))


def as_table(rows: Iterable[Row]) -> TextTable:
    """One column for each key of the rows; where a row lacks it, nothing stands there."""
    known = [*rows]
    keys = [*dict.fromkeys(key for row in known for key in row)]
    body = [tuple(cell(row[key]) if key in row else "" for key in keys) for row in known]
    return TextTable(tuple(key.replace("_", " ") for key in keys), body)


def pairs(values: Row) -> TextTable:
    """Names beside their values."""
    return TextTable((), [(name.replace("_", " "), cell(value)) for name, value in values.items()])


def as_lines(title: str, notes: Iterable[str], tables: Mapping[str, TextTable]) -> str:
    """What a terminal shows: a title, sentences, tables under their titles."""
    lines, indent = [title], "  "
    for note in notes:
        lines += textwrap.wrap(note, LINE_WIDTH, initial_indent=indent, subsequent_indent=indent)
    for name, table in tables.items():
        rows = [table.head, *table.rows] if table.head else table.rows
        lines += [f"\n{name}", *(f"  {line}" for line in table_lines(rows))]
    return "\n".join(lines)
