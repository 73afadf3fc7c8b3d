"""Token files and their index: read back as written; damage is found and said in one line."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lmtemplate.data import IGNORED
from lmtemplate.data.shard_writer import ShardWriter, write_index
from lmtemplate.data.shards import BLOCK_BYTES, Blocks, Shard, Shards, fingerprint, read_index
from lmtemplate.errors import DataError
from tests.data.corpora import read_all, write_split

Bytes = Callable[[bytes], bytes]
Index = dict[str, Any]
Change = Callable[[Index], None]


def rewrite(path: Path, change: Bytes) -> None:
    path.write_bytes(change(path.read_bytes()))


def entries_of(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = read_index(folder)["splits"]["train"]["shards"]
    return entries


TOKENS = np.random.default_rng(0).integers(0, 500, 1000)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_split(folder, TOKENS, 500, 64)
    return folder


@pytest.fixture
def stream(written: Path, tmp_path: Path) -> np.ndarray[Any, Any]:
    """1,000 tokens, in tmp_path as shards of 64."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    return TOKENS


def test_many_shards_read_as_one_stream(stream: np.ndarray[Any, Any], tmp_path: Path) -> None:
    shards = Shards(tmp_path, "train")
    positions = np.random.default_rng(1).integers(0, 1000, (40, 9))
    assert len(shards.shards) == 16
    assert shards.tokens == 1000
    assert np.array_equal(shards.gather(positions), stream[positions])
    assert shards.sources == [("text", 1)]


