"""Classes of mistakes -> the exit codes that scripts rely on."""

import ast
from pathlib import Path

import pytest

import lmtemplate
from lmtemplate import errors

SOURCES = sorted(Path(lmtemplate.__file__).parent.rglob("*.py"))
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type)]
NAMES = {kind.__name__ for kind in CLASSES}
CODES = {
    "ConfigError": 2,
    "CheckpointError": 3,
    "NumbersError": 4,
    "DiskError": 5,
    "OutOfMemoryError": 6,
    "LockedError": 7,
    "DataError": 8,
    "LostProcessError": 9,
}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_each_class_has_the_exit_code_that_is_documented(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_no_two_classes_share_an_exit_code() -> None:
    codes = [kind.exit_code for kind in CLASSES]
    assert len(codes) == len(set(codes))
    assert not {0, 130} & set(codes)


def test_one_except_clause_catches_them_all() -> None:
    assert all(issubclass(kind, errors.UserError) for kind in CLASSES)


def test_every_class_says_what_it_is_for() -> None:
    assert all(kind.__doc__ for kind in CLASSES)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_message_is_one_line(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES:
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            assert not [text for text in texts if isinstance(text, str) and "\n" in text]
