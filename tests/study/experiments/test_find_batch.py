"""Sizes of micro-batches that a made-up memory holds, and a real search of a tiny net."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lmtemplate.errors import OutOfMemoryError
from lmtemplate.study.experiments.find_batch import (
    Search,
    SizeTried,
    memory_limit,
    search_sizes,
    suggestion,
)
from tests.conftest import TINY, Command

BASE, EACH = 1e9, 3e7  # bytes of a net, and of a sequence


def made_up(size: int) -> SizeTried:
    seconds = 0.01 + 0.001 * size
    return SizeTried(size, seconds, 64 * size / seconds, BASE + EACH * size)


@pytest.mark.parametrize("true_most", [1, 2, 3, 37, 300, 1025])
def test_the_largest_size_is_found_within_a_sixteenth_where_memory_runs_out(true_most: int) -> None:
    def gpu(size: int) -> SizeTried | None:
        return made_up(size) if size <= true_most else None

    found = search_sizes(gpu, limit=1e15, most=4096, most_seconds=1e9)
    assert found.largest <= true_most < (found.too_large or 0)
    assert (found.too_large or 0) - found.largest <= max(1, true_most // 16)


@pytest.mark.parametrize("limit", [1.2e9, 4e9, 17e9])
def test_on_a_cpu_no_size_is_tried_that_would_pass_the_limit(limit: float) -> None:
    tried = list[int]()

    def cpu(size: int) -> SizeTried:
        tried.append(size)
        return made_up(size)

    found = search_sizes(cpu, limit=limit, most=4096, most_seconds=1e9)
    assert all(BASE + EACH * size <= limit for size in tried)
    assert found.largest >= 15 / 16 * (limit - BASE) / EACH - 1


def test_without_visible_growth_memory_is_taken_to_grow_in_proportion() -> None:
    flat = [SizeTried(size, 0.1, 1.0, 1e9) for size in (1, 2)]
    assert Search(flat).foreseen(4) == pytest.approx(2e9)


def test_nothing_that_fits_is_told_apart_from_what_is_slow() -> None:
    assert search_sizes(lambda _: None, limit=1e9, most=64, most_seconds=1).tried == []
    slow = search_sizes(made_up, limit=1e15, most=4096, most_seconds=0.1)
    assert (slow.too_slow, slow.too_large, slow.largest) == (True, None, 128)


def test_the_smallest_of_the_fast_sizes_is_suggested_in_equal_parts_of_a_step() -> None:
    speeds = {1: 100.0, 2: 190.0, 4: 300.0, 8: 390.0, 16: 400.0}
    found = Search([SizeTried(size, 0.1, speed, 1e9) for size, speed in speeds.items()])
    assert suggestion(found, 24).startswith("suggestion: data.batch_size 8, 3 times")
    assert suggestion(found, 6).startswith("suggestion: data.batch_size 6, for")
    assert suggestion(found, 30).startswith("suggestion: data.batch_size 10, 3 times")


def test_a_suggestion_leaves_the_step_as_large_as_it_is() -> None:
    found = Search([SizeTried(size, 0.1, 100.0 * size, 1e9) for size in (1, 2, 4)])
    assert suggestion(found, 10).startswith("suggestion: data.batch_size 2, 5 times")


def test_a_real_net_is_tried_and_nothing_is_written(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["--data.path", corpus, *TINY, "--run_dir", run, "--json"]
    told = json.loads(command("find-batch", *words, "--most=4").out.splitlines()[-1])
    assert [one["batch_size"] for one in told["tried"]] == [1, 2, 4]
    for one in told["tried"]:
        assert one["tokens_per_second"] == pytest.approx(16 * one["batch_size"] / one["seconds"])
    assert told["largest"] == 4
    assert "noise" in told["noise"]
    assert not run.exists()


def test_a_net_that_does_not_fit_itself_is_refused() -> None:
    trial: Any = SimpleNamespace(device=torch.device("cpu"), net=nn.Linear(2, 2))
    with pytest.raises(OutOfMemoryError, match="weights, gradients and moments"):
        memory_limit(trial, 1e7)


@pytest.mark.parametrize("words", [["--most=0"], ["--seconds=0"], ["--memory_gb=-1"]])
def test_a_search_without_room_is_one_line(command: Command, words: list[str]) -> None:
    result = command("find-batch", *words)
    assert (result.code, "\n" in result.error) == (2, False)
    assert result.error.startswith("find-batch needs")


def test_the_limit_that_is_typed_is_the_one_that_counts(
    command: Command, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[float | None]()

    def refuse(_: Any, limit: float | None) -> float:
        asked.append(limit)
        raise OutOfMemoryError("refused")

    monkeypatch.setattr("lmtemplate.study.experiments.find_batch.memory_limit", refuse)
    refused = command("find-batch", "--data.path", corpus, *TINY, "--memory_gb=0.5")
    assert (refused.code, asked) == (6, [5e8])
