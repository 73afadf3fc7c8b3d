"""Tokenizers lose nothing, count bytes truly, and never take text for a document's end."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from lmtemplate.data.tokenizer import (
    LibraryTokenizer,
    Tokenizer,
    load_tokenizer,
    parse_tokenizer,
)
from lmtemplate.data.train_tokenizer import train_tokenizer
from lmtemplate.errors import DataError

TEXTS = [
    "The cat sat on the mat; the cats sat on the mats.\r\n",
    "Ünïcode, 日本語, 🙂🙂 and \x00 NUL.\n" * 3,
    "It says <|endoftext|> and </s> in the middle.",
]
CHAR = train_tokenizer("char", TEXTS, None)
BYTE = train_tokenizer("byte", [], None)
BPE = train_tokenizer("bpe", TEXTS, 300)
STEADY = settings(max_examples=20, derandomize=True, deadline=None, database=None)
TRAINED = pytest.mark.parametrize("tokenizer", [CHAR, BYTE, BPE], ids=["char", "byte", "bpe"])
TOTAL = pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])


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


def test_characters_never_seen_are_unknown() -> None:
    tokenizer = train_tokenizer("char", ["ac"], None)
    text = "".join(map(chr, range(0x3000))) + "\U0010ffff"
    decoded = tokenizer.decode(encode_one(tokenizer, text))
    assert decoded == "".join(one if one in "ac" else "\ufffd" for one in text)


def test_byte_ids_are_the_bytes_of_utf_8() -> None:
    assert encode_one(BYTE, "aé\n") == list("aé\n".encode())
    assert (BYTE.vocab_size, BYTE.eot_id, BYTE.unknown_id) == (257, 256, None)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"json cannot be read \(No such.*prepare"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("change", [("ab", "abc"), ("ab", "ba")])
def test_any_other_tokenizer_than_the_one_of_the_shards_is_refused(
    change: tuple[str, str], tmp_path: Path
) -> None:
    tokenizer = train_tokenizer("char", ["ab"], None)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    assert load_tokenizer(path, tokenizer.digest).to_json() == tokenizer.to_json()
    path.write_text(tokenizer.to_json().replace(*change))
    with pytest.raises(DataError, match=r"is not the tokenizer that made .*; prepare it again"):
        load_tokenizer(path, tokenizer.digest)


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


def test_an_added_token_that_the_normalizer_empties_is_refused() -> None:
    """The library would find it at every place, without end."""
    library = Library.from_str(BPE.to_json())
    library.normalizer = normalizers.Strip()
    library.add_tokens([AddedToken("ab", normalized=True)])
    parse_tokenizer(library.to_str())
    library.add_tokens([AddedToken("  ", normalized=True)])
    with pytest.raises(DataError, match="leaves nothing of the added token '  '"):
        parse_tokenizer(library.to_str())


def test_a_tokenizer_that_panics_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """A panic of the library is no Exception, and prints pages."""
    library = Library.from_str(BPE.to_json())
    library.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    tokenizer = parse_tokenizer(library.to_str())
    with pytest.raises(DataError, match=r"fails with this tokenizer: .*retry-limit") as caught:
        tokenizer.encode(["a" * 60 + "b"])
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_unknown_words_that_would_end_documents_are_refused() -> None:
    """GPT-2 names one token for both, but its bytes leave nothing unknown."""
    library = Library(models.WordLevel({"a": 0, "</s>": 1}, unk_token="</s>"))
    library.add_special_tokens(["</s>"])
    with pytest.raises(DataError, match="its unknown token is its end of text, '</s>'"):
        parse_tokenizer(library.to_str())
    content = json.loads(BPE.to_json())
    content["model"]["unk_token"] = "<|endoftext|>"
    assert encode_one(parse_tokenizer(json.dumps(content)), TEXTS[1]) == encode_one(BPE, TEXTS[1])


def test_a_tokenizer_without_a_word_for_the_unknown_is_one_line() -> None:
    library = Library(models.WordLevel({"a": 0, "</s>": 1}, unk_token="<unk>"))
    library.add_special_tokens(["</s>"])
    with pytest.raises(DataError, match=r"fails with this tokenizer: .*UNK"):
        parse_tokenizer(library.to_str()).encode(["b"])


ODD = [
    *("the", "cat's", "'s", "mats", " ", "  ", "\n", "\t", "\r\n", "\x00", "\x1c", "\x1f", "\x85"),
    *(
        "\xa0",
        "\u2028",
        "\u3000",
        "\u200b",
        "e\u0301",
        "日本",
        "🙂",
        "½",
        "٣",
        "12",
        "-",
        "!",
        "~",
        "\x7f",
    ),
    *("new york", "<|endoftext|>", "ﬁ", "Ünï", "\ufeff"),
]


def changed(**parts: object) -> Tokenizer:
    """The BPE with other parts in its tokenizer.json."""
    return parse_tokenizer(json.dumps(json.loads(BPE.to_json()) | parts))


def with_plain_token() -> Tokenizer:
    library = Library.from_str(BPE.to_json())
    library.add_tokens([AddedToken("new york")])
    return parse_tokenizer(library.to_str())


PREFIXED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
UNSPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    "tokenizer",
    [
        BPE,
        changed(normalizer={"type": "NFKC"}),
        changed(pre_tokenizer=PREFIXED),
        changed(pre_tokenizer=UNSPLIT),
        with_plain_token(),
    ],
    ids=["ours", "normalised", "prefixed", "unsplit", "plain token"],
)
@STEADY
@given(
    texts=st.lists(st.lists(st.sampled_from(ODD) | st.text(max_size=3)).map("".join), max_size=4)
)
def test_words_that_are_remembered_give_the_ids_of_the_library(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    library = Library.from_str(tokenizer.to_json())
    library.encode_special_tokens = True
    expected = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == expected
    assert [ids.tolist() for ids in tokenizer.encode(texts)] == expected  # now from memory


def test_what_is_remembered_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtemplate.data.tokenizer.MOST_REMEMBERED", 20)
    tokenizer = parse_tokenizer(BPE.to_json())
    assert isinstance(tokenizer, LibraryTokenizer)
    for number in range(9):
        text = f"{TEXTS[0]} word{number} another{number}"
        assert tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text
        assert len(tokenizer._known) < 30


@pytest.mark.parametrize(
    "change", [{"pre_tokenizer": ["Whitespace"]}, {"unk_id": []}, {"unk_id": "x"}]
)
def test_each_form_that_the_library_reads_is_read(change: dict[str, object]) -> None:
    """It takes a list for an object, and passes over keys that a model does not have."""
    vocab = {"a": 0, "<unk>": 1, "</s>": 2}
    library = Library(models.WordLevel(vocab, unk_token="<unk>"))
    library.add_special_tokens(["</s>"])
    content = json.loads(library.to_str())
    (content if "pre_tokenizer" in change else content["model"]).update(change)
    tokenizer = parse_tokenizer(json.dumps(content))
    assert tokenizer.encode(["a"])[0].tolist() == [0]
    assert tokenizer.unknown_id == 1
