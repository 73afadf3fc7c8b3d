"""A prepared corpus of a stranger: index, shards, tokenizer -> refused in one line."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtemplate.data.datamodule import TokenData
from lmtemplate.data.shards import fingerprint
from lmtemplate.errors import DataError
from tests.conftest import TINY, Command, Result
from tests.faults.spy import watching, within
from tests.runs import check_line


@pytest.fixture
def prepared(corpus: Path, tmp_path: Path) -> Path:
    """A copy of a corpus, to make hostile."""
    return shutil.copytree(corpus, tmp_path / "data")


Change = Callable[[dict[str, Any]], Any]
Refuses = Callable[..., None]


def say(prepared: Path, change: Change) -> None:
    """Let an index say something else; its fingerprint is right."""
    index = json.loads((prepared / "index.json").read_text())
    change(index)
    index["fingerprint"] = fingerprint(index)
    (prepared / "index.json").write_text(json.dumps(index))


@pytest.fixture
def refuses(prepared: Path, tmp_path: Path, canary: Path) -> Refuses:
    """All that a run opens of a corpus is opened, and refused in a line; nothing happens."""

    def call(change: Change | None = None) -> None:
        if change is not None:
            say(prepared, change)
        with watching(tmp_path) as events, within(60), pytest.raises(DataError) as refused:
            TokenData(prepared, block_size=16).setup("fit")
        assert events == []
        assert not canary.exists()
        check_line(Result(refused.value.exit_code, "", str(refused.value)), 8)

    return call


def first_shard(index: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = index["splits"]["train"]["shards"][0]
    return entry


SHARD_NAMES: list[Any] = [
    "../outside.bin",
    "/etc/passwd",
    "train_000000.bin\0.txt",
    "\\\\127.0.0.1\\share\\x.bin",
    7,
]


@pytest.mark.parametrize("name", SHARD_NAMES, ids=[str(name)[:24] for name in SHARD_NAMES])
def test_an_index_cannot_name_a_file_outside_its_folder(
    refuses: Refuses, prepared: Path, tmp_path: Path, name: Any
) -> None:
    shutil.copy(prepared / "train_000000.bin", tmp_path / "outside.bin")
    refuses(lambda index: first_shard(index).update(file=name))


INDICES: dict[str, Change] = {
    "no bytes": lambda index: index["splits"]["train"].update(bytes=0),
    "bytes in words": lambda index: index["splits"]["train"].update(bytes="x"),
    "a sum in a list": lambda index: first_shard(index).update(sha256=[]),
    "a tokenizer without a sum": lambda index: index["tokenizer"].pop("sha256"),
    "a tokenizer of no kind": lambda index: index["tokenizer"].pop("kind"),
    "half a token": lambda index: first_shard(index).update(tokens=30545.5),
    "tokens beyond all": lambda index: first_shard(index).update(tokens=10**30),
    "objects for tokens": lambda index: index.update(dtype="object"),
    "splits in a list": lambda index: index.update(splits=["train", "val"]),
    "a tokenizer of the system": lambda index: index["tokenizer"].update(file="/etc/passwd"),
    "sums by the million": lambda index: first_shard(index).update(crc32="00000000 " * 10**5),
}


@pytest.mark.parametrize("change", INDICES.values(), ids=INDICES)
def test_an_index_that_makes_no_sense_is_refused(refuses: Refuses, change: Change) -> None:
    refuses(change)


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 10_000, "\0", "null", "[[]]"])
def test_an_index_that_is_none_is_refused(refuses: Refuses, prepared: Path, content: str) -> None:
    (prepared / "index.json").write_text(content)
    refuses()


@pytest.mark.parametrize("kind", ["link to another file", "fifo", "folder", "device"])
def test_a_shard_is_a_file_of_its_folder(
    refuses: Refuses, prepared: Path, tmp_path: Path, kind: str
) -> None:
    shard = prepared / "val_000000.bin"
    shard.rename(tmp_path / "outside.bin")
    if kind == "fifo":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    else:
        target = Path("/dev/zero") if kind == "device" else tmp_path / "outside.bin"
        shard.symlink_to(target)
    refuses()


TOKENIZERS = {
    "deep": "[" * 100_000,
    "a model of nothing": '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "ids beyond memory": '{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel",'
    '"vocab":{"a":4294967295,"<eos>":0},"unk_token":"a"}}',
    "merges that do not fit": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
    "half a character": '{"kind": "char", "characters": "\\ud800"}',
}


@pytest.mark.parametrize("content", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_makes_no_sense_is_refused(
    refuses: Refuses, prepared: Path, content: str
) -> None:
    (prepared / "tokenizer.json").write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    refuses(lambda index: index["tokenizer"].update(sha256=digest))


@pytest.mark.parametrize(
    "change", [INDICES["objects for tokens"], INDICES["a tokenizer of the system"]]
)
def test_a_refused_corpus_ends_a_run_before_it_has_a_directory(
    ask: Command, prepared: Path, change: Change
) -> None:
    say(prepared, change)
    run = prepared.with_name("run")
    check_line(ask("fit", "--data.path", prepared, *TINY, "--run_dir", run), 8)
    assert not run.exists()
