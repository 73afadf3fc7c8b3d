"""Words and config files -> settings, or one line: who wins, and the parts of that line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmtemplate import optimizers, parsing, schedules
from lmtemplate.errors import ConfigError
from lmtemplate.models import GPT2
from lmtemplate.parsing import (
    CALLBACKS,
    OWNED,
    ROOMS,
    TrainingCLI,
    check_yaml,
    configs_in,
    one_line,
    settings_by_name,
    where_is,
)
from tests.conftest import Command

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def parser(corpus: Path) -> parsing.Parser:
    found = TrainingCLI(["--data.path", str(corpus)]).parser
    assert isinstance(found, parsing.Parser)
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# max_steps in a comment\ntrainer:\n  max_steps: 5  # not val_check_interval\n"
    )
    return path


@pytest.mark.parametrize(
    "words",
    [["--config", "a.yaml", "--config=b.yaml", "--x"], ["-c", "a.yaml", "--config", "b.yaml"]],
)
def test_configs_are_found_in_every_spelling(words: list[str]) -> None:
    assert set(configs_in(words)) == {Path("a.yaml"), Path("b.yaml")}


def test_a_key_is_found_with_its_line(config: Path) -> None:
    assert where_is("max_steps", [config]) == f"{config}:3"


@pytest.mark.parametrize("word", ["val_check_interval", "max_step", "steps"])
def test_comments_and_parts_of_words_are_no_keys(config: Path, word: str) -> None:
    assert where_is(word, [config]) == "command line"


def test_the_last_config_that_has_a_key_is_named(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("trainer: {max_steps: 7}\n")
    assert where_is("max_steps", [config, other]) == f"{other}:1"


def test_a_sound_config_passes(config: Path) -> None:
    check_yaml(config)


def test_a_broken_one_is_named_with_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(ConfigError, match=rf"{path}:3:2 is not YAML"):
        check_yaml(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        check_yaml(path)


def test_settings_of_our_own_classes_are_known_by_name(parser: parsing.Parser) -> None:
    names = settings_by_name(parser)
    assert names["n_layer"] == "model.net.n_layer"
    assert names["warmup_steps"] == "model.schedule.warmup_steps"
    assert names["weight_decay"] == "model.optimizer.weight_decay"
    assert names["patience"] == "early_stopping.patience"
    assert names["max_tokens"] == "max_tokens"


def test_a_setting_that_is_linked_is_named_where_it_is_set(parser: parsing.Parser) -> None:
    names = settings_by_name(parser)
    assert names["block_size"] == "data.block_size"
    assert "vocab_size" not in names or not names["vocab_size"].startswith("model.")


def test_every_room_of_classes_is_a_setting(parser: parsing.Parser) -> None:
    known = {action.dest for action in parser._actions}
    assert set(ROOMS) <= known


def test_trainer_settings_that_are_owned_are_not_offered(parser: parsing.Parser) -> None:
    known = {action.dest for action in parser._actions}
    assert not {f"trainer.{name}" for name in OWNED} & known


def test_what_to_use_instead_exists(parser: parsing.Parser) -> None:
    known = {action.dest for action in parser._actions}
    for instead in filter(None, OWNED.values()):
        word = instead.split(",")[0].split(":")[0]
        assert word in known or Path(word.removeprefix("--config ")).suffix == ".yaml"


@pytest.mark.parametrize(
    "message",
    ["unrecognized arguments: --max_stepz=5\nusage: ...", "something\n\n  else " * 100, ""],
)
def test_any_message_becomes_one_short_line(parser: parsing.Parser, message: str) -> None:
    line = one_line(message, parser, [], [])
    assert "\n" not in line
    assert len(line) < 500


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
        ["-c", path, "--trainer.max_steps=9"],
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
    merged = settings("--config", first, "--config", second)
    assert merged["model"]["net"]["init_args"]["n_layer"] == 6
    assert merged["model"]["net"]["init_args"]["n_embd"] == 48
    assert merged["data"]["batch_size"] == 5


@pytest.mark.parametrize("key", CALLBACKS)
def test_an_overlay_loses_no_callback(
    write_config: Callable[[str], Path], settings: Callable[..., Settings], key: str
) -> None:
    first = write_config("early_stopping: {patience: 3}\ncheckpoint: {init_args: {milestones: 5}}")
    second = write_config("early_stopping: {init_args: {patience: 9}}")
    merged = settings("--config", first, "--config", second)
    assert merged[key]["class_path"].endswith(CALLBACKS[key].__name__)
    assert merged["early_stopping"]["init_args"]["patience"] == 9
    assert merged["checkpoint"]["init_args"]["milestones"] == 5


@pytest.mark.parametrize("key", CALLBACKS)
def test_null_turns_one_callback_off(
    write_config: Callable[[str], Path], settings: Callable[..., Settings], key: str
) -> None:
    merged = settings("--config", write_config(f"{key}: null"))
    assert merged[key] is None
    assert all(merged[other] is not None for other in CALLBACKS if other != key)


def test_a_config_adds_callbacks_beside_those_of_every_run(
    write_config: Callable[[str], Path], settings: Callable[..., Settings]
) -> None:
    summary = "{class_path: lightning.pytorch.callbacks.ModelSummary}"
    first = write_config(f"trainer: {{callbacks+: [{summary}]}}")
    second = write_config(f"trainer: {{callbacks+: [{summary}]}}")
    merged = settings("--config", first, "--config", second)
    assert len(merged["trainer"]["callbacks"]) == 2
    assert all(merged[key] for key in CALLBACKS)


SWAPS = [
    ("model.optimizer", optimizers.MuonAdamW, {"lr": 0.02, "weight_decay": 0.0}),
    ("model.optimizer", optimizers.SGD, {"lr": 0.1, "weight_decay": 0.0}),
    ("model.schedule", schedules.WarmupLinear, {"floor_ratio": 0.0}),
    ("model.schedule", schedules.Constant, {"warmup_steps": 0}),
    ("model.net", GPT2, {"n_layer": 12, "n_embd": 768}),
]


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
