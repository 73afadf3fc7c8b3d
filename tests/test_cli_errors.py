"""A mistake in words or YAML -> one line that says what, where, and what was probably meant."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse._common import parsing_settings
from torch.nn import Parameter
from torch.optim import Optimizer

from lmtemplate.callbacks import CALLBACKS, OFF
from lmtemplate.cli import TrainingCLI
from lmtemplate.cli_classes import configure_parsing
from lmtemplate.cli_errors import OWNED, SYNONYMS, choices, known_settings, one_line, parse_words
from lmtemplate.cli_words import flags_in, read_words
from lmtemplate.errors import ConfigError
from lmtemplate.optimizers import OptimizerRecipe
from tests.conftest import Command, needs_study

Refused = Callable[[str], str]


@pytest.fixture(scope="module")
def parser(corpus: Path) -> ArgumentParser:
    configure_parsing([])
    return TrainingCLI(["--data.path", str(corpus)]).parser


@pytest.fixture(scope="module")
def defaults(parser: ArgumentParser) -> dict[str, object]:
    return dict(parser.get_defaults().items())


@pytest.fixture
def in_words(parser: ArgumentParser) -> Refused:
    """What is said of one flag."""

    def call(flag: str) -> str:
        with pytest.raises(ConfigError) as mistake:
            parse_words(parser, *read_words([flag]))
        return str(mistake.value)

    return call


@pytest.fixture
def in_yaml(parser: ArgumentParser, tmp_path: Path) -> Refused:
    """What is said of a config, whose first line is a comment; its path is "HERE"."""

    def call(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(f"# mine\n{text}\n")
        words = ["--config", str(path)]
        with pytest.raises(ConfigError) as mistake:
            parse_words(parser, *read_words(words))
        return str(mistake.value).replace(str(path), "HERE")

    return call


# ---- a key that does not exist

MISSPELT = [
    ("trainer: {max_stepz: 5}", "trainer.max_stepz", "trainer.max_steps"),
    ("modle: {z_loss: 0.1}", "modle.z_loss", "model.z_loss"),
    ("model: {net: {init_args: {n_layers: 3}}}", "model.net.n_layers", "model.net.n_layer"),
    (
        "model: {optimizer: {init_args: {learning_rate: 1}}}",
        "model.optimizer.learning_rate",
        "model.optimizer.lr",
    ),
]


@pytest.mark.parametrize(("text", "key", "meant"), MISSPELT)
def test_a_misspelt_key_in_a_config_names_file_line_and_what_was_meant(
    in_yaml: Refused, text: str, key: str, meant: str
) -> None:
    says = f"unknown setting '{key}' (HERE:2); did you mean {meant}? (all: lmtemplate fit --help)"
    assert in_yaml(text) == says


WORDS = [
    ("--model.net.init_args.n_layers=3", "model.net.n_layer"),
    ("--learning_rate=3", "model.optimizer.lr"),
    ("--batch-size=4", "data.batch_size"),
]


@pytest.mark.parametrize(("word", "meant"), WORDS)
def test_a_misspelt_flag_says_command_line_and_what_was_meant(
    in_words: Refused, word: str, meant: str
) -> None:
    assert f"(command line); did you mean {meant}?" in in_words(word)


def test_a_setting_of_another_class_is_answered_with_one_of_the_class_that_is_set(
    in_yaml: Refused,
) -> None:
    text = "model: {optimizer: {class_path: %s, init_args: {betas: [0.9, 0.9]}}}"
    message = in_yaml(text % "MuonAdamW")
    assert "unknown setting 'model.optimizer.betas' (HERE:2)" in message
    assert "did you mean model.optimizer.adamw_betas?" in message
    assert "did you mean" not in in_yaml(text % "SGD")


@pytest.mark.parametrize("name", ["barebones", "limit_train_batches"])
def test_a_trainer_setting_that_is_not_ours_says_what_to_use_or_why_not(
    in_yaml: Refused, name: str
) -> None:
    assert (
        in_yaml(f"trainer: {{{name}: 1}}")
        == f"trainer.{name} (HERE:2) cannot be set: " + (OWNED[name])
    )


def test_what_to_use_instead_exists(defaults: dict[str, object]) -> None:
    uses = [text.removeprefix("use ") for text in OWNED.values() if text.startswith("use ")]
    for word in (text.split(",")[0].split(":")[0] for text in uses):
        path = word.removeprefix("--config ")
        names = {key.removesuffix(".class_path") for key in defaults}
        assert word in names or Path(path).is_file() or word == "data.max_train_blocks"
    known = {key.rpartition(".")[2] for key in known_settings(defaults, [])}
    assert {*SYNONYMS.values()} <= known
    assert not {*SYNONYMS} & known


def test_a_setting_that_is_linked_is_named_where_it_is_set(defaults: dict[str, object]) -> None:
    known = known_settings(defaults, [])
    assert [key for key in known if key.endswith("block_size")] == ["data.block_size"]
    assert not [key for key in known if key.endswith("vocab_size")]


# ---- a class


@pytest.mark.parametrize(
    ("key", "name", "meant"),
    [
        ("model.optimizer", "AdamWW", "AdamW"),
        ("model.schedule", "cosine", "WarmupCosine"),
        ("model.net", "lmtemplate.models.GTP", "GPT"),
    ],
)
def test_a_misspelt_class_is_answered_with_its_place_and_the_one_meant(
    in_words: Refused, in_yaml: Refused, key: str, name: str, meant: str
) -> None:
    room, setting = key.split(".")
    for where, message in (
        ("command line", in_words(f"--{key}={name}")),
        ("HERE:4", in_yaml(f"{room}:\n  {setting}:\n    class_path: {name}")),
    ):
        assert message.startswith(f"{key} ({where}): {name!r} is no ")
        assert f"; did you mean {meant}? (there are: " in message


def test_a_class_of_another_kind_is_not_said_to_be_missing(in_yaml: Refused) -> None:
    assert in_yaml("model:\n  net: {class_path: lmtemplate.optimizers.AdamW}") == (
        "model.net (HERE:3): 'lmtemplate.optimizers.AdamW' is no LanguageModel "
        "(there are: GPT, GPT2)"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["AdamWW"], "'AdamWW' is no OptimizerRecipe; did you mean AdamW?"),
        (["torch.optim.SGD", "--optimizer.lrr=1"], "unknown setting 'optimizer.lrr'"),
        (["AdamW", "--optimizer.lr=fast"], "optimizer.lr (command line): expected a number, got f"),
    ],
)
def test_a_class_is_named_where_a_setting_takes_a_function_as_well(
    words: list[str], says: str
) -> None:
    configure_parsing([])
    either = OptimizerRecipe | Callable[[Iterable[Parameter]], Optimizer]
    parser = ArgumentParser("lmtemplate fit", exit_on_error=False)
    default = {"class_path": "lmtemplate.optimizers.AdamW"}
    parser.add_argument("--optimizer", type=either, default=default)
    words = [f"--optimizer={words[0]}", *words[1:]]
    with pytest.raises(ArgumentError) as mistake:
        parser.parse_args(words)
    defaults = dict(parser.get_defaults().items())
    assert says in one_line(str(mistake.value), "lmtemplate fit", defaults, flags_in(words))
    assert parser.parse_args(["--optimizer=torch.optim.RMSprop"])


OWN = [
    (
        "model: {loss: {class_path: torch.nn.CrossEntropyLoss}}",
        "model.loss (HERE:2): 'torch.nn.CrossEntropyLoss' is no LossFunction; write its __call__(",
    ),
    (
        "model: {schedule: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_siz: 3}}}",
        "did you mean model.schedule.step_size?",
    ),
    (
        "model: {metrics: [{class_path: torchmetrics.text.Perplexity, init_args: {ignore: 1}}]}",
        "did you mean model.metrics.ignore_index?",
    ),
]


@pytest.mark.parametrize(("text", "says"), OWN)
def test_a_class_from_elsewhere_is_answered_as_one_of_ours(
    in_yaml: Refused, text: str, says: str
) -> None:
    assert says in in_yaml(text)


ALLOWED = [
    (
        "callbacks: [lightning.pytorch.callbacks.ModelSumary]",
        "'lightning.pytorch.callbacks.ModelSumary' is no class that fits; did you mean ModelSummary?",
    ),
    (
        "logger: {class_path: lightning.pytorch.loggers.CSVLogger}",
        "lightning.pytorch.loggers.CSVLogger needs save_dir; give it in init_args",
    ),
]


@pytest.mark.parametrize(("text", "says"), ALLOWED)
def test_a_class_of_an_allowed_package_is_answered_as_one_of_ours(
    in_yaml: Refused, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    before = dict(parsing_settings["import_path_verdicts"])  # it allows as long as a process lives
    monkeypatch.setitem(parsing_settings, "import_path_verdicts", before)
    configure_parsing(["lightning"])
    assert says in in_yaml(f"trainer: {{{text}}}")


def test_a_callback_that_is_no_class_is_said_with_what_there_is(in_words: Refused) -> None:
    assert in_words("--samples=true") == (
        "samples (command line): 'true' is no Samples (there are: Samples; null turns it off)"
    )


def test_a_class_of_a_package_that_is_not_allowed_names_the_flag(
    in_words: Refused, in_yaml: Refused
) -> None:
    message = in_yaml("model: {net: {class_path: theirs.Net}}")
    assert message == (
        "model.net (HERE:2): theirs.Net is of a package that is not allowed; add --allow theirs on "
        "the command line if you trust it"
    )
    assert "os.system is Python's own" in in_yaml("model: {net: {class_path: os.system}}")
    assert in_words("--model.net.help=theirs.Net").startswith("theirs.Net is of a package that is ")


def test_classes_to_choose_from_are_those_that_a_setting_takes(defaults: dict[str, object]) -> None:
    for key in CALLBACKS.keys() - set(OFF):
        assert [*choices(str(defaults[f"{key}.class_path"]))[1]] == [CALLBACKS[key].split(".")[-1]]
    optimizers = choices("lmtemplate.optimizers.AdamW")
    assert optimizers[0] == "OptimizerRecipe"
    assert [*optimizers[1]] == ["Adam", "AdamW", "MuonAdamW", "SGD"]


def test_a_key_that_is_there_twice_is_refused(in_yaml: Refused) -> None:
    text = "trainer:\n  max_steps: 5\n  max_steps: 7"
    assert in_yaml(text) == "HERE:4: max_steps is there twice; keep one"


# ---- a value

VALUES = [
    ("trainer: {max_steps: many}", "trainer.max_steps (HERE:2): expected a whole number, got many"),
    (
        "model:\n  net: {init_args: {n_layer: 1.5}}",
        "model.net.n_layer (HERE:3): expected a whole number, got 1.5",
    ),
    ("resume: perhaps", "resume (HERE:2): expected one of never, auto, must, got perhaps"),
    (
        "seed_everything: -1",
        "seed_everything (HERE:2): expected a whole number from 0 to 2^32 - 1, got -1",
    ),
    (
        "trainer: {gradient_clip_val: 0}",
        "trainer.gradient_clip_val (HERE:2): expected a number above 0 or null, got 0",
    ),
    (
        "trainer: {val_check_interval: 0.5}",
        "trainer.val_check_interval (HERE:2): expected a whole number above 0, got 0.5",
    ),
    ("data: {batch_size: null}", "data.batch_size (HERE:2): expected a whole number, got null"),
    ("seed_everything: null", "seed_everything (HERE:2): expected a whole number from 0 to"),
    ("data: {path: null}", "data.path (HERE:2): expected a path, got null"),
    ("run_dir: null", "run_dir (HERE:2): expected str, got null"),
    ("trainer: 5", "trainer (HERE:2): expected settings below it"),
    ("checkpoint: 3", "checkpoint (HERE:2): expected Checkpoint or null, got 3"),
]


@pytest.mark.parametrize(("text", "says"), VALUES)
def test_a_wrong_value_is_named_with_file_and_line(in_yaml: Refused, text: str, says: str) -> None:
    assert in_yaml(text).startswith(says)


@pytest.mark.parametrize("flag", ["--trainer.max_steps=1K", "--trainer=5"])
def test_a_wrong_value_of_a_flag_says_command_line(in_words: Refused, flag: str) -> None:
    assert in_words(flag).startswith(f"{flag[2:].partition('=')[0]} (command line): ")


def test_a_wrong_value_of_a_flag_is_not_blamed_on_a_config(
    parser: ArgumentParser, tmp_path: Path
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("trainer:\n  max_steps: 5\n")
    words = ["--trainer.max_steps=many", "--config", str(config)]
    with pytest.raises(ConfigError, match=r"trainer.max_steps \(command line\): .* got many"):
        parse_words(parser, *read_words(words))


def test_a_word_that_is_no_flag_is_answered_with_how_flags_begin(in_words: Refused) -> None:
    assert in_words("max_steps=10").startswith("'max_steps' (command line) is not a flag; flags be")


def test_a_flag_without_its_value_is_named(in_words: Refused) -> None:
    assert "--trainer.max_steps: expected one argument" in in_words("--trainer.max_steps")
    assert "--config (command line) needs a file" in in_words("--config")


@pytest.mark.parametrize("message", ["something\n\n  else " * 100, ""])
def test_any_message_becomes_one_short_line(message: str) -> None:
    line = one_line(message, "fit", {}, [])
    assert "\n" not in line
    assert len(line) < 500


# ---- verbs

VERB_FLAGS = [
    ("generate RUN --temprature 1", "unknown setting 'temprature' (command line); did you mean te"),
    ("generate RUN --max-new-token=1", "did you mean max_new_tokens?"),
    ("prepare books", "'books' (command line) is not a flag"),
    ("prepare --val_ratio abc", "val_ratio (command line): expected a number, got abc"),
    ("generate RUN --device gpu", "expected one of auto, cpu, cuda, mps, got gpu"),
    ("generate", "run"),
]


@pytest.mark.parametrize(("words", "says"), VERB_FLAGS)
def test_a_wrong_flag_of_a_verb_is_one_line(command: Command, words: str, says: str) -> None:
    mistake = command(*words.split())
    assert mistake.code == 2
    assert says in mistake.error
    assert "\n" not in mistake.error


@needs_study
@pytest.mark.parametrize("switch", [["--quick"], ["--quick", "true"], ["--quick=true"]])
def test_a_switch_needs_no_value(command: Command, switch: list[str], tmp_path: Path) -> None:
    mistake = command("diagnose", *switch, "--val-loss", "val", tmp_path / "none")
    assert str(tmp_path / "none") in mistake.error


def test_a_setting_is_explained_by_the_docstring_of_the_function(command: Command) -> None:
    shown = " ".join(command("generate", "x", "--help").out.split())
    assert "below 1 sharpens the distribution, above 1 flattens it" in shown
