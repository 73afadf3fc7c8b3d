"""Words and config files -> settings, or one line: the parts of that line."""

from pathlib import Path

import pytest

from lmtemplate import parsing
from lmtemplate.errors import ConfigError
from lmtemplate.parsing import (
    OWNED,
    ROOMS,
    TrainingCLI,
    check_yaml,
    configs_in,
    one_line,
    settings_by_name,
    where_is,
)


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
    line = one_line(message, parser, [])
    assert "\n" not in line
    assert len(line) < 500
