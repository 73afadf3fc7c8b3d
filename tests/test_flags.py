"""A verb's words -> its function's arguments, or one line that says which word is wrong."""

from pathlib import Path

import pytest

from tests.conftest import Command


def test_a_setting_is_explained_by_the_docstring_of_the_function(command: Command) -> None:
    shown = " ".join(command("generate", "x", "--help").out.split())
    assert "below 1 sharpens the distribution, above 1 flattens it" in shown


def test_an_unknown_flag_is_one_line_and_exit_2(command: Command) -> None:
    mistake = command("prepare", "--inputt", "x")
    assert mistake.code == 2
    assert "inputt" in mistake.error
    assert "lmtemplate prepare --help" in mistake.error
    assert "\n" not in mistake.error


def test_a_flag_of_the_wrong_type_is_one_line_and_exit_2(command: Command, tmp_path: Path) -> None:
    mistake = command("generate", tmp_path, "--max_new_tokens", "many")
    assert mistake.code == 2
    assert "max_new_tokens" in mistake.error
    assert "\n" not in mistake.error


FLAGS = [
    ("generate RUN --temprature 1", "no flag --temprature; did you mean --temperature?"),
    ("generate RUN --max-new-token=1", "no flag --max-new-token; did you mean --max_new_tokens?"),
    ("plan --token 5", "no flag --token; did you mean --tokens?"),
    ("prepare --tokenizr char", "no flag --tokenizr; did you mean --tokenizer?"),
    ("summary RUN --zzz", "no flag --zzz (see"),
    ("prepare books", "'books' is not a flag; did you mean --input books?"),
    ("plot RUN another", "'another' is not a flag (see"),
    ("generate --run RUN", "RUN is a word, not a flag: lmtemplate generate RUN"),
    ("plan --tokens 1B", "--tokens: expected a number or null, got 1B; write 1000000000"),
    ("plan --flops abc", "--flops: expected a number or null, got abc (see"),
    ("prepare --vocab_size 1e4", "expected a whole number or null, got 1e4; write 10000 (see"),
    ("prepare --seed abc", "--seed: expected a whole number, got abc"),
    ("generate RUN --temperature hot", "--temperature: expected a number, got hot"),
    ("generate RUN --temperature nan", "--temperature: expected a number, got nan"),
    ("generate RUN --max_new_tokens 1e3", "expected a whole number, got 1000.0; write 1000 (see"),
    ("generate RUN --device gpu", "--device: expected one of auto, cpu, cuda, mps, got gpu"),
]


@pytest.mark.parametrize(("words", "says"), FLAGS, ids=[words for words, _ in FLAGS])
def test_a_wrong_flag_is_said_in_plain_words(command: Command, words: str, says: str) -> None:
    mistake = command(*words.split())
    assert mistake.code == 2
    assert says in mistake.error
    assert mistake.error.endswith(f"(see lmtemplate {words.split()[0]} --help)")
