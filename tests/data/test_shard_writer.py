"""Ids in shards: none is wrapped, llm.c's readers take them, and their checksums are right."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.data.shard_writer import ShardWriter, new_folder
from lmtemplate.data.shards import Shards, dtype_for, read_index
from lmtemplate.errors import DataError
from tests.data.corpora import write_split

KIB_32 = 2**15


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


@pytest.mark.parametrize("vocab_size", [500, 70_000])
def test_block_sums_are_those_of_the_file(vocab_size: int, tmp_path: Path) -> None:
    """However the tokens came in: here in seven parts, over two shards."""
    write_split(tmp_path, np.arange(1_300_000) % vocab_size, vocab_size, 1_200_000)
    for entry in read_index(tmp_path)["splits"]["train"]["shards"]:
        tokens = (tmp_path / entry["file"]).read_bytes()[1024:]
        blocks = [tokens[at : at + KIB_32] for at in range(0, len(tokens), KIB_32)]
        assert entry["crc32"].split() == [f"{zlib.crc32(block):08x}" for block in blocks]


@pytest.mark.parametrize("end", ["partial", "replaced"])
def test_a_link_in_the_place_of_an_interrupted_folder_leads_nowhere(
    end: str, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/index.json").write_text("{}")
    (tmp_path / f".mine.{end}").symlink_to(tmp_path / "precious")
    with new_folder(tmp_path / "mine") as folder:
        (folder / "index.json").write_text("[]")
    assert (tmp_path / "precious/index.json").read_text() == "{}"
    assert (tmp_path / "mine/index.json").read_text() == "[]"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "precious"}
