"""Text <-> ids: characters, bytes, BPE trained here, or a pretrained tokenizer.json."""

import difflib
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lmtemplate.errors import ConfigError, DataError

Ints = npt.NDArray[np.int64]

REPLACEMENT = "\ufffd"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_NAMES = (
    f"{END_OF_TEXT} <|end_of_text|> </s> <eos> <|eos|> [EOS] <|im_end|> <｜end▁of▁sentence｜>"
)
# Up to so many megabytes of text, a trained BPE gets so many ids: 4 x the text, 2 x the ids.
AUTOMATIC_VOCABULARY = ((0.5, 512), (2, 1024), (8, 2048), (32, 4096), (128, 8192), (512, 16384))
LARGEST_AUTOMATIC_VOCABULARY = 32768
SMALLEST_BPE_VOCABULARY = 257  # 256 bytes and end-of-text
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _encoded(text: str, encoding: str = "utf-8") -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds {text[error.start]!a} at character {error.start}, half of a surrogate "
            "pair, which is not Unicode text: remove it"
        ) from None


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(_encoded(text, "utf-32-le"), dtype="<u4")


class Tokenizer(ABC):
    """The contract: every id of 0 .. vocab_size - 1 may come out of `encode`, except `eot_id`.

    `eot_id` stands between documents; whoever joins documents puts it there. `unknown_id` stands
    for what the vocabulary cannot spell; it is None where every text can be spelled.
    """

    kind: str
    vocab_size: int
    eot_id: int
    unknown_id: int | None = None

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Ints]:
        """One array of ids per text, without special ids, whatever the text says.

        Raises DataError for lone surrogates, which are not text.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; end-of-text gives nothing, unknown and broken UTF-8 give U+FFFD.

        Raises DataError for an id outside the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64)
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            raise DataError(
                f"id {outside[0]} is not one of the tokenizer's {self.vocab_size} ids: "
                "use the tokenizer that the model and its data were made with"
            )
        return self._decode(array)

    @abstractmethod
    def _decode(self, ids: Ints) -> str: ...

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
        self._points = _code_points(characters + REPLACEMENT)
        # One entry past the last character: clipping sends all higher code points there.
        self._id_of = np.full(max(map(ord, characters), default=-1) + 2, self.unknown_id)
        self._id_of[self._points[:-1]] = np.arange(self.unknown_id)

    def encode(self, texts: Sequence[str]) -> list[Ints]:
        ids = np.take(self._id_of, _code_points("".join(texts)), mode="clip")
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return np.split(ids, ends)[:-1]

    def _decode(self, ids: Ints) -> str:
        text: str = self._points[ids[ids != self.eot_id]].tobytes().decode("utf-32-le")
        return text

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
        return [np.frombuffer(_encoded(text), np.uint8).astype(np.int64) for text in texts]

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
        try:
            self._library = tokenizers.Tokenizer.from_str(json_text)
        except Exception as error:  # the library raises nothing narrower
            raise DataError(f"the `tokenizers` library cannot read it: {error}") from None
        ids = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        if self.vocab_size > 2**24:  # one id may claim all the memory
            raise DataError(f"its largest id is {self.vocab_size - 1:,}; no vocabulary needs that")
        self._pieces = [""] * self.vocab_size
        for piece, number in ids.items():
            self._pieces[number] = piece
        self.eot_id = self._find_end_of_text(ids)
        model = json.loads(json_text)["model"]
        unknown = model.get("unk_id", ids.get(model.get("unk_token") or ""))
        self.unknown_id = None if unknown == self.eot_id else unknown
        # Documents come out whole, and one that says "<|endoftext|>" does not end there.
        self._library.no_truncation()
        self._library.no_padding()
        self._library.add_special_tokens([self._pieces[self.eot_id]])
        self._library.encode_special_tokens = True
        added = self._library.get_added_tokens_decoder()
        self._plain_added = {number for number, token in added.items() if not token.special}
        self._special = added.keys() - self._plain_added - {self.unknown_id}

    def _find_end_of_text(self, ids: dict[str, int]) -> int:
        for name in END_OF_TEXT_NAMES.split():
            if name in ids:
                return ids[name]
        added = self._library.get_added_tokens_decoder().values()
        names = ", ".join(token.content for token in added if token.special) or "none"
        raise DataError(f"no end-of-text token (special tokens: {names}): add {END_OF_TEXT} as one")

    def encode(self, texts: Sequence[str]) -> list[Ints]:
        for text in texts:
            _encoded(text)
        encodings = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        arrays = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        if self.unknown_id is not None:
            # Unigram knows special tokens as pieces, and would spell a plain "</s>" with one.
            for array in arrays:
                array[np.isin(array, list(self._special))] = self.unknown_id
        return arrays

    def _decode(self, ids: Ints) -> str:
        pieces = [
            REPLACEMENT if number == self.unknown_id else self._pieces[number]
            for number in ids.tolist()
            if number not in self._special
        ]
        decoder: Any = self._library.decoder
        text: str = decoder.decode(pieces) if decoder else " ".join(pieces)
        return text

    def token_bytes(self) -> Ints:
        byte_level = "ByteLevel" in str(self._library.decoder)

        def size(number: int, piece: str) -> int:
            if number in self._special:
                return 0
            if byte_level and number not in self._plain_added:
                return len(piece)  # its alphabet has one character per byte
            if number == self.unknown_id or BYTE_PIECE.fullmatch(piece):
                return 1
            return len(piece.replace("▁", " ").encode())

        return np.array([size(number, piece) for number, piece in enumerate(self._pieces)])

    def to_json(self) -> str:
        return self._json


def _cut(trained: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """The first `vocab_size` ids of a trained BPE: merging is greedy, so fewer ids are a prefix."""
    model = trained["model"]
    ids: dict[str, int] = model["vocab"]
    if len(ids) > vocab_size:
        made = [ids[left + right] for left, right in model["merges"]]
        model["merges"] = model["merges"][: made.index(vocab_size - 1) + 1]
        model["vocab"] = {piece: number for piece, number in ids.items() if number < vocab_size}
    return trained


def _train_bpe(texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    """Byte-level BPE with GPT-2's splitting of words: any text comes back as it was."""
    if vocab_size is not None and vocab_size < SMALLEST_BPE_VOCABULARY:
        raise ConfigError(
            f"--vocab_size {vocab_size} is too small for bpe: 256 bytes and end-of-text "
            f"need {SMALLEST_BPE_VOCABULARY}"
        )
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size or LARGEST_AUTOMATIC_VOCABULARY,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    megabytes = 0.0

    def weighed() -> Iterator[str]:
        nonlocal megabytes
        for text in texts:
            megabytes += len(_encoded(text)) / 1e6
            yield text

    library.train_from_iterator(weighed(), trainer)
    trained = json.loads(library.to_str())
    if vocab_size is None:
        fitting = (size for limit, size in AUTOMATIC_VOCABULARY if megabytes <= limit)
        trained = _cut(trained, next(fitting, LARGEST_AUTOMATIC_VOCABULARY))
    return LibraryTokenizer(json.dumps(trained, ensure_ascii=False))


