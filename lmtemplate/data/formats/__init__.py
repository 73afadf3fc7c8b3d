"""One module for each kind of source; `lmtemplate.data.corpus` finds them by listing this folder.

A corpus format has

    SUFFIXES: tuple[str, ...]                    of its files, in lower case, such as (".txt",)
    def read(path: Path) -> Iterator[Document]   documents of one file, in pieces of bounded size

`read` may take `text_field` as well: the value of `lmtemplate prepare --text_field`. It raises
DataError, with the file and line, for what it cannot read, and calls `warnings.warn` for what the
owner of the text should know.

A module of presets (texts that are known by a name) has

    PRESETS: tuple[str, ...]
    def open_preset(source: str, seed: int) -> Corpus    source is a preset, or "preset:argument"

Each may be deleted, but for `text`, which reads files of unknown suffixes.
"""
