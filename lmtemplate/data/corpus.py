"""A preset, file, folder or pattern -> documents, in a fixed order, streamed in bounded pieces."""

import difflib
import glob
import hashlib
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from lmtemplate.data.formats import PRESETS, READERS
from lmtemplate.errors import ConfigError, DataError


class Document(NamedTuple):
    """A named text: its pieces, joined. They are iterated over once."""

    name: str
    pieces: Iterable[str]


Read = Callable[..., Iterator[Document]]  # of a path; some take text_field as well


@dataclass
class Corpus:
    """Documents in a fixed order; each iteration walks through them anew."""

    walk: Callable[[], Iterator[Document]]
    signature: str  # changes when the text changes; known without reading it
    documents: int | None = None  # counted when first asked for
    every_fifth: bool = False  # the corpus prescribes its validation split: every 5th document
    vocab_size: int | None = None  # of a BPE, unless the user gives one
    size: int | None = None  # in bytes, where it is known without reading

    def __iter__(self) -> Iterator[Document]:
        return self.walk()

    def __len__(self) -> int:
        if self.documents is None:
            self.documents = sum(1 for _ in self.walk())
        return self.documents


def _function(verb: str, name: str) -> Any:
    """The function `read_NAME` or `open_NAME` of a format; None if its module was deleted."""
    module = f"lmtemplate.data.formats.{name}"
    return getattr(importlib.import_module(module), f"{verb}_{name}") if find_spec(module) else None


def _readers(name: str | None, allowed: Sequence[str]) -> dict[str, Read]:
    """Suffix -> reader; "" stands for every other suffix. Raises ConfigError without a format."""
    if name is None:
        found = {
            suffix: _function("read", reader) for suffix, reader in {**READERS, "": "text"}.items()
        }
        return {suffix: read for suffix, read in found.items() if read}
    if name in READERS.values() and (read := _function("read", name)):
        return {"": read}
    module, _, function = name.rpartition(".")
    package = name.split(".")[0]
    if not module:
        formats = ", ".join(dict.fromkeys(READERS.values()))
        raise ConfigError(f"no format {name!r}; there are {formats}, and module.read")
    if package not in ("lmtemplate", *allowed):
        raise ConfigError(
            f"--format {name} is not of lmtemplate; add --allow {package} if you trust that package"
        )
    try:
        of = importlib.import_module(module)
        suffixes: tuple[str, ...] = getattr(of, "SUFFIXES", ())
        return {suffix: getattr(of, function) for suffix in (*suffixes, "")}
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--format {name} cannot be imported: {error}") from error


def _raise(error: OSError) -> None:
    raise error


def _find_files(source: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Name -> file, sorted by name: one file, a folder's files of these suffixes, or a pattern's.

    Without suffixes, all visible files of a folder are taken. Raises OSError, DataError.
    """
    root = Path(source).expanduser()
    if root.is_file():
        return {root.name: root}
    if not root.is_dir():
        found = map(Path, sorted(glob.glob(str(root), recursive=True)))
        return {path.as_posix(): path for path in found if path.is_file()}
    taken: dict[str, Path] = {}
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_file() and (not suffixes or path.suffix.lower() in suffixes):
                taken[path.relative_to(root).as_posix()] = path
    if not taken:
        raise DataError(
            f"folder {source} holds no text file ({' '.join(suffixes)}); to take others, give a "
            "pattern such as 'FOLDER/**/*.tex'"
        )
    return dict(sorted(taken.items()))


def _open_files(source: str, readers: dict[str, Read], text_field: str) -> Corpus:
    digest, size = hashlib.sha256(), 0
    try:
        paths = _find_files(source, [suffix for suffix in readers if suffix])
        for name, path in paths.items():
            state = path.stat()
            size += state.st_size
            entry = f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n"
            digest.update(entry.encode(errors="surrogateescape"))
    except OSError as error:
        raise DataError(f"cannot read {error.filename or source}: {error.strerror}") from error
    if not paths:
        close = difflib.get_close_matches(source, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the presets are {', '.join(PRESETS)}"
        raise DataError(f"no file, folder, pattern or preset {source!r}; {hint}")

    def walk() -> Iterator[Document]:
        for path in paths.values():
            read = readers.get(path.suffix.lower(), readers[""])
            takes_field = "text_field" in inspect.signature(read).parameters
            yield from read(path, text_field=text_field) if takes_field else read(path)

    files = f"{len(paths):,} files of {size:,} bytes, digest {digest.hexdigest()[:16]}"
    return Corpus(walk, files, size=size)


def open_corpus(
    source: str,
    seed: int,
    text_field: str = "text",
    format: str | None = None,
    allow: Sequence[str] = (),
) -> Corpus:
    """Find text.

    Args:
        source: a preset, or a file, a folder (hidden files are skipped) or a glob pattern.
        seed: of presets that are generated.
        text_field: for readers that have such a parameter: the field of a JSON line with the text.
        format: the reader of all files: a format's name or `package.module.function`; None chooses
            by suffix, and takes plain text for others.
        allow: packages outside lmtemplate whose function `format` may name.

    Raises DataError where there is no text or it cannot be read, ConfigError for another format.
    """
    preset = PRESETS.get(source.partition(":")[0])
    if preset and (opener := _function("open", preset)):
        corpus: Corpus = opener(source, seed)
    else:
        corpus = _open_files(source, _readers(format, allow), text_field)
    if not any(piece.strip() for document in corpus for piece in document.pieces):
        raise DataError(f"{source} holds no text: it is empty, or nothing but white space")
    return corpus
