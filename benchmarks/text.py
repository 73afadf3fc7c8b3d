"""How fast text becomes token ids, beside the plain `tokenizers` library: MB a second of one core.

    make bench BENCH=text

The BPE is trained on the text that it encodes, the presidents' messages up to 1900. All take turns
in one process, each must give the same ids, and the best of several rounds counts. The seconds are
those of the processor, summed over cores: what one core would need alone.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import Tokenizer as Library

from lmtemplate.data.corpus import open_corpus
from lmtemplate.data.tokenizer import Tokenizer, parse_tokenizer
from lmtemplate.data.train_tokenizer import train_tokenizer

ROUNDS = 5
VOCABULARY = 8192


def ids_of(library: Library, texts: Sequence[str], how: str) -> list[list[int]]:
    encodings = getattr(library, how)(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def new(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, which remembers nothing yet."""
    return parse_tokenizer(tokenizer.to_json())


def main() -> None:
    corpus = open_corpus("sotu-medium", 0, "text", None, [], False)
    texts = ["".join(document.pieces) for document in corpus]
    size = sum(len(text.encode()) for text in texts)
    char, byte = (train_tokenizer(kind, texts, None) for kind in ("char", "byte"))
    bpe = train_tokenizer("bpe", texts, VOCABULARY)
    library, warm = Library.from_str(bpe.to_json()), new(bpe)
    library.encode_special_tokens = True
    ways: dict[str, Callable[[], Any]] = {
        "tokenizers, encode_batch": lambda: ids_of(library, texts, "encode_batch"),
        "tokenizers, encode_batch_fast": lambda: ids_of(library, texts, "encode_batch_fast"),
        "bpe, the first time": lambda: new(bpe).encode(texts),
        "bpe, words known": lambda: warm.encode(texts),
        "byte": lambda: byte.encode(texts),
        "char": lambda: char.encode(texts),
    }
    expected = ids_of(library, texts, "encode_batch")
    assert [ids.tolist() for ids in warm.encode(texts)] == expected, "other ids than the library's"
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, encode in ways.items():
            start = time.process_time()
            encode()
            seconds[name] = min(seconds[name], time.process_time() - start)
    plain = seconds["tokenizers, encode_batch"]
    print(f"{size / 1e6:.1f} MB in {len(texts)} documents, a BPE of {bpe.vocab_size:,} ids")
    for name, took in seconds.items():
        print(f"  {name:<30}{size / took / 1e6:8.2f} MB/s{plain / took:8.1f}x")


if __name__ == "__main__":
    main()
