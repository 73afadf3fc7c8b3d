"""Paths -> arms whose runs differ in seed alone, and their scores at an equal cost."""

import json
from pathlib import Path

import pytest

from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.study.experiments.arms import (
    common_budget,
    read_arms,
    runs_in,
    score,
    score_name,
    scores_of,
)
from lmtemplate.study.show.page import BITS
from tests.study.experiments.seeded import write_arm, write_seed
from tests.study.show.test_page import BYTES_PER_TOKEN, LOSSES, TOKENS_PER_STEP

BEST = 0.5 / 0.6931471805599453 / BYTES_PER_TOKEN  # of write_run, in bits per byte


def test_a_folder_of_seeds_is_one_arm_with_a_score_for_each(tmp_path: Path) -> None:
    paths = [write_arm(tmp_path / "a", [0, 0.25]), write_arm(tmp_path / "b", [0.5], lr=0.2)]
    (a, b), notes = read_arms(paths)
    assert (a.name, a.seeds, b.name, notes) == ("a", [1, 2], "b", [])
    assert scores_of(a, BITS) == pytest.approx({1: BEST, 2: BEST + 0.25})


def test_runs_that_differ_in_seed_alone_join_and_keep_their_place(tmp_path: Path) -> None:
    paths = [write_seed(tmp_path / f"slow-s{s}", s) for s in (1, 2)]
    paths.insert(1, write_seed(tmp_path / "fast", 1, lr=0.2))
    (slow, fast), _ = read_arms(paths)
    assert (slow.name, slow.seeds) == ("slow-s", [1, 2])
    assert (fast.name, fast.seeds) == ("fast", [1])


def test_two_runs_of_one_recipe_stay_two_and_are_said_to_be_noise(tmp_path: Path) -> None:
    arms, notes = read_arms([write_seed(tmp_path / name, s) for name, s in (("a", 1), ("b", 2))])
    assert [arm.name for arm in arms] == ["a", "b"]
    assert "differ in seed alone" in notes[0]


def test_a_run_and_its_repetition_are_not_two_seeds(tmp_path: Path) -> None:
    paths = [write_seed(tmp_path / name, 1) for name in "ab"]
    arms, _ = read_arms([*paths, write_seed(tmp_path / "c", 1, lr=0.2)])
    assert [arm.seeds for arm in arms] == [[1], [1], [1]]


def test_where_and_how_a_run_was_watched_makes_no_other_recipe(tmp_path: Path) -> None:
    paths = [write_seed(tmp_path / f"a{s}", s) for s in (1, 2)]
    with (paths[1] / "config.yaml").open("a") as file:
        file.write("report: false\nsamples: null\n")
    arms, _ = read_arms([*paths, write_seed(tmp_path / "c", 1, lr=0.2)])
    assert [len(arm.runs) for arm in arms] == [2, 1]


def test_a_folder_of_other_recipes_becomes_several_arms_with_a_note(tmp_path: Path) -> None:
    write_seed(tmp_path / "sweep" / "one", 1)
    write_seed(tmp_path / "sweep" / "two", 1, lr=0.2)
    arms, notes = read_arms([tmp_path / "sweep"])
    assert [arm.name for arm in arms] == ["one", "two"]
    assert "differ in more than the seed: 2 arms" in notes[0]


def test_fewer_than_two_arms_are_one_line(tmp_path: Path) -> None:
    arm = write_arm(tmp_path / "a", [0, 0])
    with pytest.raises(ConfigError, match=f"two runs or more .* got: {arm}$"):
        read_arms([arm])
    with pytest.raises(ConfigError, match="each named once"):
        read_arms([arm, arm])
    with pytest.raises(CheckpointError, match="nothing_here"):
        read_arms([arm, tmp_path / "nothing_here"])


def test_at_equal_cost_the_longer_run_is_read_where_the_shorter_ends(tmp_path: Path) -> None:
    paths = [write_seed(tmp_path / "a", 1), write_seed(tmp_path / "b", 1, lr=0.2)]
    record = paths[1] / "checkpoints" / "training_metrics.jsonl"
    kept = [line for line in record.read_text().splitlines() if json.loads(line)["step"] <= 25]
    record.write_text("\n".join(kept) + "\n")
    (a, b), _ = read_arms(paths)
    assert common_budget([a, b], "tokens") == 20 * TOKENS_PER_STEP
    at_20 = LOSSES[20] / LOSSES[30] * BEST
    assert score(a.runs[0], BITS, "tokens", 20 * TOKENS_PER_STEP) == pytest.approx(at_20)
    assert scores_of(a, BITS, "tokens", 5 * TOKENS_PER_STEP) == {}  # before the first validation


def test_an_axis_that_a_run_does_not_know_is_one_line(tmp_path: Path) -> None:
    paths = [write_seed(tmp_path / "a", 1), write_seed(tmp_path / "b", 1, lr=0.2)]
    (paths[0] / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"--at flops: .*/a had is not known"):
        common_budget(read_arms(paths)[0], "flops")


def test_without_bits_per_byte_nats_per_token_are_compared(tmp_path: Path) -> None:
    paths = [write_seed(tmp_path / "a", 1), write_seed(tmp_path / "b", 1, lr=0.2)]
    arms, _ = read_arms(paths)
    assert score_name(arms) == BITS
    record = paths[0] / "checkpoints" / "training_metrics.jsonl"
    record.write_text(record.read_text().replace("val/bits_per_byte", "val/other"))
    arms, _ = read_arms(paths)
    assert score_name(arms) == "val/loss"
    assert score(runs_in(paths[0])[0], "val/loss") == min(LOSSES.values())
