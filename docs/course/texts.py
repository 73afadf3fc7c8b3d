"""A folder -> FOLDER/prose (presidents' messages) and FOLDER/code (Python's library), 1 MB each."""

import ast
import sys
from pathlib import Path

from lmtemplate.data.corpus import open_corpus


def write_texts(folder: Path) -> None:
    """Write one .txt file for each document; of the library, as many bytes as of the messages."""
    for kind in ("prose", "code"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    left = 0
    for document in open_corpus("sotu-tiny", 0):
        text = "".join(document.pieces)
        (folder / "prose" / f"{document.name}.txt").write_text(text, encoding="utf-8")
        left += len(text.encode())
    for module in sorted(Path(ast.__file__).parent.glob("*.py")):
        text = module.read_text(encoding="utf-8")
        left -= len(text.encode())
        if left < 0:
            return
        (folder / "code" / f"{module.stem}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_texts(Path(sys.argv[1]))
