"""Words and config files -> settings and objects: who wins, and what goes where."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmtemplate import optimizers, schedules
from lmtemplate.callbacks import CALLBACKS, OFF
from lmtemplate.cli import TrainingCLI
from lmtemplate.cli_classes import to_yaml
from lmtemplate.models import GPT2
from tests.conftest import Command

Settings = dict[str, Any]

ON = [key for key in CALLBACKS if key not in OFF]  # without a setting of the user's


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    """Write a config: `write_config(yaml_text)`; each has a name of its own."""

    def write(text: str) -> Path:
        path = tmp_path / f"config_{len(list(tmp_path.glob('config_*')))}.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def settings(command: Command, corpus: Path) -> Callable[..., Settings]:
    """What `--print_config` says that a run with these words would be."""

    def read(*words: object) -> Settings:
        shown = command("fit", "--data.path", corpus, *words, "--print_config")
        assert (shown.code, shown.error) == (0, "")
        content: Settings = yaml.safe_load(shown.out)
        return content

    return read


def test_the_command_line_beats_the_config(
    write_config: Callable[[str], Path], settings: Callable[..., Settings]
) -> None:
    path = write_config("trainer: {max_steps: 7, val_check_interval: 3}")
    for words in (
        ["--config", path, "--trainer.max_steps=9"],
        ["--trainer.max_steps", 9, "--config", path],
    ):
        trainer = settings(*words)["trainer"]
        assert (trainer["max_steps"], trainer["val_check_interval"]) == (9, 3)


def test_a_second_config_beats_the_first_and_leaves_the_rest(
    write_config: Callable[[str], Path], settings: Callable[..., Settings]
) -> None:
    first = write_config(
        "model: {net: {init_args: {n_layer: 3, n_embd: 48}}}\ndata: {batch_size: 5}"
    )
    second = write_config("model: {net: {init_args: {n_layer: 6}}}")
    merged = settings("--config", first, "--data.batch_size=7", "--config", second)
    assert merged["model"]["net"]["init_args"]["n_layer"] == 6
    assert merged["model"]["net"]["init_args"]["n_embd"] == 48
    assert merged["data"]["batch_size"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("key", ON)
def test_an_overlay_loses_no_callback(
    write_config: Callable[[str], Path], settings: Callable[..., Settings], key: str
) -> None:
    first = write_config("early_stopping: {patience: 3}\ncheckpoint: {init_args: {milestones: 5}}")
    second = write_config("early_stopping: {init_args: {patience: 9}}")
    merged = settings("--config", first, "--config", second)
    assert merged[key]["class_path"] == CALLBACKS[key]
    assert merged["early_stopping"]["init_args"]["patience"] == 9
    assert merged["checkpoint"]["init_args"]["milestones"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("key", ON)
def test_null_turns_one_callback_off(
    write_config: Callable[[str], Path], settings: Callable[..., Settings], key: str
) -> None:
    merged = settings("--config", write_config(f"{key}: null"))
    assert merged[key] is None
    assert all(merged[other] is not None for other in ON if other != key)


def test_a_config_adds_callbacks_beside_those_of_every_run(
    write_config: Callable[[str], Path], settings: Callable[..., Settings]
) -> None:
    summary = "{class_path: lightning.pytorch.callbacks.ModelSummary}"
    first = write_config(f"trainer: {{callbacks+: [{summary}]}}")
    second = write_config(f"trainer: {{callbacks+: [{summary}]}}")
    merged = settings("--config", first, "--config", second, "--allow=lightning")
    assert len(merged["trainer"]["callbacks"]) == 2
    assert all(merged[key] for key in ON)


SWAPS = [
    ("model.optimizer", optimizers.MuonAdamW, {"lr": 0.02, "weight_decay": 0.0}),
    ("model.optimizer", optimizers.SGD, {"lr": 0.1, "weight_decay": 0.0}),
    ("model.schedule", schedules.WarmupLinear, {"floor_ratio": 0.0}),
    ("model.schedule", schedules.Constant, {"warmup_steps": 0}),
    ("model.net", GPT2, {"n_layer": 12, "n_embd": 768}),
]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["config", "command line"])
@pytest.mark.parametrize(("key", "kind", "expected"), SWAPS)
def test_a_class_that_is_named_alone_comes_with_its_own_defaults(
    write_config: Callable[[str], Path],
    settings: Callable[..., Settings],
    where: str,
    key: str,
    kind: type,
    expected: Settings,
) -> None:
    class_path = f"{kind.__module__}.{kind.__name__}"
    group, name = key.split(".")
    text = f"{group}: {{{name}: {{class_path: {class_path}}}}}"
    words = ["--config", write_config(text)] if where == "config" else [f"--{key}={class_path}"]
    chosen = settings(*words)[group][name]["init_args"]
    assert {argument: chosen[argument] for argument in expected} == expected


def test_the_sizes_of_the_data_reach_the_net(corpus: Path) -> None:
    cli = TrainingCLI(["--data.path", str(corpus), "--data.block_size=24"])
    assert (cli.model.net.vocab_size, cli.model.net.block_size) == (257, 24)


def test_the_seed_reaches_the_order_of_the_data(corpus: Path) -> None:
    cli = TrainingCLI(["--data.path", str(corpus), "--seed_everything=5"])
    assert cli.datamodule.seed == 5
    assert torch.initial_seed() == 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_a_seed_may_have_32_bits(settings: Callable[..., Settings], seed: int) -> None:
    assert settings(f"--seed_everything={seed}")["seed_everything"] == seed


TEXTS = [
    "3e-4",
    "1e3",
    "123e4567",
    ".5e1",
    "1_0",
    "0x10",
    "12:30",
    "no",
    "2024-01-01",
    "a: b",
    "&a",
    "",
]


def test_every_text_reads_back_as_it_was(write_config: Callable[[str], Path], corpus: Path) -> None:
    own = {"run_dir": "3e-4", "samples": {"init_args": {"prompts": TEXTS}}}
    words = ["--config", str(write_config(to_yaml(own))), "--data.path", str(corpus)]
    first = TrainingCLI(words)
    again = TrainingCLI(["--config", str(write_config(to_yaml(first.settings)))])
    for cli in (first, again):
        assert cli.config.run_dir == "3e-4"
        assert cli.config.samples.init_args.prompts == tuple(TEXTS)


def test_a_printed_config_reads_back_as_it_was(
    write_config: Callable[[str], Path], settings: Callable[..., Settings], command: Command
) -> None:
    printed = command("fit", "--print_config", "--config", write_config("run_dir: '1e3'")).out
    assert settings("--config", write_config(printed))["run_dir"] == "1e3"
