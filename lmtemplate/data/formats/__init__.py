"""A file's suffix, or the name of a preset -> the module that reads it, one for each format.

`formats/NAME.py` has, for files,

    def read_NAME(path: Path) -> Iterator[Document]       documents in pieces of bounded size

or, for presets (texts that are known by a name),

    def open_NAME(source: str, seed: int) -> Corpus       source is a preset, or "preset:argument"

`read_NAME` may take `text_field` as well: the value of `lmtemplate prepare --text_field`. It raises
DataError, with the file and line, for what it cannot read. Each module may be deleted, except
`text`; its rows here are then ignored.
"""

READERS = {".jsonl": "jsonl", ".txt": "text", ".md": "text", ".text": "text", ".rst": "text"}
PRESETS = {"sotu-tiny": "sotu", "sotu-medium": "sotu", "grammar": "grammar"}
