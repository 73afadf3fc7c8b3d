"""Token files: read back as written, by us and by llm.c's readers; damage is refused."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtemplate.data.shards import (
    IGNORED,
    Blocks,
    Shards,
    ShardWriter,
    dtype_for,
    read_index,
    write_index,
)
from lmtemplate.errors import DataError


def write_split(
    folder: Path, ids: np.ndarray[Any, Any], vocab_size: int, shard_tokens: int
) -> None:
    writer = ShardWriter(folder, "train", vocab_size, shard_tokens)
    for part in np.array_split(ids, 7):
        writer.write(part)
    index = {"dtype": writer.dtype, "splits": {"train": {"shards": writer.close()}}}
    write_index(folder, index)


@pytest.fixture
def stream(tmp_path: Path) -> np.ndarray[Any, Any]:
    """1,000 tokens, in tmp_path as shards of 64."""
    ids = np.random.default_rng(0).integers(0, 500, 1000)
    write_split(tmp_path, ids, 500, 64)
    return ids


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(65535, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_the_largest_id_never_wraps(vocab_size: int, dtype: str, tmp_path: Path) -> None:
    ids = np.array([0, 1, vocab_size - 1, vocab_size - 2])
    write_split(tmp_path, ids, vocab_size, 100)
    assert dtype_for(vocab_size) == dtype == read_index(tmp_path)["dtype"]
    assert Shards(tmp_path, "train").gather(np.arange(4)).tolist() == ids.tolist()


@pytest.mark.parametrize("wrong", [-1, 65537])
def test_an_id_outside_the_vocabulary_is_refused(wrong: int, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "train", 65537)
    with pytest.raises(DataError, match="vocabulary has 65537"):
        writer.write(np.array([5, wrong]))
    writer.close()


@pytest.mark.parametrize(
    ("vocab_size", "magic", "version"), [(500, 20240520, 1), (70000, 20240801, 7)]
)
def test_llm_c_can_read_a_shard(vocab_size: int, magic: int, version: int, tmp_path: Path) -> None:
    ids = np.arange(300)
    write_split(tmp_path, ids, vocab_size, 1000)
    content = (tmp_path / "train_000000.bin").read_bytes()
    header = np.frombuffer(content[: 256 * 4], dtype="<i4")
    tokens = np.frombuffer(content[256 * 4 :], dtype="<u2" if version == 1 else "<u4")
    assert header[:3].tolist() == [magic, version, 300]
    assert not header[3:].any()
    assert tokens.tolist() == ids.tolist()


def test_many_shards_read_as_one_stream(stream: np.ndarray[Any, Any], tmp_path: Path) -> None:
    shards = Shards(tmp_path, "train")
    positions = np.random.default_rng(1).integers(0, 1000, (40, 9))
    assert len(shards.files) == 16
    assert shards.tokens == 1000
    assert np.array_equal(shards.gather(positions), stream[positions])


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
@pytest.mark.parametrize("change", [-1, 2])
def test_a_truncated_or_grown_shard_is_refused(change: int, tmp_path: Path) -> None:
    path = tmp_path / "train_000003.bin"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    where = (
        rf"train_000003\.bin has {len(content) + change:,} bytes, the index says {len(content):,}"
    )
    with pytest.raises(DataError, match=where):
        Shards(tmp_path, "train")


@pytest.mark.usefixtures("stream")
def test_a_missing_or_renamed_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train_000003.bin").rename(tmp_path / "train_3.bin")
    with pytest.raises(DataError, match=r"train_000003\.bin is missing"):
        Shards(tmp_path, "train")


@pytest.mark.usefixtures("stream")
def test_a_shard_of_the_other_type_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train_000003.bin"
    content = bytearray(path.read_bytes())
    content[:4] = np.array([20240801], dtype="<i4").tobytes()
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train_000003\.bin has a wrong header"):
        Shards(tmp_path, "train")


@pytest.mark.usefixtures("stream")
def test_a_shard_named_outside_the_folder_is_refused(tmp_path: Path) -> None:
    index = copy.deepcopy(read_index(tmp_path))
    index["splits"]["train"]["shards"][0]["file"] = "../train_000000.bin"
    write_index(tmp_path, {key: value for key, value in index.items() if key != "fingerprint"})
    with pytest.raises(DataError, match="outside its folder"):
        Shards(tmp_path, "train")


@pytest.mark.usefixtures("stream")
def test_an_index_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"tokens": 64', '"tokens": 63', 1))
    with pytest.raises(DataError, match="changed by hand"):
        read_index(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 1}', '{"fingerprint": 2}'])
def test_a_file_that_is_no_index_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(DataError, match=r"index\.json"):
        read_index(tmp_path)


def test_a_folder_without_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lmtemplate prepare"):
        Shards(tmp_path, "train")


@pytest.mark.usefixtures("stream")
def test_a_split_that_was_not_made_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test split \(it has: train\).*--test_ratio"):
        Shards(tmp_path, "test")