def test_a_worker_process_gets_the_same_stream(
    stream: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    shards = pickle.loads(pickle.dumps(Shards(tmp_path, "train")))
    assert np.array_equal(shards.gather(np.arange(1000)), stream)


@pytest.mark.parametrize("block_size", [1, 7, 333, 999])
def test_every_token_but_the_first_is_predicted_once(
    block_size: int, stream: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    blocks = Blocks(Shards(tmp_path, "train"), block_size, whole=False)
    inputs, targets = blocks[np.arange(len(blocks) + 2)]  # two more: batches are padded with them
    real = targets != IGNORED
    assert np.array_equal(targets[real], stream[1:])
    assert np.array_equal(inputs[real], stream[:-1])


@pytest.mark.parametrize(("block_size", "blocks"), [(9, 111), (10, 99), (999, 1)])
def test_training_blocks_are_whole(
    block_size: int, blocks: int, stream: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    whole = Blocks(Shards(tmp_path, "train"), block_size, whole=True)
    _, targets = whole[np.arange(len(whole))]
    assert len(whole) == blocks
    assert np.array_equal(targets.ravel(), stream[1 : blocks * block_size + 1])


@pytest.mark.usefixtures("stream")
def test_a_split_shorter_than_a_block_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1,000 tokens, but one block needs 1,001"):
        Blocks(Shards(tmp_path, "train"), 1000, whole=True)


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("part", [0, 1, 0.1, 0.5, 0.9, 0.999, -1])
def test_a_truncated_or_grown_shard_is_refused_with_both_sizes(part: float, tmp_path: Path) -> None:
    path = tmp_path / "train_000003.bin"
    size = path.stat().st_size
    left = {1: 1, -1: size + 1}.get(int(part), int(part * size)) if part else 0
    rewrite(path, lambda content: (content + b"\0")[:left])
    with pytest.raises(DataError, match=rf"000003\.bin .*{left:,} bytes, the index says {size:,}"):
        Shards(tmp_path, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: bytes(len(content)), "wrong header"),
        (lambda content: content[:1024] + bytes(len(content) - 1024), "fails its CRC-32"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    ],
    ids=["zeroed", "zero tokens", "git-lfs pointer"],
)
@pytest.mark.usefixtures("stream")
def test_a_shard_of_something_else_is_refused(change: Bytes, message: str, tmp_path: Path) -> None:
    rewrite(tmp_path / "train_000003.bin", change)
    with pytest.raises(DataError, match=rf"train_000003\.bin.*{message}"):
        read_all(tmp_path)


@pytest.mark.usefixtures("stream")
def test_two_swapped_shards_are_noticed(tmp_path: Path) -> None:
    one, other = tmp_path / "train_000003.bin", tmp_path / "train_000004.bin"
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    with pytest.raises(DataError, match=r"train_000003\.bin: block .* CRC-32"):
        read_all(tmp_path)


@pytest.mark.usefixtures("stream")
def test_a_valid_shard_of_another_corpus_is_noticed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_split(other, np.random.default_rng(1).integers(0, 500, 1000), 500, 64)
    (other / "train_000003.bin").replace(tmp_path / "train_000003.bin")
    with pytest.raises(DataError, match=r"train_000003\.bin: block .* CRC-32"):
        read_all(tmp_path)


def check_flips(folder: Path, flips: int, size: int) -> None:
    """Flip single bits all over a shard; each is found, tokens with their block."""
    random = np.random.default_rng(2)
    positions = [*random.integers(0, 12, flips // 10), *random.integers(12, 1024, flips // 10)]
    positions += [1023, 1024, size - 1, *random.integers(1024, size, flips - len(positions) - 3)]
    assert len(positions) == flips
    with (folder / "train_000000.bin").open("r+b", buffering=0) as file:
        for position in positions:
            before = os.pread(file.fileno(), 1, position)
            flipped = before[0] ^ (1 << int(random.integers(8)))
            os.pwrite(file.fileno(), bytes([flipped]), position)
            block = 1024 + (position - 1024) // BLOCK_BYTES * BLOCK_BYTES
            message = f"block at byte offset {block:,} fails" if block > 0 else "wrong header"
            with pytest.raises(DataError, match=rf"train_000000\.bin.*{message}"):
                read_all(folder)
            os.pwrite(file.fileno(), before, position)
    read_all(folder)


def test_every_one_of_200_flipped_bits_is_found(tmp_path: Path) -> None:
    write_split(tmp_path, np.arange(3000) % 500, 500, 10_000)
    check_flips(tmp_path, 200, 1024 + 6000)


@pytest.mark.slow
def test_every_one_of_200_flipped_bits_is_found_with_its_block(tmp_path: Path) -> None:
    write_split(tmp_path, np.random.default_rng(0).integers(0, 70_000, 700_000), 70_000, 10**6)
    check_flips(tmp_path, 200, 1024 + 2_800_000)


def test_only_blocks_that_are_read_are_verified(tmp_path: Path) -> None:
    size = BLOCK_BYTES
    write_split(tmp_path, np.arange(5 * size // 4) % 500, 500, 10**7)  # 2 bytes each
    rewrite(tmp_path / "train_000000.bin", lambda content: content[:-1] + b"\7")
    shards = Shards(tmp_path, "train")
    shards.gather(np.array([[0, size - 1]]))  # of blocks 0 and 1 of 3
    assert shards.shards[0].unread.tolist() == [False, False, True]
    for _ in range(2):  # and it stays refused
        with pytest.raises(DataError, match=f"byte offset {1024 + 2 * size:,} fails"):
            shards.gather(np.array([size]))


@pytest.mark.usefixtures("stream")
def test_a_token_outside_the_vocabulary_is_named_before_it_reaches_the_model(
    stream: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    index = {**read_index(tmp_path), "vocab_size": int(stream.max())}
    del index["fingerprint"]
    write_index(tmp_path, index)
    with pytest.raises(DataError, match=r"token id 499 is outside the vocabulary of 499 ids"):
        read_all(tmp_path)


@pytest.mark.usefixtures("stream")
def test_a_shard_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in tmp_path.glob("*.*"):
        (folder / file.name).symlink_to(file)
    with pytest.raises(DataError, match=r"train_000000\.bin is a link that leaves its folder"):
        Shards(folder, "train")
    (tmp_path / "linked").symlink_to(tmp_path)  # a linked folder is another thing
    Shards(tmp_path / "linked", "train")


@pytest.mark.usefixtures("stream")
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_a_shard_that_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "train_000003.bin").unlink()
    make(tmp_path / "train_000003.bin")
    with pytest.raises(DataError, match=r"train_000003\.bin is missing"):
        Shards(tmp_path, "train")


@pytest.mark.slow
@pytest.mark.usefixtures("stream")
def test_a_worker_process_verifies_for_itself(tmp_path: Path) -> None:
    rewrite(tmp_path / "train_000015.bin", lambda content: content[:-1] + b"\7")
    blocks: Any = Blocks(Shards(tmp_path, "train"), 10, whole=False)
    sampler: Any = [np.array([99])]
    loader = DataLoader[Any](
        blocks, sampler=sampler, batch_size=None, num_workers=1, collate_fn=list
    )
    with pytest.raises(DataError, match=r"train_000015\.bin: block"):
        list(loader)
    assert blocks.stream.shards[15].unread.all()


@pytest.mark.usefixtures("stream")
def test_one_shard_can_be_verified_without_the_others(tmp_path: Path) -> None:
    rewrite(tmp_path / "train_000003.bin", lambda content: content[:-1])
    index, sound = read_index(tmp_path), []
    for entry in entries_of(tmp_path):
        with suppress(DataError):
            Shard(tmp_path, index, entry).verify_all()
            sound.append(entry["file"])
    assert len(sound) == 15


@pytest.mark.usefixtures("stream")
def test_a_shard_of_the_other_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_000003.bin"
    content = bytearray(path.read_bytes())
    content[:4] = np.array([20240801], dtype="<i4").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train_000003\.bin has a wrong header"):
        Shards(tmp_path, "train")


@pytest.mark.usefixtures("stream")
def test_a_split_that_was_not_made_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test split \(it has: train\).*--test_ratio"):
        Shards(tmp_path, "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two splits, in three shards and one."""
    folder, splits = tmp_path_factory.mktemp("index"), {}
    for split, tokens in (("train", 90), ("val", 25)):
        writer = ShardWriter(folder, split, 50, shard_tokens=40)
        writer.write(np.arange(tokens) % 50)
        counts = {"documents": 2, "bytes": 4 * tokens, "tokens": tokens, "unknown": 0}
        splits[split] = {**counts, "sources": [["text", 2]], "shards": writer.close()}
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
    (first_shard(file="train\0.bin"), "a file or split is named 'train"),
    (
        on_top(tokenizer={"kind": "bpe", "file": "../tokenizer.json", "sha256": ""}),
        "a file or split is named",
    ),
    (rename_split("../val"), "a file or split is named '../val'"),
    (first_shard(tokens=2**31), "tokens of 'train_000000.bin' is 2147483648"),
    (first_shard(tokens=41), "tokens of 'train' are not those of its shards, but 90"),
    (of_train(shards=[]), "tokens of 'train' are not those of its shards"),
    (first_shard(crc32="1a2b3c4d 5e6f7788"), "crc32 of 'train_000000.bin' is not one sum for"),
    (of_train(sources=[["a", 3]]), "sources of 'train' are not those of its documents"),
    (of_train(sources=[["a", "2"]]), "sources of 'train' are not those of its documents"),
    (of_train(sources=7), "sources of 'train' are 7"),
    (of_train(sources=0), "sources of 'train' are 0"),
    (of_train(documents=91), "documents of 'train' are 91"),
    (first_shard(file="tokenizer.json"), "a file is named twice"),
    (on_top(source=5), "source is 5"),
    (on_top(dtype="uint32"), "dtype is 'uint32'"),
    (on_top(dtype="object"), "dtype is 'object'"),
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
    ["", "[]", '{"format": 1}', "[" * 10**5, "9" * 10**4],
)
def test_a_file_that_is_no_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"index\.json"):
        read_index(tmp_path)


def test_a_git_lfs_pointer_names_the_command(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"
    (tmp_path / "index.json").write_text(pointer)
    with pytest.raises(DataError, match="is a git-lfs pointer: run git lfs pull"):
        read_index(tmp_path)


def test_the_fingerprint_is_of_tokens_and_tokenizer_alone(index: Index) -> None:
    before = fingerprint(index)
    index["source"] = {"input": "moved"}
    assert fingerprint(index) == before
    index["splits"]["val"]["sources"] = [["moved", 2]]
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
        ("data/sotu-medium", "--input TEXT --output data/sotu-medium"),
        ("data/empty", "--input TEXT --output data/empty"),
        ("texts", "--input texts --output data/mine"),
        ("texts/one.txt", "--input texts/one.txt --output data/mine"),
    ],
)
def test_where_no_corpus_is_the_advice_is_one_that_works(path: str, advice: str) -> None:
    with pytest.raises(DataError, match=r"^no prepared corpus in .*" + re.escape(advice)):
        read_index(Path(path))
