"""Texts and token files for tests, and what is read from them."""

from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.data.corpus import Corpus
from lmtemplate.data.shard_writer import ShardWriter, write_index
from lmtemplate.data.shards import Shards


def texts(source: Corpus) -> list[str]:
    return ["".join(document.pieces) for document in source]


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def write_split(
    folder: Path, ids: np.ndarray[Any, Any], vocab_size: int, shard_tokens: int
) -> None:
    writer = ShardWriter(folder, "train", vocab_size, shard_tokens)
    for part in np.array_split(ids, 7):
        writer.write(part)
    split = {"tokens": len(ids), "bytes": len(ids), "shards": writer.close()}
    split |= {"documents": 1, "sources": [["text", 1]]}
    tokenizer = {"kind": "bpe", "file": "tokenizer.json", "sha256": ""}
    index = {"dtype": writer.dtype, "vocab_size": vocab_size, "eot_id": 0, "tokenizer": tokenizer}
    write_index(folder, {**index, "splits": {"train": split}})


def read_all(folder: Path) -> np.ndarray[Any, Any]:
    shards = Shards(folder, "train")
    return shards.gather(np.arange(shards.tokens))
