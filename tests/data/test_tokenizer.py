"""Tokenizers lose nothing, count bytes truly, and never take text for a document's end."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from lmtemplate.data.tokenizer import (
    AUTOMATIC_VOCABULARY,
    Tokenizer,
    load_tokenizer,
    parse_tokenizer,
    train_tokenizer,
)
from lmtemplate.errors import ConfigError, DataError

TEXTS = [
    "The cat sat on the mat; the cats sat on the mats.\r\n",
    "Ünïcode, 日本語, 🙂🙂 and \x00 NUL.\n" * 3,
    "It says <|endoftext|> and </s> in the middle.",
]
CHAR = train_tokenizer("char", TEXTS, None)
BYTE = train_tokenizer("byte", [], None)
BPE = train_tokenizer("bpe", TEXTS, 300)
STEADY = settings(derandomize=True, deadline=None, database=None)
TRAINED = pytest.mark.parametrize("tokenizer", [CHAR, BYTE, BPE], ids=["char", "byte", "bpe"])
TOTAL = pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])


def word_soup(characters: int, words: int) -> list[str]:
    """Documents of a made-up language, so that BPE finds as many merges as it likes."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 12, words)
    vocabulary = ["".join(map(chr, generator.integers(97, 123, length))) for length in lengths]
    text = " ".join(generator.choice(vocabulary, characters // 8))
    return [text[start : start + 10_000] for start in range(0, characters, 10_000)]


def sentencepiece_like(special: Sequence[str], model: models.Model | None = None) -> Library:
    pieces = ["<unk>", "</s>", "<0x0A>", "▁", "a", "é", "<", "/", "s", ">"]
    scored = [(piece, -float(place)) for place, piece in enumerate(pieces)]
    library = Library(model or models.Unigram(scored, 0, False))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.add_special_tokens(list(special))
    return library


def encode_one(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(number) for number in tokenizer.encode([text])[0]]


@TOTAL
@STEADY
@given(texts=st.lists(st.text(), max_size=4))
def test_any_text_comes_back_as_it_was(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert [tokenizer.decode(ids.tolist()) for ids in tokenizer.encode(texts)] == texts


@STEADY
@given(texts=st.lists(st.text(alphabet=sorted(set("".join(TEXTS)))), max_size=4))
def test_known_characters_come_back_as_they_were(texts: list[str]) -> None:
    assert [CHAR.decode(ids.tolist()) for ids in CHAR.encode(texts)] == texts


@TRAINED
def test_awkward_texts_come_back_as_they_were(tokenizer: Tokenizer) -> None:
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids.tolist()) == text


@TRAINED
def test_no_texts_give_no_arrays_and_an_empty_text_an_empty_one(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]) == []
    assert [len(ids) for ids in tokenizer.encode(["", "a", ""])] == [0, 1, 0]


@TOTAL
@STEADY
@given(text=st.text())
def test_the_bytes_of_the_ids_add_up_to_the_bytes_of_the_text(
    tokenizer: Tokenizer, text: str
) -> None:
    assert tokenizer.token_bytes()[tokenizer.encode([text])[0]].sum() == len(text.encode())


@TRAINED
def test_each_id_has_a_byte_count_and_end_of_text_has_none(tokenizer: Tokenizer) -> None:
    sizes = tokenizer.token_bytes()
    assert sizes.shape == (tokenizer.vocab_size,)
    assert sizes.dtype == np.int64
    assert np.flatnonzero(sizes == 0).tolist() == [tokenizer.eot_id]


@TRAINED
def test_no_text_encodes_to_the_end_of_text_id(tokenizer: Tokenizer) -> None:
    for ids in tokenizer.encode(TEXTS):
        assert tokenizer.eot_id not in ids


@TRAINED
def test_end_of_text_decodes_to_nothing(tokenizer: Tokenizer) -> None:
    a, end = encode_one(tokenizer, "a"), tokenizer.eot_id
    assert tokenizer.decode([end, *a, end, end, *a]) == "aa"


@TRAINED
def test_json_gives_the_same_tokenizer_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert (again.kind, again.digest) == (tokenizer.kind, tokenizer.digest)
    assert (again.vocab_size, again.eot_id) == (tokenizer.vocab_size, tokenizer.eot_id)
    assert all(map(np.array_equal, again.encode(TEXTS), tokenizer.encode(TEXTS)))


def test_different_tokenizers_have_different_digests() -> None:
    assert len({one.digest for one in (CHAR, BYTE, BPE, train_tokenizer("char", "ab", None))}) == 4


@TRAINED
@pytest.mark.parametrize("number", [-1, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, number: int) -> None:
    with pytest.raises(DataError, match=f"id {number} is not one of the tokenizer's"):
        tokenizer.decode([0, number])


@TRAINED
def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"'\\ud800' at character 1"):
        tokenizer.encode(["a\ud800"])


@TOTAL
def test_half_a_character_decodes_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    halves = [
        number for number in range(tokenizer.vocab_size) if tokenizer.decode([number]) == "\ufffd"
    ]
    assert len(halves) >= 128  # every byte above ASCII


def test_character_ids_are_the_sorted_characters_then_unknown_then_end_of_text() -> None:
    tokenizer = train_tokenizer("char", ["cab", "🙂b"], None)
    assert tokenizer.decode(range(4)) == "abc🙂"
    assert (tokenizer.unknown_id, tokenizer.eot_id, tokenizer.vocab_size) == (4, 5, 6)
    assert tokenizer.token_bytes().tolist() == [1, 1, 1, 4, 1, 0]


def test_characters_never_seen_are_unknown() -> None:
    tokenizer = train_tokenizer("char", ["ac"], None)
    text = "".join(map(chr, range(0x3000))) + "\U0010ffff"
    decoded = tokenizer.decode(encode_one(tokenizer, text))
    assert decoded == "".join(one if one in "ac" else "\ufffd" for one in text)


def test_byte_ids_are_the_bytes_of_utf_8() -> None:
    assert encode_one(BYTE, "aé\n") == list("aé\n".encode())
    assert (BYTE.vocab_size, BYTE.eot_id, BYTE.unknown_id) == (257, 256, None)


def test_bpe_merges_the_most_frequent_pair_first() -> None:
    tokenizer = train_tokenizer("bpe", ["ab ab ab ac ab"], 258)
    assert tokenizer.vocab_size == 258
    assert tokenizer.decode([257]) == "ab"
    assert encode_one(tokenizer, "ab") == [257]


def test_bpe_trains_alike_every_time() -> None:
    assert train_tokenizer("bpe", iter(TEXTS * 20), 400).digest == (
        train_tokenizer("bpe", iter(TEXTS * 20), 400).digest
    )


def test_bpe_stops_where_the_text_has_no_pair_twice() -> None:
    assert train_tokenizer("bpe", ["abcdef ab"], 5000).vocab_size == 257 + 1


def test_bpe_without_a_size_fits_the_vocabulary_to_the_text() -> None:
    texts = word_soup(600_000, words=2000)
    automatic, asked = (train_tokenizer("bpe", iter(texts), size) for size in (None, 1024))
    assert automatic.vocab_size == 1024
    assert automatic.to_json() == asked.to_json()
    assert train_tokenizer("bpe", texts[:10], None).vocab_size == 512


def test_four_times_the_text_doubles_the_automatic_vocabulary() -> None:
    for (limit, size), (next_limit, next_size) in pairwise(AUTOMATIC_VOCABULARY):
        assert (next_limit, next_size) == (4 * limit, 2 * size)


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
        ("bpe", 256, "256 is too small for bpe.* 257"),
        ("char", 500, "--vocab_size 500 is for --tokenizer bpe"),
        ("byte", 500, "--vocab_size 500 is for --tokenizer bpe"),
        ("bep", None, "did you mean bpe?"),
        ("nowhere/tokenizer.json", None, "nor a file"),
    ],
)
def test_an_impossible_wish_is_a_configuration_error(
    kind: str, size: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(kind, TEXTS, size)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot read the tokenizer \(No such"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", b'{"kind": "word"}', b'{"model": {}}', b'{"kind": "char"}']
)
def test_a_file_that_is_no_tokenizer_is_named_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(DataError, match=r"mine\.json: ") as caught:
        train_tokenizer(str(tmp_path / "mine.json"), [], None)
    assert "\n" not in str(caught.value)


