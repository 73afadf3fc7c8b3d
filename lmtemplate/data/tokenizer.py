"""Text <-> ids: one for each character, byte, or piece of a tokenizer.json."""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from lmtemplate.data import Ints
from lmtemplate.errors import DataError
from lmtemplate.plain_file import read_plain

REPLACEMENT = "\ufffd"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (
    f"{END_OF_TEXT} <|end_of_text|> </s> <eos> <|eos|> [EOS] <|im_end|> <｜end▁of▁sentence｜>"
)
# GPT-2's splitting of words, which training gives a BPE, begins a word at each space before a
# visible character. That needs no Unicode tables, so that all versions of them agree.
WORD_START = re.compile(" (?=[!-~])")
MOST_IDS = 2**24
MOST_REMEMBERED = 2**21  # characters of words whose ids are kept: about 60 MB
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def to_bytes(text: str, encoding: str = "utf-8") -> bytes:
    """The text in this encoding. Raises DataError for lone surrogates, which are not text."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        half = f"{text[error.start]!a} at character {error.start}, half of a surrogate pair"
        raise DataError(f"the text holds {half}, which is not Unicode text: remove it") from None


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """(N,) Unicode numbers of the N characters. Raises DataError as `to_bytes` does."""
    return np.frombuffer(to_bytes(text, "utf-32-le"), dtype="<u4")


@contextmanager
def _library_errors() -> Iterator[None]:
    """Whatever `tokenizers` raises -> DataError; it also panics, with pages on standard error."""
    screen = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        says = " ".join(str(error).split())[:200]
        raise DataError(f"the `tokenizers` library fails with this tokenizer: {says}") from None
    finally:
        os.dup2(screen, 2)
        os.close(screen)


class Tokenizer(ABC):
    """The contract: every id of 0 .. vocab_size - 1 may come out of `encode`, except `eot_id`."""

    kind: str
    vocab_size: int
    eot_id: int  # stands between documents; whoever joins documents puts it there
    unknown_id: int | None = None  # for what the vocabulary cannot spell; None if it can spell all

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Ints]:
        """One array of ids per text, without special ids. Raises DataError for lone surrogates."""

    @abstractmethod
    def _decode(self, ids: Ints) -> str: ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; end-of-text gives nothing, unknown and broken UTF-8 give U+FFFD.

        Raises DataError for an id outside the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64)
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            says = f"is not one of the tokenizer's {self.vocab_size} ids"
            raise DataError(f"id {outside[0]} {says}: use the one that the model was made with")
        return self._decode(array)

    @abstractmethod
    def token_bytes(self) -> Ints:
        """(V,) UTF-8 bytes of text that each id stands for; 0 for special ids, 1 for unknown."""

    @abstractmethod
    def to_json(self) -> str:
        """What tokenizer.json holds; `parse_tokenizer` makes the same tokenizer of it again."""

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON, in hexadecimal: equal exactly when the tokenizers are."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


class CharTokenizer(Tokenizer):
    """One id per character, in the order given; then one id for unknown, one for end-of-text."""

    kind = "char"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self.unknown_id: int = len(characters)
        self.eot_id = self.unknown_id + 1
        self.vocab_size = self.eot_id + 1
        self._points = code_points(characters + REPLACEMENT)
        # One entry past the last character: clipping sends all higher code points there.
        self._id_of = np.full(max(map(ord, characters), default=-1) + 2, self.unknown_id)
        self._id_of[self._points[:-1]] = np.arange(self.unknown_id)

    def encode(self, texts: Sequence[str]) -> list[Ints]:
        return [np.take(self._id_of, code_points(text), mode="clip") for text in texts]

    def _decode(self, ids: Ints) -> str:
        return str(self._points[ids[ids != self.eot_id]].tobytes(), "utf-32-le")

    def token_bytes(self) -> Ints:
        return np.array([len(character.encode()) for character in self.characters] + [1, 0])

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "characters": self.characters})


class ByteTokenizer(Tokenizer):
    """One id per byte of UTF-8, which is the byte; then one for end-of-text."""

    kind = "byte"
    vocab_size = 257
    eot_id = 256

    def encode(self, texts: Sequence[str]) -> list[Ints]:
        return [np.frombuffer(to_bytes(text), np.uint8).astype(np.int64) for text in texts]

    def _decode(self, ids: Ints) -> str:
        return bytes(ids[ids != self.eot_id].tolist()).decode(errors="replace")

    def token_bytes(self) -> Ints:
        return np.array([1] * 256 + [0])

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind})


class LibraryTokenizer(Tokenizer):
    """A tokenizer.json of the `tokenizers` library, trained here or pretrained elsewhere.

    The JSON is kept as it was read, so that the digest survives an upgrade of the library.
    """

    kind = "bpe"

    def __init__(self, json_text: str) -> None:
        self._json = json_text
        with _library_errors():
            self._library = library = tokenizers.Tokenizer.from_str(json_text)
        ids = library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        if self.vocab_size > MOST_IDS:  # one id may claim all the memory
            raise DataError(f"its largest id is {self.vocab_size - 1:,}; no vocabulary needs that")
        self._pieces = [library.id_to_token(number) or "" for number in range(self.vocab_size)]
        end = next((name for name in END_OF_TEXT_NAMES.split() if name in ids), None)
        if end is None:
            added = library.get_added_tokens_decoder().values()
            names = ", ".join(token.content for token in added if token.special) or "none"
            says = f"(special tokens: {names}): add {END_OF_TEXT} as one"
            raise DataError(f"no end-of-text token {says}")
        # the library reads several forms of a file, and writes one
        content = json.loads(library.to_str())
        self.eot_id, model = ids[end], content["model"]
        unknown = model.get("unk_id", ids.get(model.get("unk_token") or ""))
        self.unknown_id = None if unknown == self.eot_id else unknown
        # Documents come out whole, and one that says "<|endoftext|>" does not end there.
        library.no_truncation()
        library.no_padding()
        library.add_special_tokens([end])
        library.encode_special_tokens = True
        # GPT-2 names one token for both, but its bytes spell any character
        if unknown == self.eot_id and self.eot_id in self._encode_whole(["ዸ☃"])[0]:
            raise DataError(f"its unknown token is its end of text, {end!r}; give it another")
        tokens = library.get_added_tokens_decoder()
        normalizer = library.normalizer or tokenizers.normalizers.Sequence([])
        normalized = [token.content for token in tokens.values() if token.normalized]
        with _library_errors():  # one that comes to nothing would be found without end
            empty = [text for text in normalized if not normalizer.normalize_str(text)]
        if empty:
            raise DataError(f"its normalizer leaves nothing of the added token {empty[0]!r}")
        self._plain_added = {number for number, token in tokens.items() if not token.special}
        self._special = tokens.keys() - self._plain_added - {self.unknown_id}
        words = content.get("pre_tokenizer") or {}
        shape = words.get("type"), words.get("add_prefix_space"), words.get("use_regex", True)
        others = content.get("normalizer") or self._plain_added or model.get("dropout")
        plain = not others and self.unknown_id is None
        self._by_words = plain and shape == ("ByteLevel", False, True)
        self._known: dict[str, bytes] = {}  # word, less the space before it -> its ids, int64
        self._remembered = 0  # characters of these words

    def encode(self, texts: Sequence[str]) -> list[Ints]:
        for text in texts:
            to_bytes(text)
        return self._encode_words(texts) if self._by_words else self._encode_whole(texts)

    def _encode_words(self, texts: Sequence[str]) -> list[Ints]:
        """What `_encode_whole` gives, 4 to 12 times as fast: most words come again and again."""
        split = [WORD_START.split(text) for text in texts]
        firsts = self._encode_whole([words[0] for words in split])  # no space before these
        if self._remembered > MOST_REMEMBERED:
            self._known, self._remembered = {}, 0
        new = list({word for words in split for word in words[1:]} - self._known.keys())
        for word, ids in zip(new, self._encode_whole([f" {word}" for word in new]), strict=True):
            self._known[word] = ids.tobytes()
            self._remembered += len(word)
        ids_of = self._known.__getitem__
        return [
            np.append(first, np.frombuffer(b"".join(map(ids_of, words[1:])), np.int64))
            for first, words in zip(firsts, split, strict=True)
        ]

    def _encode_whole(self, texts: Sequence[str]) -> list[Ints]:
        with _library_errors():
            encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        arrays = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if self.unknown_id is not None:
            # Unigram knows special tokens as pieces, and would spell a plain "</s>" with one.
            for array in arrays:
                array[np.isin(array, list(self._special))] = self.unknown_id
        return arrays

    def _decode(self, ids: Ints) -> str:
        kept = (number for number in ids.tolist() if number not in self._special)
        pieces = [REPLACEMENT if n == self.unknown_id else self._pieces[n] for n in kept]
        decoder: Any = self._library.decoder
        with _library_errors():
            return str(decoder.decode(pieces)) if decoder else " ".join(pieces)

    def token_bytes(self) -> Ints:
        byte_level, sizes = "ByteLevel" in str(self._library.decoder), list[int]()
        for number, piece in enumerate(self._pieces):
            if number in self._special:
                sizes.append(0)
            elif byte_level and number not in self._plain_added:
                sizes.append(len(piece))  # its alphabet has one character per byte
            elif number == self.unknown_id or BYTE_PIECE.fullmatch(piece):
                sizes.append(1)
            else:
                sizes.append(len(piece.replace("▁", " ").encode()))
        return np.array(sizes)

    def to_json(self) -> str:
        return self._json


def parse_tokenizer(json_text: str) -> Tokenizer:
    """The tokenizer whose `to_json` this is, or a pretrained one; DataError if it is neither."""
    if not json_text:
        raise DataError("this data has no tokenizer: its ids cannot become text")
    try:
        content = json.loads(json_text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not a tokenizer.json: {error}") from None
    match content:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "byte"}:
            return ByteTokenizer()
        case {"model": dict()}:
            return LibraryTokenizer(json_text)
    raise DataError("not a tokenizer.json: neither ours nor one of the `tokenizers` library")


def load_tokenizer(path: Path, sha256: str | None = None) -> Tokenizer:
    """Read a tokenizer.json; DataError, with the path, if it is unusable or has another digest."""
    try:
        tokenizer = parse_tokenizer(read_plain(path))
        if sha256 in (None, tokenizer.digest):
            return tokenizer
        says = f"is not the tokenizer that made the shards in {path.parent}; prepare it again"
    except OSError as error:
        says = f"cannot be read ({error.strerror}); prepare the corpus again"
    except (UnicodeDecodeError, DataError) as error:
        says = f"cannot be used: {error}"
    raise DataError(f"{path} {says}")


def tokenizer_of(folder: Path, index: Mapping[str, Any]) -> Tokenizer:
    """A corpus' tokenizer. Raises DataError if it is not the one that made the shards."""
    path = folder / index["tokenizer"]["file"]
    tokenizer = load_tokenizer(path, index["tokenizer"]["sha256"])
    if (tokenizer.vocab_size, tokenizer.eot_id) != (index["vocab_size"], index["eot_id"]):
        raise DataError(f"{path} has other ids than the index says; prepare the corpus again")
    return tokenizer
