"""A FASTA file -> one document for each sequence: a corpus format of one's own.

lmtemplate prepare --input genome.fa --output data/genome --tokenizer char \
    --format examples.fasta.read --allow examples
"""

from collections.abc import Iterator
from pathlib import Path

from lmtemplate.data.corpus import Document
from lmtemplate.errors import DataError

SUFFIXES = (".fa", ".fasta")  # of a folder, these files are read; without this line, all


def read(path: Path) -> Iterator[Document]:
    """The lines of a sequence are joined; its name is the first word after ">"."""
    name, lines = "", list[str]()
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.startswith(">"):
                lines.append(line.strip())
                continue
            if name:
                yield Document(name, lines)
            if not line[1:].strip():
                raise DataError(f"{path}: line {number} names no sequence")
            name, lines = line[1:].split()[0], []
    yield Document(name, lines)
