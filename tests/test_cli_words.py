"""Words and YAML -> settings with their places; what cannot be read, in one line."""

from pathlib import Path

import pytest
import yaml

from lmtemplate.cli_classes import load_yaml
from lmtemplate.cli_words import find, flags_in, read_config, read_words
from lmtemplate.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# max_steps in a comment\ntrainer:\n  max_steps: 5  # not val_check_interval\n"
        "model:\n  optimizer:\n    class_path: lmtemplate.optimizers.SGD\n"
        "    init_args: {lr: 0.1}\n"
    )
    return path


def test_configs_are_found_in_every_spelling_and_the_last_one_wins(config: Path) -> None:
    other = config.with_name("other.yaml")
    other.write_text("trainer: {max_steps: 9}")
    for spelling in ("--config", "-c"):
        words = ["--x=1", spelling, str(config), "--y", "2", f"{spelling}={other}"]
        first, made = read_words(words)
        texts = [word.removeprefix(f"--config={'#' * 300}\n") for word in first[:2]]
        read = [yaml.safe_load(path.read_text()) for path in (config, other)]
        assert [yaml.safe_load(text) for text in texts] == read
        assert first[2:] == ["--x=1", "--y", "2"]
        assert [place.where for place in made if place.key == "trainer.max_steps"] == [
            f"{other}:1",
            f"{config}:3",
        ]


@pytest.mark.parametrize(
    ("key", "whole", "line"),
    [("max_steps", "trainer.max_steps", 3), ("lr", "model.optimizer.lr", 7)],
)
def test_a_key_is_found_with_its_path_and_line(
    config: Path, key: str, whole: str, line: int
) -> None:
    assert find(key, read_config(config)[1])[:2] == (whole, f"{config}:{line}")


VALUES = """3e-4 1e3 '1e3' 0x1F 010 1_000 yes 'yes' on ~ '' 2024-01-01 12:30:45 !!str{}12 !!float{}3
    .inf -.nan 'it''s' "\\t\\x1b\\u1234" é漢 '#x' '@x' +5 -0"""


@pytest.mark.parametrize("value", [one.format(" ") for one in VALUES.split()])
def test_the_text_that_is_handed_on_says_the_same(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"# first\na: {{b: [{value}, 'x y']}}\nc: |\n  1\n  2\n", encoding="utf-8")
    text, _ = read_config(path)
    assert repr(load_yaml(f"# c\n{text}")) == repr(load_yaml(path.read_text(encoding="utf-8")))


def test_no_parser_finds_another_key_in_the_text_that_is_handed_on(tmp_path: Path) -> None:
    """The C library of YAML drops a byte-order mark that begins a line, as Python's does not."""
    path = tmp_path / "a.yaml"
    path.write_text("{seed_everything: 1,\n\ufeffconfig: other.yaml}\n", encoding="utf-8")
    text, _ = read_config(path)
    assert load_yaml(f"# c\n{text}").keys() == {"seed_everything", "\ufeffconfig"}


def test_a_key_that_appends_is_found_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("trainer: {callbacks+: [x.Y]}")
    assert find("trainer.callbacks", read_config(path)[1]).where == f"{path}:1"


@pytest.mark.parametrize("word", ["val_check_interval", "max_step", "steps", "5"])
def test_comments_values_and_parts_of_words_are_no_keys(config: Path, word: str) -> None:
    assert find(word, read_config(config)[1]).where == "command line"


# ---- a file


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: 1\nb: [1, 2\n  c: 3  \n", ":3:4 is not YAML: expected ',' or ']', but got ':'"),
        (b"trainer:\n\tmax_steps: 5\n", ":2:1 is not YAML: "),
        (b"# x\nrun_dir: caf\xe9\n", ": not UTF-8 at byte 16; save it as UTF-8"),
        (b"- a", " holds no settings"),
        (b"", " holds no settings"),
        (b"# x\non: {push: 1}", "a key ({path}:2) is not text in YAML"),
        (b"# x\nmodel: {? [a, b] : c}", "a key ({path}:2) is not text"),
        (b"# x\nmodel: {__path__: x}", "unknown setting 'model.__path__' ({path}:2)"),
        (b"print_shtab: bash", "unknown setting 'print_shtab' ({path}:1)"),
        (b"# x\ntrainer: !!set {a}", "trainer ({path}:2): the tag set is not read here"),
        (b"a: [!!binary eA==]", "a ({path}:1): the tag binary is not read here"),
        (b"a: {!!binary eA==: 1}", "eA== ({path}:1): the tag binary is not read here"),
        (
            b"base: &a {x: 1}\nmodel: {<<: *a}",
            "<< ({path}:2): the tag merge is not read here; write the",
        ),
        (b"model: {!!merge x: {a: 1}}", "x ({path}:1): the tag merge is not read here"),
        (b"run_dir: !!str {=: 'x'}", "run_dir ({path}:1): the tag str is not read here"),
        (b"!!str {=: 'x'}", "a key ({path}:1) is not text"),
        (b"trainer: !!bool {=: yes}", "trainer ({path}:1): the tag bool is not read here"),
        (b"a: [{=: x}]", "= ({path}:1): the tag value is not read here"),
        (b"a: !<tag:other:str> x", "a ({path}:1): the tag tag:other:str is not read here"),
        (b"config: x.yaml", "config ({path}:1): a config names no other"),
        (b"config.x: y", "config ({path}:1): a config names no other"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as mistake:
        read_config(path)
    expected = says.format(path=path) if "{path}" in says else f"{path}{says}"
    assert str(mistake.value).startswith(expected)


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file or directory$"):
        read_config(tmp_path / "other.yml")
    with pytest.raises(ConfigError, match=r"Is a directory$"):
        read_config(tmp_path)


def test_where_both_have_a_key_that_of_the_wrong_value_is_named(config: Path) -> None:
    made = flags_in(["--trainer.max_steps=9"]) + read_config(config)[1]
    assert find("max_steps", made, "5").where == f"{config}:3"
    assert find("max_steps", made).where == "command line"
