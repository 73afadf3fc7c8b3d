"""The one place that knows of study/: whole with it, and whole without."""

import sys
from pathlib import Path

import pytest

from lmtemplate import plug
from tests.conftest import needs_study


@pytest.fixture
def deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone without study/."""
    monkeypatch.setitem(sys.modules, "lmtemplate.study", None)


def test_without_study_there_are_no_verbs_no_callbacks_and_no_words(
    deleted: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plug.study_verbs() == {}
    assert plug.callbacks() == {}
    plug.closing_words(tmp_path, [], True)
    assert capsys.readouterr() == ("", "")
    assert not any(tmp_path.iterdir())


@needs_study
def test_with_study_each_verb_and_callback_can_be_imported() -> None:
    from lmtemplate.plug import load_named

    for name, verb in plug.study_verbs().items():
        assert callable(load_named(f"{verb.module}.{verb.function}", name))
    for key, path in plug.callbacks().items():
        assert isinstance(load_named(path, key), type)
