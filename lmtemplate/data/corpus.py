"""A preset, file, folder or pattern -> documents, in a fixed order, streamed in bounded pieces."""

import contextlib
import difflib
import glob
import hashlib
import importlib
import inspect
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmtemplate.data import Ints, content
from lmtemplate.data.formats import PRESETS, READERS
from lmtemplate.errors import ConfigError, DataError
from lmtemplate.plain_file import at_home
from lmtemplate.plug import load_named


class Document(NamedTuple):
    """A text: its pieces, joined, which are iterated over once; `name` is that of its source."""

    name: str
    pieces: Iterable[str]


Read = Callable[..., Iterator[Document]]  # of a path; some take text_field as well


def signature_of(files: dict[str, Path]) -> str:
    """Names, sizes and times of the files. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    for name, path in files.items():
        state = path.stat()
        entry = f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n"
        digest.update(entry.encode(errors="surrogateescape"))
        size += state.st_size
    return f"{len(files):,} files of {size:,} bytes, digest {digest.hexdigest()[:16]}"


@dataclass
class Corpus:
    """Documents in a fixed order; each iteration walks through them anew."""

    walk: Callable[[], Iterator[Document]]
    signature: str  # changes when the text changes; known without reading it
    files: dict[str, Path] = field(default_factory=dict)  # of which it is the `signature_of`
    documents: int | None = None  # of a preset; copies among them are meant to be there
    every_fifth: bool = False  # the corpus prescribes its validation split: every 5th document
    vocab_size: int | None = None  # of a BPE, unless the user gives one
    characters: int = 0  # counted with `texts`
    left_out: Counter[str] = field(default_factory=Counter)  # what is no document -> how many

    def __iter__(self) -> Iterator[Document]:
        yield from self.walk()
        with contextlib.suppress(OSError):
            if not self.files or signature_of(self.files) == self.signature:
                return
        says = "as a download or a log does: prepare a copy of it, or wait until it is complete"
        raise DataError(f"the text changed while it was read, {says}")

    @property
    def size(self) -> int | None:
        """Bytes of its files; None for a preset."""
        return sum(path.stat().st_size for path in self.files.values()) or None

    @cached_property
    def texts(self) -> Ints:
        """(N,) number of each document's text: 0, 1, ... as they come; a copy has its first's."""
        if self.documents and self.documents > 1:
            return np.arange(self.documents)
        digests = array("Q")
        for document in self:
            digest = hashlib.blake2b(digest_size=8)
            for piece in document.pieces:
                digest.update(piece.encode(errors="surrogatepass"))
                self.characters += len(piece)
            digests.frombytes(digest.digest())
        _, first, number = np.unique(digests, return_index=True, return_inverse=True)
        return np.searchsorted(np.sort(first), first)[number]

    @cached_property
    def copies(self) -> int:
        """Documents whose text an earlier one has, to the letter."""
        return len(self.texts) - len(np.unique(self.texts))


def _raise(error: OSError) -> None:
    raise error


def _identity(path: str | Path) -> tuple[int, int]:
    """What a file or folder is, whatever its name."""
    state = os.stat(path)
    return state.st_dev, state.st_ino


def _folders(root: str, left_out: Counter[str]) -> Iterator[str]:
    """A folder and the visible ones below. Links are followed last; none comes twice."""
    tops, seen = [root], set[tuple[int, int]]()
    for top in tops:
        for folder, folders, names in os.walk(top, onerror=_raise):
            if (key := _identity(folder)) in seen:
                folders.clear()
                continue
            seen.add(key)
            left_out["hidden"] += sum(name.startswith(".") for name in (*folders, *names))
            folders[:] = [name for name in folders if not name.startswith(".")]
            paths = (os.path.join(folder, name) for name in sorted(folders))
            tops += [path for path in paths if os.path.islink(path)]
            yield folder


def _expand(pattern: str, left_out: Counter[str]) -> Iterator[str]:
    """What `glob` finds; but `**` takes no folder twice, however links lead around."""
    head, *tail = re.split(r"(?:^|(?<=/))\*\*(?:/|$)", pattern, maxsplit=1)
    if not tail:
        yield from glob.iglob(pattern)
        return
    for top in filter(os.path.isdir, glob.glob(head) if head else ["."]):
        for folder in _folders(top.rstrip("/") or "/", left_out):
            yield from _expand(os.path.join(glob.escape(folder), tail[0] or "*"), left_out)


def _find_files(source: str, suffixes: Sequence[str], left_out: Counter[str]) -> dict[str, Path]:
    """Name -> file, sorted by name: one file, a folder's files of these suffixes, or a pattern's.

    Names begin below the folder, or below the one before a pattern's first wildcard. Without
    suffixes, all visible files of a folder are taken. A file comes once, whatever names it has.
    Raises OSError, DataError.
    """
    root, taken, seen = at_home(source), dict[str, Path](), set[tuple[int, int]]()
    if root.is_file():
        if not root.stat().st_size:  # one of /proc may have no end
            raise DataError(f"{source} holds no text: it is empty")
        return {root.name: root}
    in_folder = root.is_dir()
    pattern = os.path.join(glob.escape(str(root)), "**") if in_folder else str(root)
    top = root if in_folder else os.path.dirname(re.split(r"[*?[]", pattern)[0])
    paths = map(Path, _expand(pattern, left_out))
    for name, path in sorted((path.relative_to(top).as_posix(), path) for path in paths):
        if not path.is_file():
            left_out["broken links or devices"] += not path.is_dir()
        elif in_folder and suffixes and path.suffix.lower() not in suffixes:
            left_out[path.suffix.lower() or "without suffix"] += 1
        elif (key := _identity(path)) in seen:
            left_out["further names of a file"] += 1
        elif not path.stat().st_size:
            left_out["empty"] += 1
        else:
            taken[name] = path
            seen.add(key)
    if not in_folder:  # what a pattern does not ask for is not left out
        del left_out["hidden"]
    elif not taken:
        says = "to take others, give a pattern such as 'FOLDER/**/*.tex'"
        raise DataError(f"folder {source} holds no text file ({' '.join(suffixes)}); {says}")
    return taken


def _function(verb: str, name: str) -> Any:
    """The function `read_NAME` or `open_NAME` of a format; None if its module was deleted."""
    module = f"lmtemplate.data.formats.{name}"
    return getattr(importlib.import_module(module), f"{verb}_{name}") if find_spec(module) else None


def _readers(format: str | None, allowed: Sequence[str]) -> dict[str, Read]:
    """Suffix -> reader; "" stands for every other suffix. Raises ConfigError for no format."""
    ours = {name: read for name in READERS.values() if (read := _function("read", name))}
    if format is None:
        named = {suffix: name for suffix, name in READERS.items() if name in ours}
        return {suffix: ours[name] for suffix, name in {**named, "": "text"}.items()}
    if format in ours:
        return {"": ours[format]}
    if "." not in format or format.startswith("lmtemplate."):
        raise ConfigError(f"no format {format!r}; there are {', '.join(ours)}, and module.read")
    read = load_named(format, "--format", allowed)
    suffixes = getattr(sys.modules[format.rpartition(".")[0]], "SUFFIXES", ())
    return dict.fromkeys((*suffixes, ""), read)


def _open_files(
    source: str, format: str | None, readers: dict[str, Read], options: dict[str, Any]
) -> Corpus:
    left_out, other = Counter[str](), readers[""]

    def walk() -> Iterator[Document]:
        for name, path in files.items():
            read = readers.get(path.suffix.lower(), other)
            takes = inspect.signature(read).parameters.keys() & options.keys()
            for document in read(path, **{option: options[option] for option in takes}):
                if not isinstance(document, Document):
                    raise ConfigError(f"--format {format} yields no Document(name, [text])")
                yield Document(name, document.pieces)
        if options["bad_lines"]:
            left_out["lines without text"] = options["bad_lines"].total()

    try:
        files = _find_files(source, [suffix for suffix in readers if suffix], left_out)
        for path in files.values():
            if format is None or "." not in format:  # a reader of one's own knows its files
                prose = format is None and readers.get(path.suffix.lower(), other) is other
                content.check(path, prose, guess=format != "text")
        corpus = Corpus(walk, signature_of(files), files, left_out=left_out)
    except OSError as error:
        raise DataError(f"cannot read {error.filename or source}: {error.strerror}") from error
    except RecursionError as error:  # of os.walk, before Python 3.12
        raise DataError(f"{source} nests its folders too deep to read") from error
    if files:
        return corpus
    close = difflib.get_close_matches(source, PRESETS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the presets are {', '.join(PRESETS)}"
    raise DataError(f"no file, folder, pattern or preset {source!r}; {hint}")


def open_corpus(
    source: str,
    seed: int,
    text_field: str = "text",
    format: str | None = None,
    allow: Sequence[str] = (),
    skip_bad_lines: bool = False,
) -> Corpus:
    """The text of a preset, file, folder or glob pattern; `prepare` explains the other settings.

    Raises DataError where there is no text or it cannot be read, ConfigError for another format.
    """
    preset = PRESETS.get(source.partition(":")[0])
    if preset and (opener := _function("open", preset)):
        corpus: Corpus = opener(source, seed)
    else:
        bad_lines = Counter[str]() if skip_bad_lines else None
        options = {"text_field": text_field, "bad_lines": bad_lines}
        corpus = _open_files(source, format, _readers(format, allow), options)
    if not any(piece.strip() for document in corpus.walk() for piece in document.pieces):
        raise DataError(f"{source} holds no text: it is empty, or nothing but white space")
    return corpus
