"""docs/lessons.md against the code: every row is there once, and what it names is there."""

import ast
import functools
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from lmtemplate.__main__ import VERBS

PACKAGE = "lmtemplate"
ROOT = Path(__file__).parents[1]
COUNTS = {"A": 31, "C": 9, "D": 14, "F": 9, "G": 14}

PAGE = (ROOT / "docs/lessons.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| [A-Z]\d", line)
]


def code(cell: str) -> list[str]:
    """What stands in code font."""
    return re.findall(r"`([^`]+)`", cell)


@functools.cache
def functions(path: Path) -> set[str]:
    """Names of the functions that a file defines."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


@functools.cache
def names() -> set[str]:
    """Every name, file and metric that is spelled out in the package, or in what runs leave."""
    paths = [*(ROOT / PACKAGE).rglob("*.py"), ROOT / "docs/runs.md"]
    return set(re.findall(r"[\w./]*\w", "\n".join(path.read_text("utf-8") for path in paths)))


def flags_of(verb: str) -> set[str]:
    module, name, _ = VERBS[verb]
    return set(inspect.signature(getattr(import_module(module), name)).parameters)


def objection(name: str) -> str:
    """Why there is no such command, file or name; empty if there is."""
    first, *words = name.split()
    if first == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        return "" if words[0] in targets else "no target"
    if first == PACKAGE:
        if words[0] not in VERBS:
            return "no verb"
        flags = {word.removeprefix("--") for word in words[1:]}
        return "" if not flags or flags <= flags_of(words[0]) else "no flag"
    if name.startswith((f"{PACKAGE}/", "configs/", "docs/", "tests/")):
        return "" if (ROOT / name).is_file() else "no file"
    return "" if name.rstrip("/") in names() else "no such name"


def test_every_row_is_there_once_and_in_order() -> None:
    expected = [f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)]
    assert [row[0] for row in ROWS] == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_has_four_cells_and_says_something_in_each(row: list[str]) -> None:
    assert len(row) == 4
    assert all(row)
    assert code(row[2])
    assert code(row[3])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_row_shows_is_there(row: list[str]) -> None:
    assert {name: objection(name) for name in code(row[2]) if objection(name)} == {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tests_of_a_row_are_written(row: list[str]) -> None:
    for name in code(row[3]):
        path, _, function = name.partition("::")
        assert (ROOT / path).is_file(), name
        assert function.startswith("test_"), name
        assert function in functions(ROOT / path), name


def test_commands_around_the_table_are_there() -> None:
    around = [line for line in PAGE.splitlines() if not line.startswith("|")]
    commands = [name for name in code("\n".join(around)) if " " in name]
    assert [name for name in commands if objection(name)] == []


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("make nothing", "no target"),
        (f"{PACKAGE} nothing", "no verb"),
        (f"{PACKAGE} plan --nothing", "no flag"),
        (f"{PACKAGE}/nothing.py", "no file"),
        ("nothing_of_this_name.png", "no such name"),
    ],
)
def test_what_is_not_there_is_noticed(name: str, why: str) -> None:
    assert objection(name) == why
