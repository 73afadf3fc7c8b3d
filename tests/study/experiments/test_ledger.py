"""A line for each finished run, never torn: what it changed against which parent, what came of it."""

import json
from pathlib import Path

import pytest

from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.study.experiments.ledger import (
    add_to_ledger,
    close_run,
    ledger,
    ledger_of,
    read_ledger,
    seeds_in_ledger,
)
from lmtemplate.study.show import compare as comparing
from lmtemplate.study.show.page import read_run
from tests.conftest import Command
from tests.study.experiments.seeded import write_arm, write_seed


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with three runs in its ledger: a, b with another rate, c with b's and a seed."""
    for name, seed, rate in (("a", 1, 0.1), ("b", 1, 0.2), ("c", 2, 0.2)):
        add_to_ledger(write_seed(tmp_path / name, seed, -0.01 * seed, rate), f"verdict of {name}")
    return tmp_path


def test_each_line_says_what_changed_against_the_nearest_earlier_run(runs: Path) -> None:
    a, b, c = read_ledger(runs / "ledger.jsonl")[0]
    assert (a["run"], a["parent"], a["changed"]) == ("a", None, {})
    assert (b["parent"], b["changed"]) == ("a", {"model.optimizer.init_args.lr": [0.1, 0.2]})
    assert (c["parent"], c["changed"]) == ("b", {"seed_everything": [1, 2]})
    assert c["bits_per_byte"] == pytest.approx(0.5 / 0.6931471805599453 / 2 - 0.02)
    assert c["verdict"] == "verdict of c"


def test_a_torn_last_line_is_left_out_with_a_note_and_harms_no_later_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    add_to_ledger(write_seed(runs / "d", 3), None)
    ledger(runs)
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line[0] in "abd"] == ["a", "b", "d"]
    assert "ledger.jsonl:3 is not a line of a ledger" in shown


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "{}",
        '{"run": null}',
        '{"run": 1}',
        '{"run": "x", "bits_per_byte": NaN}',
        '{"run": "x", "settings": 1}',
    ],
)
def test_a_line_of_another_kind_is_left_out(
    runs: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (runs / "ledger.jsonl").open("a") as file:
        file.write(f"{line}\n")
    ledger(runs, sort="bits_per_byte")
    assert "ledger.jsonl:4 is not a line of a ledger" in capsys.readouterr().out


def test_a_run_that_went_on_has_its_last_line_alone_and_is_not_its_own_parent(runs: Path) -> None:
    add_to_ledger(runs / "b", "again")
    entries, _ = read_ledger(runs / "ledger.jsonl")
    assert [(one["run"], one["parent"]) for one in entries] == [("a", None), ("c", "b"), ("b", "c")]


def test_the_seeds_of_an_arm_stand_in_the_ledger_beside_it(tmp_path: Path) -> None:
    arm = write_arm(tmp_path / "runs" / "arm", [0.0, 0.1])
    for run in arm.iterdir():
        add_to_ledger(run, None)
    assert ledger_of(arm / "seed-1") == tmp_path / "runs" / "ledger.jsonl"
    names = {entry["run"] for entry in read_ledger(tmp_path / "runs" / "ledger.jsonl")[0]}
    assert names == {str(Path("arm", "seed-1")), str(Path("arm", "seed-2"))}


def test_a_ledger_that_cannot_be_written_costs_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    close_run(write_seed(tmp_path / "a", 1), [], False)
    assert "the run is safe, but not in" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "ledger.jsonl").symlink_to(tmp_path / "elsewhere")
    close_run(write_seed(tmp_path / "other" / "a", 1), [], False)
    assert not (tmp_path / "elsewhere").exists()


def test_the_verb_sorts_and_gives_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger(runs, sort="bits_per_byte", json=True)
    told = json.loads(capsys.readouterr().out)
    assert [entry["run"] for entry in told["runs"]] == ["c", "a", "b"]
    with pytest.raises(ConfigError, match=r"--sort speed: no such key; there are .*bits_per_byte"):
        ledger(runs, sort="speed")
    with pytest.raises(CheckpointError, match=r"no run in .*nothing"):
        ledger(runs / "nothing")


def test_runs_in_a_ledger_below_are_told_with_the_command_that_shows_them(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("trial-000", "trial-001"):
        add_to_ledger(write_seed(runs / "a sweep" / name, 1), None)
    ledger(runs)
    more = f"2 more in {runs / 'a sweep'}: lmtemplate ledger '{runs / 'a sweep'}'"
    assert capsys.readouterr().out.splitlines()[-1] == more
    (runs / "ledger.jsonl").unlink()
    with pytest.raises(CheckpointError, match="2 more in"):
        ledger(runs)


def test_the_ledger_tells_compare_how_much_seeds_differ(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparing, "verdict_of", lambda *_: "fine")
    assert sorted(seeds_in_ledger(read_run(runs / "b"))) == pytest.approx(
        sorted(entry["bits_per_byte"] for entry in read_ledger(runs / "ledger.jsonl")[0][1:])
    )
    comparing.compare([runs / "a", runs / "b"], output=runs / "out.html")
    assert "(1 seed each, noise of earlier seeds in the ledger)" in capsys.readouterr().out


@pytest.mark.slow
def test_every_finished_run_is_in_the_ledger_even_without_a_report(
    fit: Command, tmp_path: Path
) -> None:
    fit(tmp_path / "one", "--trainer.max_steps=4")
    fit(tmp_path / "two", "--trainer.max_steps=4", "--model.net.n_layer=1")
    one, two = read_ledger(tmp_path / "ledger.jsonl")[0]
    assert one["run"] == "one"
    assert two["changed"] == {"model.net.init_args.n_layer": [2, 1]}
    assert two["step"] == 4
    assert two["tokens"] == 4 * 4 * 16
