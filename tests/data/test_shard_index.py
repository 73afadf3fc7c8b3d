"""index.json: read as written, or refused in one line that says what to do."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtemplate.data.shard_writer import ShardWriter, write_index
from lmtemplate.data.shards import Shards, fingerprint, read_index
from lmtemplate.errors import DataError

Index = dict[str, Any]
Change = Callable[[Index], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two splits, in three shards and one."""
    folder, splits = tmp_path_factory.mktemp("index"), {}
    for split, tokens in (("train", 90), ("val", 25)):
        writer = ShardWriter(folder, split, 50, shard_tokens=40)
        writer.write(np.arange(tokens) % 50)
        counts = {"documents": 2, "bytes": 4 * tokens, "tokens": tokens, "unknown": 0}
        splits[split] = {**counts, "shards": writer.close()}
    tokenizer = {"kind": "bpe", "file": "tokenizer.json", "sha256": "ab" * 32}
    index = {"dtype": "uint16", "vocab_size": 50, "eot_id": 49, "tokenizer": tokenizer}
    write_index(folder, {**index, "source": {"input": "text"}, "splits": splits})
    return folder


@pytest.fixture(scope="module")
def playground(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus once more; its index is each test's own."""
    return Path(shutil.copytree(folder, tmp_path_factory.mktemp("playground") / "data"))


@pytest.fixture
def index(folder: Path) -> Index:
    return read_index(folder)


def pretend(folder: Path, index: Index) -> None:
    """Write an index that its own fingerprint calls untouched; no fsync, there are many."""
    (folder / "index.json").write_text(json.dumps({**index, "fingerprint": fingerprint(index)}))


def use(folder: Path) -> None:
    """Read all that the index speaks of."""
    for split in read_index(folder)["splits"]:
        shards = Shards(folder, split)
        shards.gather(np.arange(shards.tokens))


def check_use(folder: Path) -> None:
    """Where the corpus cannot be read, it says so in one line."""
    problem = ""
    try:
        use(folder)
    except DataError as error:
        problem = str(error)
    assert "\n" not in problem


def first_shard(**fields: Any) -> Change:
    return lambda index: index["splits"]["train"]["shards"][0].update(fields)


def of_train(**fields: Any) -> Change:
    return lambda index: index["splits"]["train"].update(fields)


def on_top(**fields: Any) -> Change:
    return lambda index: index.update(fields)


def rename_split(name: str) -> Change:
    return lambda index: index["splits"].update({name: index["splits"].pop("val")})


DAMAGED: list[tuple[Change, str]] = [
    (first_shard(file="../train_000000.bin"), "a file or split is named '../train_000000.bin'"),
    (first_shard(file="/etc/passwd"), "a file or split is named '/etc/passwd'"),
    (on_top(tokenizer={"file": "../tokenizer.json", "sha256": ""}), "a file or split is named"),
    (rename_split("../val"), "a file or split is named '../val'"),
    (first_shard(tokens=2**31), "tokens of 'train_000000.bin' is 2147483648"),
    (first_shard(tokens=41), "the tokens of 'train' are not those of its shards"),
    (of_train(shards=[]), "the tokens of 'train' are not those of its shards"),
    (first_shard(crc32="1a2b3c4d 5e6f7788"), "crc32 of 'train_000000.bin' is not one sum for"),
    (on_top(dtype="uint32"), "dtype is 'uint32' for 50 ids"),
    (on_top(eot_id=50), "eot_id is 50"),
    (on_top(splits=None), "NoneType"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGED)
def test_an_index_that_cannot_be_right_is_refused_in_one_short_line(
    change: Change, message: str, index: Index, playground: Path
) -> None:
    change(index)
    pretend(playground, index)
    with pytest.raises(DataError, match=rf"index\.json is not .*{re.escape(message)}") as caught:
        use(playground)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(playground))


@settings(max_examples=50, deadline=None)
@given(at=st.integers(0, 10_000), old=st.integers(0, 5), new=st.binary(max_size=5))
def test_of_any_bytes_nothing_but_our_own_error_comes(
    at: int, old: int, new: bytes, folder: Path, playground: Path
) -> None:
    content = (folder / "index.json").read_bytes()
    at %= len(content)
    (playground / "index.json").write_bytes(content[:at] + new + content[at + old :])
    check_use(playground)


def test_an_index_changed_by_hand_is_refused(index: Index, tmp_path: Path) -> None:
    index["splits"]["train"]["shards"][0]["tokens"] -= 1
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="changed by hand"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"format": 1}', "[" * 10**5],
)
def test_a_file_that_is_no_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"index\.json"):
        read_index(tmp_path)


@pytest.mark.parametrize("name", ["", "index.json"])
def test_a_git_lfs_pointer_names_the_command(name: str, tmp_path: Path) -> None:
    pointer = (tmp_path / "data" / name) if name else tmp_path / "data"
    pointer.parent.mkdir(exist_ok=True)
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(DataError, match="looks like a git-lfs pointer; run git lfs pull"):
        read_index(tmp_path / "data")


def test_the_fingerprint_is_of_tokens_and_tokenizer_alone(index: Index) -> None:
    before = fingerprint(index)
    index["source"] = {"input": "moved"}
    assert fingerprint(index) == before
    index["splits"]["val"]["shards"][0]["sha256"] = "0" * 64
    assert fingerprint(index) != before


@pytest.fixture
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a corpus, a text, a folder of texts, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("data/sotu-tiny", "data/empty", "texts"):
        Path(name).mkdir(parents=True)
    for name in ("data/sotu-tiny/index.json", "texts/one.txt", "data/more.txt"):
        Path(name).write_text("x")


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("data/sotu-tny", "; did you mean data/sotu-tiny?"),
        ("data/sotu-medium", "--input TEXT --output data/sotu-medium (TEXT: "),
        ("data/empty", "--input TEXT --output data/empty (TEXT: "),
        ("texts", "--input texts --output data/mine"),
        ("texts/one.txt", "--input texts/one.txt --output data/mine"),
    ],
)
def test_where_no_corpus_is_the_advice_is_one_that_works(path: str, advice: str) -> None:
    with pytest.raises(DataError, match=r"^no prepared corpus in .*" + re.escape(advice)):
        read_index(Path(path))
