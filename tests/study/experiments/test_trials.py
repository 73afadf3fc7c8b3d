"""trials.jsonl <-> the trials of a sweep, also where a kill or a hand has damaged it."""

import json
from pathlib import Path

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.study.experiments.trials import Book, Trial


@pytest.mark.parametrize(
    "line",
    [
        {"number": 0, "settings": {"lr": "1", "seed": "1"}, "colour": "red"},
        {"number": "first", "settings": {"lr": "1", "seed": "1"}},
        {"settings": {"lr": "1", "seed": "1"}},
        {"number": 0, "settings": {"lr": "1", "seed": "1"}, "state": "lost"},
        {"number": 0, "settings": {"lr": "1", "seed": "1"}, "losses": {"first": 1}},
        ["lr"],
    ],
)
def test_a_file_of_trials_with_other_keys_is_one_line(tmp_path: Path, line: object) -> None:
    (tmp_path / "trials.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=r"trials.jsonl is damaged; name another --run_dir"):
        Book(tmp_path)


def test_a_trial_s_last_line_counts_and_a_line_that_a_kill_has_cut_does_not(tmp_path: Path) -> None:
    book = Book(tmp_path)
    for trial in (Trial(0, {"lr": "1"}), Trial(0, {"lr": "1"}, "complete", 2.5, {10: 2.5})):
        book.write(trial)
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"number": 1, "sett')
    assert Book(tmp_path).trials == [Trial(0, {"lr": "1"}, "complete", 2.5, {10: 2.5})]
    assert (tmp_path / "trials.jsonl").read_text().endswith("}\n")


def test_a_file_that_lacks_a_trial_is_one_line(tmp_path: Path) -> None:
    book = Book(tmp_path)
    for number in (0, 2):
        book.write(Trial(number, {"lr": "1"}))
    with pytest.raises(ConfigError, match=r"trials.jsonl is damaged"):
        Book(tmp_path)
