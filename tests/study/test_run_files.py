"""A stranger's summary, manifest, config and record -> a line with file and key, or the figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmtemplate.errors import CheckpointError
from lmtemplate.study.run_files import (
    duration,
    read_checked,
    read_manifest,
    read_settings,
    read_summary,
)
from tests.conftest import Command
from tests.faults.spy import within
from tests.runs import check_line
from tests.test_plain_file import MERGES


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_what_a_run_writes_is_what_is_read(finished: Path) -> None:
    assert read_summary(finished) == json.loads((finished / "summary.json").read_text())
    assert read_manifest(finished) == json.loads((finished / "manifest.json").read_text())
    assert read_settings(finished)["trainer.max_steps"] == 12


@pytest.mark.parametrize("name", ["summary.json", "manifest.json", "config.yaml"])
def test_a_file_that_is_a_link_is_not_shown(run: Path, tmp_path: Path, name: str) -> None:
    (run / name).rename(tmp_path / "secret")
    (run / name).symlink_to(tmp_path / "secret")
    read = {"s": read_summary, "m": read_manifest, "c": read_settings}[name[0]]
    with pytest.raises(CheckpointError, match=f"{name} is a link"):
        read(run)


# File, key path, value -> the verbs that read it, and what they say of the key.
WRONG: list[tuple[str, str, Any, str]] = [
    ("summary.json", "seconds", "x", "summary diagnose report compare"),
    ("summary.json", "flops", float("nan"), "summary diagnose"),
    ("summary.json", "tokens", 10**400, "summary diagnose"),
    ("summary.json", "max_steps", [1], "diagnose reproduce"),
    ("summary.json", "best", "x", "summary diagnose"),
    ("summary.json", "best.val_loss", "x", "summary"),
    ("manifest.json", "hardware", None, "report reproduce"),
    ("manifest.json", "command", [1], "report reproduce"),
    ("manifest.json", "resumed", [{"step": "x"}], "reproduce"),
    ("manifest.json", "settings.data.path", {}, "reproduce"),
    ("config.yaml", "trainer.max_steps", "x", "diagnose"),
    ("config.yaml", "data.path", [], "diagnose report compare"),
]


@pytest.mark.parametrize(
    "value", ['!!int ""', "!!bool x", "!!timestamp x", f"{'1:' * 400}1.5", "2001-13-45"]
)
def test_yaml_that_its_library_stumbles_over_is_one_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "config.yaml").write_text(f"x: {value}")
    with pytest.raises(CheckpointError, match=r"config.yaml cannot be read"):
        read_settings(tmp_path)


@pytest.mark.parametrize(("name", "key", "value", "verbs"), WRONG)
def test_a_value_of_another_kind_is_named_with_file_and_key(
    run: Path, finished: Path, command: Command, name: str, key: str, value: Any, verbs: str
) -> None:
    parse, dump = (yaml.safe_load, yaml.safe_dump) if "yaml" in name else (json.loads, json.dumps)
    content = parse((run / name).read_text())
    *above, last = key.split(".")
    place = content
    for part in above:
        place = place[part]
    place[last] = value
    (run / name).write_text(dump(content))
    for verb in verbs.split():
        answer = command(verb, run, *([finished] if verb == "compare" else []))
        says = check_line(answer, 3)
        assert f"{run / name} is damaged: {key}" in says


def test_a_run_goes_on_where_its_own_files_are_damaged(run: Path, command: Command) -> None:
    for name in ("summary.json", "manifest.json"):
        (run / name).write_text('{"step": "x", "max_steps": [], "resumed": 7}')
    words = ("--run_dir", run, "--resume=must", "--report=false")
    assert command("fit", "--config", run / "config.yaml", *words).code == 0


@pytest.mark.parametrize(
    "line",
    [
        f'{{"step": 13, "train/loss": {10**400}}}',
        '{"step": 13, "train/loss": 1, "data/epoch": 1e99}',
    ],
    ids=["loss", "epoch"],
)
def test_a_line_with_a_number_that_no_array_holds_is_left_out(
    run: Path, command: Command, line: str
) -> None:
    before = command("summary", run).out
    with (run / "checkpoints/training_metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert command("summary", run).out == before


def test_yaml_whose_merges_multiply_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(MERGES)
    with within(20), pytest.raises(CheckpointError, match="more than 100,000 values"):
        read_checked(tmp_path / "config.yaml", {})


@pytest.mark.parametrize("text", ["{}", "a: {b: [1, null, 2.5], <<: {c: x}}", "a: &a [1]\nb: *a"])
def test_other_yaml_is_what_pyyaml_makes_of_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert read_checked(tmp_path / "config.yaml", {}) == yaml.safe_load(text)


def test_what_json_has_no_word_for_is_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{a: .inf, b: 2001-01-01, c: !!set {x}, d: .nan}")
    told = {"a": "Infinity", "b": "2001-01-01", "c": "{'x'}", "d": "NaN"}
    assert read_settings(tmp_path) == told
    (tmp_path / "config.yaml").write_text(f"a: 0x{'f' * 5000}")
    with pytest.raises(CheckpointError, match=r"cannot be read .Exceeds the limit"):
        read_settings(tmp_path)


KINDS = {"step": int, "loss": float, "of": {"name": str}, "starts": [{"step": int}]}


def test_a_file_of_the_right_kinds_is_read_with_whatever_else_it_holds(tmp_path: Path) -> None:
    content = {"step": 3, "loss": None, "of": {"name": "a", "x": []}, "starts": [{}], "y": 10**400}
    for name in ("a.json", "a.yaml"):
        (tmp_path / name).write_text(json.dumps(content))
        assert read_checked(tmp_path / name, KINDS) == content
    assert read_checked(tmp_path / "none.json", KINDS) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"step": "x"}', "step is not a whole number"),
        ('{"step": true}', "step is not a whole number"),
        ('{"step": 1e30}', "step is not a whole number"),
        (f'{{"step": {10**30}}}', "step is not a whole number"),
        ('{"loss": NaN}', "loss is not a number"),
        ('{"loss": -Infinity}', "loss is not a number"),
        ('{"loss": 1e400}', "loss is not a number"),
        (f'{{"loss": {10**400}}}', "loss is not a number"),
        ('{"of": {"name": 3}}', "of.name is not text"),
        ('{"of": null}', "of is not a mapping"),
        ('{"starts": {}}', "starts is not a list"),
        ('{"starts": [{}, {"step": []}]}', "starts[1].step is not a whole number"),
        ("[]", "its content is not a mapping"),
        ("", "Expecting value"),
        ("{", "line 1"),
        ("[" * 100_000, "recursion"),
        ("9" * 5000, "digits"),
        ("\udcff{}", "utf-8"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_key(
    tmp_path: Path, text: str, says: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError) as mistake:
        read_checked(path, KINDS)
    assert str(path) in str(mistake.value)
    assert says in str(mistake.value)
    assert len(str(mistake.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (60, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (90_000, "25 h 0 min"),
        (60e6, "16666 h 40 min"),
        (70e9, "2,218 years"),
    ],
)
def test_seconds_are_told_as_a_person_would(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("seconds", [59.6, 3599.6])
def test_no_duration_says_sixty(seconds: float) -> None:
    assert "60" not in duration(seconds)
