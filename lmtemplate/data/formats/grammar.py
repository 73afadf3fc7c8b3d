"""`grammar` or `grammar:N` -> N documents of a generator whose entropy is known exactly."""

from collections.abc import Iterator

from lmtemplate.data.corpus import Corpus, Document
from lmtemplate.errors import DataError

PRESETS = ("grammar",)
DOCUMENTS = 20_000


def open_preset(source: str, seed: int) -> Corpus:
    from lmtemplate.data.grammar import Grammar

    _, colon, count = source.partition(":")
    if colon and not (count.isdecimal() and int(count) > 1):
        raise DataError(
            f"{source!r}: the number of documents must be 2 or more, as in grammar:5000"
        )
    grammar = Grammar(seed, int(count or DOCUMENTS))

    def walk() -> Iterator[Document]:
        return (Document(f"grammar:{number}", [text]) for number, text in enumerate(grammar))

    signature: dict[str, str | int] = {"preset": "grammar", "documents": len(grammar), "seed": seed}
    return Corpus(walk, signature, documents=len(grammar))
