"""What jsonargparse says -> one line: its parts, and where they are looked up."""

from argparse import ArgumentParser
from pathlib import Path

import pytest

from lmtemplate.cli import CALLBACKS, TrainingCLI
from lmtemplate.cli_errors import (
    GROUPS,
    KINDS,
    OWNED,
    SYNONYMS,
    choices,
    configs_in,
    find,
    in_words,
    one_line,
    places,
    settings_by_name,
)


@pytest.fixture(scope="module")
def parser(corpus: Path) -> ArgumentParser:
    return TrainingCLI(["--data.path", str(corpus)]).parser


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# max_steps in a comment\ntrainer:\n  max_steps: 5  # not val_check_interval\n"
        "model:\n  optimizer:\n    class_path: lmtemplate.optimizers.SGD\n"
        "    init_args: {lr: 0.1}\n"
    )
    return path


@pytest.mark.parametrize(
    "words",
    [["--config", "a.yaml", "--config=b.yaml", "--x"], ["-c", "a.yaml", "--config", "b.yaml"]],
)
def test_configs_are_found_in_every_spelling(words: list[str]) -> None:
    assert set(configs_in(words)) == {Path("a.yaml"), Path("b.yaml")}


@pytest.mark.parametrize(
    ("key", "whole", "line"),
    [
        ("max_steps", "trainer.max_steps", 3),
        ("trainer.max_steps", "trainer.max_steps", 3),
        ("lr", "model.optimizer.lr", 7),
        ("optimizer", "model.optimizer", 5),
    ],
)
def test_a_key_is_found_with_its_path_and_line(
    config: Path, key: str, whole: str, line: int
) -> None:
    assert find(key, places([config], []))[:2] == (whole, f"{config}:{line}")


@pytest.mark.parametrize("word", ["val_check_interval", "max_step", "steps", "5"])
def test_comments_values_and_parts_of_words_are_no_keys(config: Path, word: str) -> None:
    assert find(word, places([config], [])).where == "command line"


