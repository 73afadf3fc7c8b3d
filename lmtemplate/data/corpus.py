"""A preset, file, folder or pattern -> documents, in a fixed order, streamed in bounded pieces."""

import difflib
import glob
import hashlib
import importlib
import inspect
import os
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    signature: dict[str, str | int]  # changes when the text changes; known without reading it
    documents: int | None = None  # counted when first asked for
    every_fifth: bool = False  # the corpus prescribes its validation split: every 5th document
    vocab_size: int | None = None  # of a BPE, unless the user gives one

    def __iter__(self) -> Iterator[Document]:
        return self.walk()

    def __len__(self) -> int:
        if self.documents is None:
            self.documents = sum(1 for _ in self.walk())
        return self.documents


def _formats() -> dict[str, Any]:
    """The modules of `formats/` by name; their contract stands in `formats/__init__.py`."""
    from lmtemplate.data import formats

    names = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    return {name: importlib.import_module(f"{formats.__name__}.{name}") for name in names}


def presets() -> dict[str, Callable[[str, int], Corpus]]:
    """Name of each preset -> the function that opens it, given its name and a seed."""
    modules = _formats().values()
    return {name: of.open_preset for of in modules for name in getattr(of, "PRESETS", ())}


def _readers(name: str | None, allowed: Sequence[str]) -> dict[str, Read]:
    """Suffix -> reader: of all formats, or of the one called `name` ("" stands for any suffix).

    Raises ConfigError where `name` is neither a format nor a function of an allowed package.
    """
    formats = {key: of for key, of in _formats().items() if hasattr(of, "read")}
    if name is None:
        known = {suffix: of.read for of in formats.values() for suffix in of.SUFFIXES}
        return {**known, "": formats["text"].read}
    if name in formats:
        return {"": formats[name].read}
    module, _, function = name.rpartition(".")
    package = name.split(".")[0]
    if not module:
        raise ConfigError(f"no format {name!r}; there are {', '.join(formats)}, and module.read")
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


def _visible_files(root: Path) -> Iterator[tuple[str, Path]]:
    """(Name, file) of all that is not hidden. Raises OSError where a folder cannot be read."""
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        yield from ((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())


def _find_files(source: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """Name -> file, sorted by name: one file, a folder's files of these suffixes, or a pattern's.

    Without suffixes, all visible files of a folder are taken.
    """
    root = Path(source).expanduser()
    if root.is_file():
        return {root.name: root}
    if not root.is_dir():
        found = [Path(name) for name in sorted(glob.glob(str(root), recursive=True))]
        return {path.as_posix(): path for path in found if path.is_file()}
    seen = dict(sorted(_visible_files(root)))
    taken = {
        name: path for name, path in seen.items() if not suffixes or path.suffix.lower() in suffixes
    }
    if not taken:
        kinds = Counter(path.suffix or "without a suffix" for path in seen.values()).most_common(5)
        raise DataError(
            f"folder {source} holds no text file ({' '.join(suffixes)}); it holds "
            f"{', '.join(f'{number} {kind}' for kind, number in kinds) or 'no file'}; "
            "to take others, give a pattern such as 'FOLDER/**/*.tex'"
        )
    return taken


def _no_source(source: str) -> DataError:
    names = list(presets())
    close = difflib.get_close_matches(source, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"the presets are {', '.join(names)}"
    if "://" in source:
        hint = "text is not downloaded; download it and give the file"
    return DataError(f"no file, folder, pattern or preset {source!r}; {hint}")


def _open_files(source: str, readers: dict[str, Read]) -> Corpus:
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
        raise _no_source(source)

    def walk() -> Iterator[Document]:
        for path in paths.values():
            yield from readers.get(path.suffix.lower(), readers[""])(path)

    return Corpus(walk, {"files": len(paths), "bytes": size, "digest": digest.hexdigest()})


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

    Raises:
        DataError: there is no text, or it cannot be read.
        ConfigError: there is no such format.
    """
    known = presets()
    if (name := source.partition(":")[0]) in known:
        corpus = known[name](source, seed)
    else:
        readers = {
            suffix: partial(read, text_field=text_field)
            if "text_field" in inspect.signature(read).parameters
            else read
            for suffix, read in _readers(format, allow).items()
        }
        corpus = _open_files(source, readers)
    if not any(piece.strip() for document in corpus for piece in document.pieces):
        raise DataError(f"{source} holds no text: it is empty, or nothing but white space")
    return corpus
