"""Each file in configs/ -> a run that fits its data, and one of seconds under debug.yaml."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from lmtemplate.cli import TrainingCLI, check_settings
from lmtemplate.fit import make_plan
from tests.conftest import Command
from tests.runs import load, steps

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "configs" / "debug.yaml"
CONFIGS = sorted(set((ROOT / "configs").glob("*.yaml")) - {DEBUG})

pytestmark = pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture
def long_corpus(command: Command, tmp_path: Path) -> Path:
    """A corpus whose splits are longer than any config's block."""
    words = ["--input", "grammar:500", "--output", tmp_path / "data", "--tokenizer", "byte"]
    command("prepare", *words)
    return tmp_path / "data"


def test_it_opens_with_a_lab_note(config: Path) -> None:
    text = config.read_text(encoding="utf-8")
    note = "\n".join(re.findall(r"^#.*", text.partition("\nrun_dir:")[0], re.M))
    assert text.startswith("#")
    for word in ("make train", "hardware", "result"):
        assert word in note


def test_its_run_directory_is_the_one_that_make_gives_it(config: Path) -> None:
    assert yaml.safe_load(config.read_text())["run_dir"] == f"runs/{config.stem}"


def test_it_fits_its_data_and_can_run_as_it_is(config: Path, long_corpus: Path) -> None:
    with torch.device("meta"):  # sizes alone: some of these nets are large
        cli = TrainingCLI(["--config", str(config), "--data.path", str(long_corpus)])
    cli.datamodule.setup("fit")
    planned = make_plan(cli)
    check_settings(cli, planned.steps)
    assert cli.model.net.block_size == cli.datamodule.block_size
    assert planned.steps >= 100


@pytest.mark.slow
def test_the_debug_overlay_trains_it_in_seconds(
    config: Path, command: Command, corpus: Path, tmp_path: Path
) -> None:
    words = ["--config", str(config), "--config", str(DEBUG), "--data.path", str(corpus)]
    words += ["--trainer.accelerator=cpu", "--run_dir", str(tmp_path / "run")]
    per_step = make_plan(TrainingCLI(words)).accumulate
    assert per_step <= 4  # else 20 steps are not seconds
    shown = command("fit", *words)
    assert (shown.code, shown.error) == (0, "")
    assert load(tmp_path / "run", 20)["global_step"] == 20
    assert steps(tmp_path / "run", "val/loss") == [0, 10, 20]
    assert (tmp_path / "run/checkpoints/best.json").exists()


@pytest.mark.slow
def test_the_debug_overlay_keeps_what_the_config_chose_and_leaves_its_run_alone(
    config: Path, command: Command, corpus: Path
) -> None:
    words = ["--config", config, "--config", DEBUG]  # as make types it
    merged = yaml.safe_load(command("fit", *words, "--data.path", corpus, "--print_config").out)
    chosen = yaml.safe_load(config.read_text())["model"]
    for part in ("net", "optimizer", "schedule"):
        assert merged["model"][part]["class_path"] == chosen[part]["class_path"]
    assert merged["run_dir"] == "runs/debug"
