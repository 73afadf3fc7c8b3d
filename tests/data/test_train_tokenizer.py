"""Vocabularies: what characters and merges come out of texts, and which settings are refused."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmtemplate.data.train_tokenizer import automatic_vocab_size, train_tokenizer
from lmtemplate.errors import ConfigError, DataError

TEXTS = [
    "The cat sat on the mat; the cats sat on the mats.\r\n",
    "Ünïcode, 日本語, 🙂🙂 and \x00 NUL.\n" * 3,
    "It says <|endoftext|> and </s> in the middle.",
]


def test_character_ids_are_the_sorted_characters_then_unknown_then_end_of_text() -> None:
    tokenizer = train_tokenizer("char", ["cab", "🙂b"], None)
    assert tokenizer.decode(range(4)) == "abc🙂"
    assert (tokenizer.unknown_id, tokenizer.eot_id, tokenizer.vocab_size) == (4, 5, 6)
    assert tokenizer.token_bytes().tolist() == [1, 1, 1, 4, 1, 0]


def test_bpe_merges_the_most_frequent_pair_first() -> None:
    tokenizer = train_tokenizer("bpe", ["ab ab ab ac ab"], 258)
    assert tokenizer.vocab_size == 258
    assert tokenizer.decode([257]) == "ab"
    assert tokenizer.encode(["ab"])[0].tolist() == [257]


def test_bpe_trains_alike_every_time() -> None:
    assert train_tokenizer("bpe", iter(TEXTS * 20), 400).digest == (
        train_tokenizer("bpe", iter(TEXTS * 20), 400).digest
    )


def test_bpe_stops_where_the_text_has_no_pair_twice() -> None:
    assert train_tokenizer("bpe", ["abcdef ab"], 5000).vocab_size == 257 + 1


def test_words_that_are_not_long_are_merged_whole() -> None:
    word = "internationalisation" * 3
    tokenizer = train_tokenizer("bpe", [f" {word[1:]}" * 9], 5000)
    assert len(tokenizer.encode([f" {word[1:]}"])[0]) == 1


ONE_WORD = {
    "DNA": lambda: "".join(random.Random(1).choices("ACGT", k=120_000)),
    "one letter": lambda: "a" * 1_000_000,
    "line ends": lambda: "\n" * 1_000_000,
    "Chinese": lambda: "".join(map(chr, random.Random(1).choices(range(0x4E00, 0x5200), k=50_000))),
}


@pytest.mark.parametrize(
    "kind",
    ["DNA", *(pytest.param(kind, marks=pytest.mark.slow) for kind in [*ONE_WORD][1:3]), "Chinese"],
)
def test_a_text_of_one_word_is_trained_and_encoded_in_seconds(kind: str) -> None:
    text, start = ONE_WORD[kind](), time.process_time()
    tokenizer = train_tokenizer("bpe", [text], 512)
    ids = tokenizer.encode([text])[0]
    assert tokenizer.decode(ids.tolist()) == text
    assert time.process_time() - start < 20  # of all cores; it was minutes, or without end


@pytest.mark.slow
def test_ctrl_c_ends_the_training_of_a_bpe(tmp_path: Path) -> None:
    program = (
        "import random, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from lmtemplate.data.train_tokenizer import train_tokenizer\n"
        "text = ''.join(random.choices('ACGT', k=8_000_000)); print('ready', flush=True)\n"
        "train_tokenizer('bpe', [text], 8000)"
    )
    work = subprocess.Popen([sys.executable, "-c", program], stdout=-1, stderr=-1, text=True)
    assert work.stdout is not None
    assert work.stdout.readline() == "ready\n"
    time.sleep(2)
    work.send_signal(signal.SIGINT)
    _, error = work.communicate(timeout=10)
    assert "KeyboardInterrupt" in error


@pytest.mark.parametrize(
    ("megabytes", "size"),
    [(0.1, 512), (0.5, 512), (2, 1024), (2.1, 2048), (512, 16384), (9e3, 32768)],
)
def test_four_times_the_text_doubles_the_automatic_vocabulary(megabytes: float, size: int) -> None:
    assert automatic_vocab_size(int(megabytes * 1e6)) == size


def test_bpe_training_passes_on_what_is_wrong_with_the_texts() -> None:
    def broken() -> Iterator[str]:
        yield "fine"
        raise DataError("mine.txt, line 2: byte 0xff is not UTF-8")

    with pytest.raises(DataError, match="line 2"):
        train_tokenizer("bpe", broken(), 300)


def test_bpe_training_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    train_tokenizer("bpe", TEXTS, 300)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpe", 256, "--vocab_size 256: a bpe has 257 or more"),
        ("bpe", 2**31, "and at most 16,777,216"),
        ("char", 500, "--vocab_size 500 is for --tokenizer bpe"),
        ("byte", 500, "--vocab_size 500 is for --tokenizer bpe"),
        ("bep", None, "--tokenizer bep is neither char, byte, bpe nor a file"),
        ("nowhere/tokenizer.json", None, "nor a file"),
    ],
)
def test_an_impossible_setting_is_a_configuration_error(
    kind: str, size: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(kind, TEXTS, size)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", b'{"kind": "word"}', b'{"model": {}}', b'{"kind": "char"}']
)
def test_a_file_that_is_no_tokenizer_is_named_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.json cannot be used: ") as caught:
        train_tokenizer(str(tmp_path / "mine.json"), [], None)
    assert "\n" not in str(caught.value)


def test_a_pretrained_file_is_taken_as_it_is(tmp_path: Path) -> None:
    trained = train_tokenizer("bpe", TEXTS, 300)
    (tmp_path / "tokenizer.json").write_text(trained.to_json(), encoding="utf-8")
    taken = train_tokenizer(str(tmp_path / "tokenizer.json"), [], None)
    assert taken.digest == trained.digest


def test_what_the_library_objects_to_while_it_trains_is_told() -> None:
    with pytest.raises(DataError, match=r"no BPE can be trained on this text: .*surrogates"):
        train_tokenizer("bpe", ["half of a pair: \ud800"], 300)
