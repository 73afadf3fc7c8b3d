"""A stranger's summary, manifest, config and record -> a line with file and key, or the figures."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmtemplate.study.run_files import read_manifest, read_settings, read_summary
from tests.conftest import Command
from tests.runs import check_line


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_what_a_run_writes_is_what_is_read(finished: Path) -> None:
    assert read_summary(finished) == json.loads((finished / "summary.json").read_text())
    assert read_manifest(finished) == json.loads((finished / "manifest.json").read_text())
    assert read_settings(finished)["trainer.max_steps"] == 12


# File, key path, value -> the verbs that read it, and what they say of the key.
WRONG: list[tuple[str, str, Any, str]] = [
    ("summary.json", "seconds", "x", "summary diagnose report compare"),
    ("summary.json", "flops", float("nan"), "summary diagnose"),
    ("summary.json", "tokens", 10**400, "summary diagnose"),
    ("summary.json", "max_steps", [1], "diagnose reproduce"),
    ("manifest.json", "hardware", None, "report reproduce"),
    ("manifest.json", "command", [1], "report reproduce"),
    ("manifest.json", "resumed", [{"step": "x"}], "reproduce"),
    ("manifest.json", "settings.data.path", {}, "reproduce"),
    ("config.yaml", "trainer.max_steps", "x", "diagnose"),
    ("config.yaml", "data.path", [], "diagnose report compare"),
]


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


@pytest.mark.parametrize("name", ["summary.json", "manifest.json"])
def test_a_run_goes_on_where_its_own_files_are_damaged(
    run: Path, command: Command, name: str
) -> None:
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
