"""`fit --seeds N`: ordinary runs that differ in seed alone, which a kill costs nothing."""

import json
from pathlib import Path

import pytest

from lmtemplate.errors import ConfigError, NumbersError
from lmtemplate.study.experiments import seeds
from lmtemplate.study.experiments.flags import SEEDS, split_words
from tests.conftest import Command
from tests.runs import equal, load
from tests.study.experiments.seeded import write_arm, write_seed


@pytest.mark.parametrize("typed", [["--seeds", "3"], ["--seeds=3"]])
def test_the_count_is_split_off_and_all_else_is_kept(typed: list[str]) -> None:
    given, rest = split_words("fit", ["--config", "a.yaml", *typed, "--run_dir=b"], SEEDS)
    assert (given.seeds, rest) == (3, ["--config", "a.yaml", "--run_dir=b"])
    assert split_words("fit", ["--seed_everything=1"], SEEDS)[1] == ["--seed_everything=1"]


@pytest.mark.parametrize("typed", [["--seeds"], ["--seeds=0"], ["--seeds", "-1"], ["--seeds=x"]])
def test_a_count_that_is_none_is_one_line(command: Command, typed: list[str]) -> None:
    result = command("fit", *typed)
    assert (result.code, "\n" in result.error) == (2, False)
    assert result.error.startswith("fit: argument --seeds: expected")


def test_a_seed_that_is_a_link_out_of_the_arm_is_refused(fit: Command, tmp_path: Path) -> None:
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "seed-1338").symlink_to(tmp_path)
    refused = fit(tmp_path / "arm", "--seeds", "2")
    assert (refused.code, "seed-1338 is a link that leaves" in refused.error) == (2, True)


@pytest.mark.slow
def test_each_seed_is_the_run_that_fit_would_make_and_the_command_goes_on(
    fit: Command, tmp_path: Path
) -> None:
    short = ["--trainer.max_steps=4", "--seed_everything=7"]
    fit(tmp_path / "alone", *short[:1], "--seed_everything=8")
    fit(tmp_path / "arm" / "seed-7", *short)  # as if a kill had come before the second seed
    before = (tmp_path / "arm" / "seed-7" / "checkpoints" / "step-000000004.ckpt").stat().st_mtime
    shown = fit(tmp_path / "arm", *short, "--seeds", "2", "--json")
    assert json.loads(shown.out.splitlines()[-1])["scores"].keys() == {"7", "8"}
    assert shown.code == 0
    assert "seed-7 is finished at step 4" in shown.out
    assert "2 seeds, val/bits_per_byte" in shown.out
    after = (tmp_path / "arm" / "seed-7" / "checkpoints" / "step-000000004.ckpt").stat().st_mtime
    assert before == after
    runs = (tmp_path / "arm" / "seed-8", tmp_path / "alone")
    assert equal(*(load(run, 4)["state_dict"] for run in runs))
    assert json.loads((runs[0] / "manifest.json").read_text())["seed"] == 8


@pytest.mark.slow
def test_a_seed_whose_numbers_turn_bad_does_not_stop_the_others(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def train(words: list[str], allowed: list[str]) -> None:
        run = Path(words[-1].removeprefix("--run_dir="))
        tried.append(run.name)
        write_seed(run, len(tried), 0.1 * len(tried))
        if len(tried) == 1:
            raise NumbersError("train/loss is NaN")

    monkeypatch.setattr(seeds, "fit", train)
    shown = fit(tmp_path / "arm", "--seeds=3", "--seed_everything=1")
    assert tried == ["seed-1", "seed-2", "seed-3"]
    assert shown.code == NumbersError.exit_code
    assert "seed 1: train/loss is NaN" in shown.error


def test_a_run_is_no_folder_for_an_arm(fit: Command, tmp_path: Path) -> None:
    shown = fit(write_seed(tmp_path / "run", 1), "--seeds=2")
    assert shown.code == ConfigError.exit_code
    assert "is a run; name a folder for several" in shown.error


def test_the_spread_of_an_arm_is_its_standard_deviation(tmp_path: Path) -> None:
    assert "3 seeds, val/bits_per_byte 0.3807, standard deviation 0.0100" in seeds.spread_of(
        write_arm(tmp_path / "arm", [0.01, 0.02, 0.03])
    )
