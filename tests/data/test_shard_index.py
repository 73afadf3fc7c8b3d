"""index.json: a file from a stranger is read or refused in one line, never anything else."""

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


HOSTILE: list[tuple[Change, str]] = [
    *(
        (first_shard(file=name), r"a shard is named .* instead of train_000000\.bin")
        for name in (
            "../train_000000.bin",
            "/etc/passwd",
            "a/../../train_000000.bin",
            "train_000000.bin\0",
            "con",
            "x" * 300,
            "train_000001.bin",  # which comes twice then
            "..",
            "",
            "C:\\train_000000.bin",
            "\ud800",
        )
    ),
    *((first_shard(file=name), "file is") for name in (None, 3, ["train_000000.bin"])),
    *(
        (first_shard(tokens=tokens), "tokens is")
        for tokens in (-1, 0, 2**31, 10**400, 40.0, "40", None, True, [40])
    ),
    (first_shard(tokens=41), "its 3 shards do not"),
    *((first_shard(sha256=digest), "sha256") for digest in ("", "AB" * 32, "ab" * 33, 1, None)),
    *(
        (first_shard(crc32=sums), "crc32")
        for sums in ("", "1a2b3c4", "1a2b3c4d 5e6f7788", "1A2B3C4D", ["1a2b3c4d"], 5, None)
    ),
    (of_train(shards=[]), "its 0 shards do not"),
    (of_train(shards=[3, 4]), "file is None"),
    (of_train(shards={}), "shards is"),
    (of_train(tokens=91), "train has 91 tokens"),
    (of_train(bytes=-1), "bytes is -1"),
    (of_train(bytes=2**63), "bytes is"),
    (of_train(documents=91), "documents is 91"),
    (of_train(unknown=-1), "unknown is -1"),
    *((on_top(dtype=dtype), "dtype is") for dtype in ("uint8", "<u2", "object", "uint32", 2, None)),
    *(
        (on_top(vocab_size=size), "vocab_size is")
        for size in (0, -1, 2**32 + 1, 10**400, 50.0, "50", None, True, float("nan"))
    ),
    *((on_top(eot_id=number), "eot_id is") for number in (-1, 50, None, 1.0)),
    *((on_top(splits=splits), "splits is") for splits in ([], None, "train")),
    (on_top(splits={"train": None}), "tokens is None"),
    *((rename_split(name), "a split is named") for name in ("../val", "", "con", "Val", "a" * 999)),
    (on_top(tokenizer="tokenizer.json"), "tokenizer is"),
    *(
        (on_top(tokenizer={"file": name, "sha256": ""}), "tokenizer's file is named")
        for name in ("../tokenizer.json", "/etc/passwd", "", ".hidden", "a" * 300, "a\0")
    ),
    (on_top(source=[]), "source is"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_hostile_index_is_refused_in_one_short_line_with_the_field(
    change: Change, message: str, index: Index, playground: Path
) -> None:
    change(index)
    pretend(playground, index)
    with pytest.raises(DataError, match=rf"index\.json is not .*{message}") as caught:
        use(playground)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(playground))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a nest of dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    deeper = [((*path, key), of) for key, of in items]
    return [p for p, _ in deeper] + [
        found for p, of in deeper if isinstance(of, (dict, list)) for found in places(of, p)
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31 - 1, 2**63, 10**300])
    | st.floats()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_of_any_changed_index_nothing_but_our_own_error_comes(
    data: st.DataObject, folder: Path, playground: Path
) -> None:
    index = read_index(folder)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(places(index)))
        parent: Any = index
        for key in way:
            parent = parent[key]
        if data.draw(st.booleans()):
            parent[last] = data.draw(VALUES)
        else:
            del parent[last]
        if not index:
            break
    pretend(playground, index)
    check_use(playground)


@settings(max_examples=100, deadline=None)
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
    ["", "{", "[]", "null", "3", '{"format": 1}', '{"fingerprint": 2}', "[" * 10**5, "9" * 5000],
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
        ("texts", "--input texts --output data/texts"),
        ("texts/one.txt", "--input texts/one.txt --output data/one"),
        ("data", "--input data --output data/mine"),
        ("", "--input TEXT --output data/mine (TEXT: "),
    ],
)
def test_where_no_corpus_is_the_advice_is_one_that_works(path: str, advice: str) -> None:
    with pytest.raises(DataError, match=r"^no prepared corpus in .*" + re.escape(advice)):
        read_index(Path(path))
