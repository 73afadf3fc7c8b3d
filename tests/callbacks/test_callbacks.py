"""The list of callbacks -> each of them attached to the Trainer, in the order of the list."""

from pathlib import Path
from typing import Any

import pytest

from lmtemplate import fit as module
from lmtemplate.callbacks import CALLBACKS
from tests.conftest import Command


def test_every_callback_of_the_list_is_attached_in_its_order(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[Any] = []
    monkeypatch.setattr(module, "train", lambda trainer, *_: trainers.append(trainer))
    assert fit(tmp_path / "run", "--weight_averaging.decay=0.9").code == 0
    kinds = [type(callback) for callback in trainers[0].callbacks]
    attached = [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]
    assert [path for path in attached if path in CALLBACKS.values()] == [*CALLBACKS.values()]
    assert attached[-1] == CALLBACKS["checkpoint"]  # saves what all others have done


@pytest.mark.slow
@pytest.mark.parametrize("key", ["samples", "early_stopping"])
def test_null_attaches_none(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    trainers: list[Any] = []
    monkeypatch.setattr(module, "train", lambda trainer, *_: trainers.append(trainer))
    assert fit(tmp_path / "run", f"--{key}=null").code == 0
    names = {type(callback).__name__ for callback in trainers[0].callbacks}
    assert CALLBACKS[key].rpartition(".")[2] not in names
