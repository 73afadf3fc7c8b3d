"""Corpora of given tokens, without text."""

from pathlib import Path

import numpy as np

from lmtemplate.data.shard_writer import ShardWriter, write_index
from lmtemplate.data.shards import read_index
from lmtemplate.study.diagnose.artifacts import RunCorpus

VOCABULARY, END = 50, 49


def write_corpus(
    folder: Path,
    splits: dict[str, np.ndarray],
    shard_tokens: int = 1000,
    vocab_size: int = VOCABULARY,
) -> RunCorpus:
    """Shards of these tokens, said to be four bytes each."""
    folder.mkdir()
    entries = {}
    for split, tokens in splits.items():
        writer = ShardWriter(folder, split, vocab_size, shard_tokens)
        writer.write(tokens)
        entries[split] = {"tokens": len(tokens), "bytes": 4 * len(tokens), "shards": writer.close()}
        entries[split] |= {"documents": 1, "sources": [["text", 1]]}
    index = {"dtype": "uint16", "vocab_size": vocab_size, "eot_id": END, "splits": entries}
    write_index(folder, {**index, "tokenizer": {"kind": "none", "file": "none", "sha256": ""}})
    return RunCorpus(folder, read_index(folder))