def _train_char(texts: Iterable[str]) -> Tokenizer:
    seen = np.zeros(0x110000, dtype=bool)
    for text in texts:
        seen[_code_points(text)] = True
    return CharTokenizer("".join(map(chr, np.flatnonzero(seen))))


def parse_tokenizer(json_text: str) -> Tokenizer:
    """The tokenizer whose `to_json` this is, or a pretrained one; DataError if it is neither."""
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


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json; DataError, with the path, if it is missing or not understood."""
    try:
        return parse_tokenizer(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer ({error.strerror})") from None
    except (UnicodeDecodeError, DataError) as error:
        raise DataError(f"{path}: {error}") from None


def train_tokenizer(kind_or_file: str, texts: Iterable[str], vocab_size: int | None) -> Tokenizer:
    """A tokenizer for these texts, which are read once, as a stream, and only if needed.

    Args:
        kind_or_file: "char" (every character of the texts), "byte", "bpe" (trained on the texts),
            or the path of a tokenizer.json.
        texts: documents, or parts of documents, of the train split.
        vocab_size: ids of a trained BPE, end-of-text included; fewer come out if the texts have no
            more pairs that occur twice. None chooses by the amount of text (AUTOMATIC_VOCABULARY).

    Raises ConfigError for an unknown kind or an impossible size, DataError for an unusable file.
    """
    if kind_or_file == "bpe":
        return _train_bpe(texts, vocab_size)
    if vocab_size is not None:
        raise ConfigError(
            f"--vocab_size {vocab_size} is for --tokenizer bpe: leave it out for {kind_or_file}"
        )
    if kind_or_file == "char":
        return _train_char(texts)
    if kind_or_file == "byte":
        return ByteTokenizer()
    if not Path(kind_or_file).is_file():
        close = difflib.get_close_matches(kind_or_file, ("char", "byte", "bpe"), n=1)
        hint = f"did you mean {close[0]}?" if close else "give one of these"
        problem = "is neither char, byte, bpe nor a file"
        raise ConfigError(f"--tokenizer {kind_or_file} {problem}: {hint}")
    return load_tokenizer(Path(kind_or_file))
