"""Token files: read back as written, by us and by llm.c's readers; damage is refused."""

import os
import pickle
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from lmtemplate.data.shard_writer import ShardWriter, write_index
from lmtemplate.data.shards import IGNORED, Blocks, Shard, Shards, dtype_for, read_index
from lmtemplate.errors import DataError

MIB = 2**20
Bytes = Callable[[bytes], bytes]


def write_split(
    folder: Path, ids: np.ndarray[Any, Any], vocab_size: int, shard_tokens: int
) -> None:
    writer = ShardWriter(folder, "train", vocab_size, shard_tokens)
    for part in np.array_split(ids, 7):
        writer.write(part)
    split = {"tokens": len(ids), "bytes": len(ids), "shards": writer.close()}
    tokenizer = {"file": "tokenizer.json", "sha256": ""}
    index = {"dtype": writer.dtype, "vocab_size": vocab_size, "eot_id": 0, "tokenizer": tokenizer}
    write_index(folder, {**index, "splits": {"train": split}})


def read_all(folder: Path) -> np.ndarray[Any, Any]:
    shards = Shards(folder, "train")
    return shards.gather(np.arange(shards.tokens))


def rewrite(path: Path, change: Bytes) -> None:
    path.write_bytes(change(path.read_bytes()))


def entries_of(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = read_index(folder)["splits"]["train"]["shards"]
    return entries


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
@pytest.mark.parametrize("part", [0, 1, 0.1, 0.5, 0.9, 0.999, -1])
def test_a_truncated_or_grown_shard_is_refused_with_both_sizes(part: float, tmp_path: Path) -> None:
    path = tmp_path / "train_000003.bin"
    size = path.stat().st_size
    left = {1: 1, -1: size + 1}.get(int(part), int(part * size)) if part else 0
    rewrite(path, lambda content: (content + b"\0")[:left])
    with pytest.raises(
        DataError, match=rf"train_000003\.bin has {left:,} bytes, the index says {size:,}"
    ):
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
            block = 1024 + (position - 1024) // MIB * MIB
            message = f"block at byte offset {block:,} fails" if block > 0 else "wrong header"
            with pytest.raises(DataError, match=rf"train_000000\.bin.*{message}"):
                read_all(folder)
            os.pwrite(file.fileno(), before, position)
    read_all(folder)


def test_every_one_of_200_flipped_bits_is_found(tmp_path: Path) -> None:
    write_split(tmp_path, np.arange(3000) % 500, 500, 10_000)
    check_flips(tmp_path, 200, 1024 + 6000)


@pytest.mark.slow
def test_every_one_of_1000_flipped_bits_is_found_with_its_block(tmp_path: Path) -> None:
    write_split(tmp_path, np.random.default_rng(0).integers(0, 70_000, 700_000), 70_000, 10**6)
    check_flips(tmp_path, 1000, 1024 + 2_800_000)


@pytest.mark.parametrize("vocab_size", [500, 70_000])
def test_block_sums_are_those_of_the_file(vocab_size: int, tmp_path: Path) -> None:
    """However the tokens came in: here in seven parts, over two shards."""
    write_split(tmp_path, np.arange(1_300_000) % vocab_size, vocab_size, 1_200_000)
    for entry in entries_of(tmp_path):
        tokens = (tmp_path / entry["file"]).read_bytes()[1024:]
        blocks = [tokens[at : at + MIB] for at in range(0, len(tokens), MIB)]
        assert entry["crc32"].split() == [f"{zlib.crc32(block):08x}" for block in blocks]


def test_only_blocks_that_are_read_are_verified(tmp_path: Path) -> None:
    write_split(tmp_path, np.arange(1_300_000) % 500, 500, 10**7)
    rewrite(tmp_path / "train_000000.bin", lambda content: content[:-1] + b"\7")
    shards = Shards(tmp_path, "train")
    shards.gather(np.array([[0, MIB - 1]]))  # of blocks 0 and 1 of 3
    assert shards.shards[0].unread.tolist() == [False, False, True]
    with pytest.raises(DataError, match="byte offset 2,098,176 fails"):
        shards.gather(np.array([MIB]))
    with pytest.raises(DataError, match="byte offset 2,098,176 fails"):  # and it stays refused
        shards.gather(np.array([MIB]))


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


def test_a_folder_without_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lmtemplate prepare"):
        Shards(tmp_path, "train")


@pytest.mark.usefixtures("stream")
def test_a_split_that_was_not_made_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no test split \(it has: train\).*--test_ratio"):
        Shards(tmp_path, "test")