def test_the_last_config_that_has_a_key_is_named(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("trainer: {max_steps: 7}\n")
    assert find("max_steps", places([config, other], [])).where == f"{other}:1"


@pytest.mark.parametrize(
    "words",
    [["--trainer.max_steps", "9"], ["--trainer.max_steps=9"], ["--trainer.max_steps=1e1", "--x"]],
)
def test_a_flag_wins_over_a_config(config: Path, words: list[str]) -> None:
    for key in ("max_steps", "trainer.max_steps"):
        assert find(key, places([config], words))[:2] == ("trainer.max_steps", "command line")


@pytest.mark.parametrize("value", ["5", "5.0"])
def test_where_both_have_a_key_that_of_the_wrong_value_is_named(config: Path, value: str) -> None:
    made = list(places([config], ["--trainer.max_steps=9"]))
    assert find("max_steps", made, value).where == f"{config}:3"
    assert find("max_steps", made, "9").where == "command line"


def test_init_args_are_no_part_of_a_key() -> None:
    made = places([], ["--model.net.init_args.n_layer=3"])
    assert find("n_layer", made).key == "model.net.n_layer"


def test_settings_of_the_default_classes_are_known_by_name(parser: ArgumentParser) -> None:
    names = settings_by_name(parser, [])
    assert names["n_layer"] == "model.net.n_layer"
    assert names["warmup_steps"] == "model.schedule.warmup_steps"
    assert names["weight_decay"] == "model.optimizer.weight_decay"
    assert names["patience"] == "early_stopping.patience"
    assert names["max_tokens"] == "max_tokens"
    assert "adamw_lr" not in names


@pytest.mark.parametrize("words", [["--model.optimizer", "MuonAdamW"], ["--x=a.b.MuonAdamW"]])
def test_settings_are_those_of_the_class_that_is_set(
    parser: ArgumentParser, words: list[str]
) -> None:
    names = settings_by_name(parser, list(places([], words)))
    assert names["adamw_lr"] == "model.optimizer.adamw_lr"
    assert "betas" not in names


def test_a_setting_that_is_linked_is_named_where_it_is_set(parser: ArgumentParser) -> None:
    names = settings_by_name(parser, [])
    assert names["block_size"] == "data.block_size"
    assert "vocab_size" not in names or not names["vocab_size"].startswith("model.")


def test_classes_to_choose_from_are_those_that_a_setting_takes(parser: ArgumentParser) -> None:
    offered = {action.dest: list(choices(action)) for action in parser._actions}
    assert sorted(offered["model.net"]) == ["GPT", "GPT2"]
    assert sorted(offered["model.optimizer"]) == ["Adam", "AdamW", "MuonAdamW", "SGD"]
    assert offered["trainer.max_steps"] == []
    for key, kind in CALLBACKS.items():
        assert offered[key] == [kind.__name__]


def test_trainer_settings_that_are_owned_are_not_offered(parser: ArgumentParser) -> None:
    known = {action.dest for action in parser._actions}
    assert not {f"trainer.{name}" for name in OWNED} & known


def test_what_to_use_instead_exists(parser: ArgumentParser) -> None:
    known = {action.dest for action in parser._actions}
    for instead in filter(None, OWNED.values()):
        word = instead.split(",")[0].split(":")[0]
        assert word in known or Path(word.removeprefix("--config ")).suffix == ".yaml"
    assert {*GROUPS.values()} <= known
    assert {*SYNONYMS.values()} <= {*settings_by_name(parser, [])}
    assert not {*SYNONYMS} & {*settings_by_name(parser, [])}


UNION = (
    "Does not validate against any of the Union subtypes Subtypes: [<class 'float'>, <class "
    "'NoneType'>] Errors: - Expected a <class 'float'> - Expected a <class 'NoneType'> Given value "
    "type: <class 'str'> Given value: "
)
WHOLE = "Expected a <class 'int'>. Got value: "


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (f"{WHOLE}many", "expected a whole number, got many"),
        (f"{WHOLE}1.5", "expected a whole number, got 1.5"),
        (f"{WHOLE}10.0", "expected a whole number, got 10.0; write 10"),
        (f"{WHOLE}1e3", "expected a whole number, got 1e3; write 1000"),
        (f"{WHOLE}-1.0", "expected a whole number, got -1.0; write -1"),
        (
            f"{WHOLE}1,000",
            "expected a whole number, got 1,000; write 1000, without letters or commas",
        ),
        (
            f"{WHOLE}1.5K",
            "expected a whole number, got 1.5K; write 1500, without letters or commas",
        ),
        (f"{WHOLE}1,5", "expected a whole number, got 1,5"),
        (f"{WHOLE}1e999", "expected a whole number, got 1e999"),
        (f"{WHOLE}K", "expected a whole number, got K"),
        (WHOLE.strip(), "expected a whole number, got nothing"),
        (
            f"{UNION}1B",
            "expected a number or null, got 1B; write 1000000000, without letters or commas",
        ),
        (f"{UNION}nan", "expected a number or null, got nan"),
        ("Expected a <class 'bool'>. Got value: 1.0", "expected true or false, got 1.0"),
        (
            "Expected a typing.Literal['auto', 'cpu']. Got value: gpu",
            "expected one of auto, cpu, got gpu",
        ),
        (
            "Expected a tuple with 2 elements. Got value: [1, 2, 3]",
            "expected a tuple with 2 elements, got [1, 2, 3]",
        ),
    ],
)
def test_a_wrong_value_is_said_in_plain_words(problem: str, says: str) -> None:
    assert in_words(problem) == says


def test_no_plain_word_is_a_name_of_python() -> None:
    assert not {*KINDS} & {*KINDS.values()}


@pytest.mark.parametrize(
    "message",
    ["unrecognized arguments: --max_stepz=5\nusage: ...", "something\n\n  else " * 100, ""],
)
def test_any_message_becomes_one_short_line(parser: ArgumentParser, message: str) -> None:
    line = one_line(message, parser, [], [])
    assert "\n" not in line
    assert len(line) < 500
