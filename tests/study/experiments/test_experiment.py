"""An experiment is kept where it is better at the same cost and on the same text, and says why."""

import json
from pathlib import Path

import pytest
import yaml

from lmtemplate.errors import ConfigError
from lmtemplate.study.experiments import experiment as module
from lmtemplate.study.experiments.experiment import check_same_code, conclude_experiment, experiment
from tests.conftest import Command
from tests.study.experiments.seeded import write_arm

NOISE = [0.000, 0.004, -0.004]


def write_experiment(folder: Path, shift: float, lr: float = 0.1) -> Path:
    return write_arm(folder, [shift + noise for noise in NOISE], lr)


def best_of(folder: Path) -> str:
    return str(json.loads((folder / "best.json").read_text())["experiment"])


def test_the_first_stays_until_one_is_better_and_a_change_of_nothing_is_not_kept(
    tmp_path: Path,
) -> None:
    outcomes = {}
    for name, shift, seeds in (("first", 0.0, 1), ("noise", -0.001, 4), ("good", -0.2, 1)):
        write_arm(tmp_path / name, [shift + noise for noise in NOISE], 0.1, first_seed=seeds)
        outcomes[name] = conclude_experiment(tmp_path / name)
        assert json.loads((tmp_path / name / "experiment.json").read_text()) == outcomes[name]
    assert [outcome["kept"] for outcome in outcomes.values()] == [True, False, True]
    assert "no difference can be seen between first and noise" in outcomes["noise"]["reason"]
    assert outcomes["good"]["reason"].startswith("good is better than first by 0.2")
    assert best_of(tmp_path) == "good"


def test_a_worse_one_and_one_that_costs_more_are_not_kept(tmp_path: Path) -> None:
    conclude_experiment(write_experiment(tmp_path / "first", 0.0))
    worse = conclude_experiment(write_experiment(tmp_path / "worse", 0.3, lr=0.2))
    assert not worse["kept"]
    assert worse["reason"].startswith("first is better than worse by ")
    for run in write_experiment(tmp_path / "large", -0.3, lr=0.3).iterdir():
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, "flops": 2 * summary["flops"]}))
    large = conclude_experiment(tmp_path / "large")
    assert not large["kept"]
    assert large["reason"].endswith("but for 2.00 times the FLOPs")
    assert best_of(tmp_path) == "first"


def test_one_that_was_validated_otherwise_cannot_be_the_best(tmp_path: Path) -> None:
    conclude_experiment(write_experiment(tmp_path / "first", 0.0))
    for run in write_experiment(tmp_path / "short", -0.3).iterdir():
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["data"] = {"max_val_blocks": 4}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    outcome = conclude_experiment(tmp_path / "short")
    assert not outcome["kept"]
    assert outcome["reason"] == "it was validated on other text than first: data.max_val_blocks"


@pytest.mark.parametrize("best", ["../elsewhere", "/", "..", "", "link", ["first"]])
def test_a_best_that_is_no_folder_beside_it_is_not_looked_at(tmp_path: Path, best: object) -> None:
    write_experiment(tmp_path / "elsewhere", -1.0)
    folder = write_experiment(tmp_path / "all" / "first", 0.0)
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "best.json").write_text(json.dumps({"experiment": best}))
    assert conclude_experiment(folder)["against"] is None


def test_a_name_belongs_to_the_code_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "uncommitted_changes", lambda: "one")
    check_same_code(tmp_path)
    check_same_code(tmp_path)
    monkeypatch.setattr(module, "uncommitted_changes", lambda: "two")
    with pytest.raises(
        ConfigError, match="was trained with other code; give the experiment another"
    ):
        check_same_code(tmp_path)


def test_without_a_length_no_seed_begins(command: Command, corpus: Path, tmp_path: Path) -> None:
    shown = command("experiment", "--run_dir", tmp_path / "first", "--data.path", corpus)
    assert (shown.code, shown.out, [*tmp_path.iterdir()]) == (2, "", [])
    assert "give --config FILE, or one of --trainer.max_steps, --" in shown.error


def test_the_verb_trains_three_seeds_and_says_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(words: list[str], allowed: list[str], count: int) -> None:
        print("the noise of training")
        write_experiment(tmp_path / "first", 0.0)
        assert (words, count) == (["--config=a.yaml"], 3)

    monkeypatch.setattr(module, "first_of", lambda *_: (tmp_path / "first", 1))
    monkeypatch.setattr(module, "train_arm", train)
    experiment(["--config=a.yaml", "--json"], [])
    assert json.loads(capsys.readouterr().out)["kept"] is True
    assert "the noise of training" in (tmp_path / "first" / "output.log").read_text()
