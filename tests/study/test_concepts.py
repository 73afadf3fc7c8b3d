"""The course's table of concepts, beside the verbs and the tests that it names."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from lmtemplate.__main__ import verbs

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs/course/concepts.md"
ROWS = {"A": 31, "B": 23, "C": 9, "D": 14, "E": 13, "F": 9, "G": 14}
pytestmark = pytest.mark.skipif(not TABLE.exists(), reason="docs/course is deleted")


def table() -> list[list[str]]:
    """Row, statement, verb and test of each line of the page's tables."""
    lines = re.findall(r"^\| ([A-G]\d.*) \|$", TABLE.read_text(encoding="utf-8"), re.M)
    return [[cell.strip().strip("`") for cell in line.split(" | ")] for line in lines]


@cache
def functions_of(file: str) -> set[str]:
    body = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_each_concept_has_its_row_in_order() -> None:
    expected = [f"{part}{i}" for part, count in ROWS.items() for i in range(1, count + 1)]
    assert [row[0] for row in table()] == expected


def test_each_row_names_a_verb_and_a_test_that_are_there() -> None:
    known = verbs()
    for name, _, verb, test in table():
        assert verb.split()[0] in known, f"{name}: {verb}"
        file, _, function = test.partition("::")
        assert function in functions_of(file), f"{name}: {test}"


def test_seventy_billion_seconds_are_over_2200_years() -> None:
    years = 70e9 / (365.25 * 24 * 3600)
    page = (TABLE.parent / "8-cost.md").read_text(encoding="utf-8")
    (stated,) = re.findall(r"([\d,]+) years", page)
    assert float(stated.replace(",", "")) == pytest.approx(years, abs=0.5)
