"""A run that goes on -> one process that draws it, no more often than asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.study.show import pictures
from tests.study.show.test_page import write_run


class Child:
    """A process that draws until `ends`."""

    started: list[list[str]]
    now = 0.0

    def __init__(self, words: list[str]) -> None:
        self.started.append(words)
        self.ends = self.now + 15
        self.stopped = False

    def poll(self) -> int | None:
        return 0 if self.now >= self.ends else None

    def terminate(self) -> None:
        self.stopped = True

    def wait(self) -> None:
        assert self.stopped


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> type[Child]:
    monkeypatch.setattr(Child, "started", [], raising=False)
    monkeypatch.setattr(pictures, "subprocess", SimpleNamespace(Popen=Child))
    monkeypatch.setattr(pictures, "time", SimpleNamespace(monotonic=lambda: Child.now))
    return Child


def drawings(child: type[Child], every_seconds: float, trainer: Any) -> list[float]:
    """The times within 100 seconds, of a batch each, at which a drawing began."""
    callback, found = pictures.Pictures(every_seconds), list[float]()
    child.now = 0.0
    callback.on_train_start(trainer, trainer)
    for second in range(1, 101):
        child.now, before = float(second), len(child.started)
        callback.on_train_batch_end(trainer, trainer, None, None, second)
        found += [second] * (len(child.started) - before)
    callback.teardown(trainer, trainer, "fit")
    return found


def test_a_run_is_drawn_every_so_many_seconds(child: type[Child], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(run))
    assert drawings(child, 30, trainer) == [30, 60, 90]
    assert child.started[0][-3:] == ["plot", str(run), "--quiet"]


def test_two_drawings_never_overlap(child: type[Child], tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    trainer = SimpleNamespace(is_global_zero=True, default_root_dir=str(run))
    assert drawings(child, 10, trainer) == [10, 25, 40, 55, 70, 85, 100]


@pytest.mark.parametrize("first", [True, False])
def test_only_the_first_process_draws_and_only_a_record(
    child: type[Child], tmp_path: Path, first: bool
) -> None:
    run = tmp_path / "run" if first else write_run(tmp_path / "run")
    trainer = SimpleNamespace(is_global_zero=first, default_root_dir=str(run))
    assert drawings(child, 10, trainer) == []


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="has to be above 0"):
        pictures.Pictures(seconds)