def test_a_pretrained_file_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(BPE.to_json(), encoding="utf-8")
    taken = train_tokenizer(str(tmp_path / "tokenizer.json"), [], None)
    assert taken.digest == BPE.digest


def test_a_pretrained_file_that_cuts_or_pads_still_gives_whole_documents() -> None:
    library = Library.from_str(BPE.to_json())
    library.enable_truncation(2)
    library.enable_padding(length=50)
    tokenizer = parse_tokenizer(library.to_str())
    assert all(map(np.array_equal, tokenizer.encode(TEXTS), BPE.encode(TEXTS)))


def test_a_pretrained_file_without_end_of_text_is_refused_with_its_special_tokens() -> None:
    library = Library(models.BPE())
    library.add_special_tokens(["<pad>", "<mask>"])
    with pytest.raises(DataError, match=r"no end-of-text token \(special tokens: <pad>, <mask>\)"):
        parse_tokenizer(library.to_str())


def test_end_of_text_that_a_pretrained_file_forgot_to_call_special_is_special() -> None:
    content = json.loads(BPE.to_json())
    content["added_tokens"][0]["special"] = False
    tokenizer = parse_tokenizer(json.dumps(content))
    assert encode_one(tokenizer, TEXTS[2]) == encode_one(BPE, TEXTS[2])
    assert tokenizer.token_bytes()[tokenizer.eot_id] == 0


def test_a_sentencepiece_vocabulary_counts_its_marks_as_what_they_stand_for() -> None:
    tokenizer = parse_tokenizer(sentencepiece_like(["<unk>", "</s>"]).to_str())
    assert (tokenizer.unknown_id, tokenizer.eot_id) == (0, 1)
    assert tokenizer.token_bytes().tolist() == [1, 0, 1, 1, 1, 2, 1, 1, 1, 1]


def test_a_unigram_piece_that_spells_end_of_text_becomes_unknown() -> None:
    tokenizer = parse_tokenizer(sentencepiece_like(["<unk>", "</s>"]).to_str())
    ids = encode_one(tokenizer, "a </s>a")
    assert ids == [3, 4, 3, 0, 4]
    assert tokenizer.decode(ids) == "a \ufffda"


def test_added_tokens_that_are_plain_text_count_their_own_bytes() -> None:
    library = Library.from_str(BPE.to_json())
    library.add_tokens([AddedToken("日本", normalized=False)])
    tokenizer = parse_tokenizer(library.to_str())
    ids = tokenizer.encode(TEXTS)[1]
    assert tokenizer.vocab_size - 1 in ids
    assert tokenizer.token_bytes()[ids].sum() == len(TEXTS[1].encode())
    assert tokenizer.decode(ids.tolist()) == TEXTS[1]
