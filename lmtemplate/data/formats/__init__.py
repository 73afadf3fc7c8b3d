"""A file's suffix, or the name of a preset -> the module that reads it, one for each format.

`formats/NAME.py` has, for files,

    def read_NAME(path: Path) -> Iterator[Document]       documents in pieces of bounded size

or, for presets (texts that are known by a name),

    def open_NAME(source: str, seed: int) -> Corpus       source is a preset, or "preset:argument"

`read_NAME` may take `text_field` as well: the value of `lmtemplate prepare --text_field`; and
`bad_lines`: where that is a Counter, it leaves out what it cannot read, and counts that under the
file's path. Otherwise it raises DataError, with the file and line. Each module may be deleted,
except `text`; its rows here are then ignored.
"""

READERS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "jsonl"),
    **dict.fromkeys((".txt", ".md", ".text", ".rst"), "text"),
}
PRESETS = {"sotu-tiny": "sotu", "sotu-medium": "sotu", "grammar": "grammar"}
