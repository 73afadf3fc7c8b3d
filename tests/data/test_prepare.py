"""Text -> shards: splits and counts are right, and nothing half done ever looks finished."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtemplate.data import prepare as verb
from lmtemplate.data import shard_writer, shards
from lmtemplate.data.corpus import Corpus, Document
from lmtemplate.data.formats import grammar
from lmtemplate.data.formats import text as plain
from lmtemplate.data.prepare import SplitCorpus, prepare
from lmtemplate.data.shard_writer import name_sources
from lmtemplate.data.shards import Shards, read_index
from lmtemplate.data.tokenizer import load_tokenizer
from lmtemplate.errors import ConfigError, DataError, DiskError


def in_memory(*texts: str, every_fifth: bool = False) -> Corpus:
    def walk() -> Iterator[Document]:
        return (Document(str(number), [text]) for number, text in enumerate(texts))

    return Corpus(walk, {}, documents=len(texts), every_fifth=every_fifth)


def splits_of(source: Corpus, **settings: Any) -> list[str]:
    """The split of each document, in order."""
    events = SplitCorpus(source, **{"val_ratio": 0.2, "test_ratio": 0.0, "seed": 0} | settings)
    return [split for split, _, piece in events if piece is None]


def test_a_prescribed_split_has_every_fifth_document_in_val() -> None:
    fives = in_memory(*"abcdefghijkl", every_fifth=True)
    assert splits_of(fives) == (["train"] * 4 + ["val"]) * 2 + ["train"] * 2


@pytest.mark.parametrize("settings", [{"val_ratio": 0.25}, {"test_ratio": 0.2}])
def test_other_shares_override_a_prescribed_split(settings: dict[str, float]) -> None:
    names = in_memory(*"abcdefghijkl", every_fifth=True)
    plain = in_memory(*"abcdefghijkl")
    assert splits_of(names, **settings) == splits_of(plain, **settings)


@pytest.mark.parametrize(
    ("documents", "val_ratio", "test_ratio", "val", "test"),
    [
        (2, 0.2, 0.0, 1, 0),
        (3, 0.01, 0.01, 1, 1),
        (103, 0.2, 0.1, 21, 10),
        (9000, 0.15, 0.0, 1350, 0),
    ],
)
def test_a_split_has_exactly_its_share_of_documents(
    documents: int, val_ratio: float, test_ratio: float, val: int, test: int
) -> None:
    splits = splits_of(in_memory(*["x"] * documents), val_ratio=val_ratio, test_ratio=test_ratio)
    assert (len(splits), splits.count("val"), splits.count("test")) == (documents, val, test)


def test_the_seed_alone_decides_which_documents_are_validation() -> None:
    source = in_memory(*["x"] * 100)
    assert splits_of(source, seed=1) == splits_of(source, seed=1) != splits_of(source, seed=2)


def test_validation_documents_are_spread_over_the_corpus() -> None:
    splits = np.array(splits_of(in_memory(*["x"] * 10_000)))
    per_tenth = (splits == "val").reshape(10, 1000).sum(axis=1)
    assert per_tenth.sum() == 2000
    assert np.all(abs(per_tenth - 200) < 4 * np.sqrt(160))  # 4 standard deviations of a binomial


def test_too_few_documents_for_the_splits_are_refused() -> None:
    with pytest.raises(DataError, match="2 documents are too few for train and val and test"):
        splits_of(in_memory("a", "b"), test_ratio=0.2)


@pytest.mark.parametrize("pieces", [["äbc" * 50], ["ä", "bc"] * 50, list("äbc" * 50)])
def test_one_document_is_cut_into_contiguous_parts(pieces: list[str]) -> None:
    def walk() -> Iterator[Document]:
        return iter([Document("one", pieces)])

    parts = dict.fromkeys(("train", "val", "test"), "")
    for split, _, piece in SplitCorpus(Corpus(walk, {}), val_ratio=0.2, test_ratio=0.1, seed=0):
        parts[split] += piece or ""
    assert list(map(len, parts.values())) == [105, 30, 15]
    assert "".join(parts.values()) == "äbc" * 50


def test_each_part_ends_as_a_document_does() -> None:
    events = list(SplitCorpus(in_memory("€" * 10), val_ratio=0.3, test_ratio=0.1, seed=0))
    parts = [("train", "€" * 6), ("val", "€" * 3), ("test", "€")]
    assert events == [(split, "0", text) for split, part in parts for text in (part, None)]


@pytest.mark.parametrize("source", [["a"], list("abc"), list("abcdefghij")], ids=len)
def test_a_split_is_the_same_each_time_it_is_walked(source: list[str]) -> None:
    split = SplitCorpus(in_memory(*source), val_ratio=0.3, test_ratio=0.0, seed=1)
    assert list(split) == list(split)


def documents_of(folder: Path, split: str) -> list[str]:
    """The documents of a split, read back from its shards."""
    shards = Shards(folder, split)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    stream = shards.gather(np.arange(shards.tokens))
    ends = np.flatnonzero(stream == tokenizer.eot_id)
    assert ends[-1] == len(stream) - 1
    return [tokenizer.decode(part.tolist()) for part in np.split(stream, ends + 1)[:-1]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """Twelve documents of differing length."""
    folder = tmp_path / "books"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02d}.txt").write_text(
            f"Bóok {number}. " + "It was a tale. " * (number + 1)
        )
    return folder


def test_each_document_is_from_the_source_that_the_index_names(tmp_path: Path) -> None:
    for name in ("old/a.jsonl", "b.jsonl"):
        rows = "".join(f'{{"text": "{name} {number}"}}\n' for number in range(9))
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(rows)
    for number, pattern in enumerate(("in", "in/**/*.jsonl", "i[n]/**/*.jsonl")):
        output = tmp_path / f"data{number}"
        prepare(str(tmp_path / pattern), output, "byte", val_ratio=0.3)
        for split, entry in read_index(output)["splits"].items():
            names = [name for name, count in Shards(output, split).sources for _ in range(count)]
            parts = [text.split()[0] for text in documents_of(output, split)]
            assert len(names) == entry["documents"]
            assert [name.removeprefix("in/") for name in names] == parts


@pytest.mark.parametrize(
    ("names", "sources"),
    [
        ([f"{number:03d}.txt" for number in range(65)], ["{input}"]),
        (
            [f"{'ab'[number % 2]}/{number}.txt" for number in range(65)] + ["c.txt"],
            ["a", "b", "{input}"],
        ),
        ([f"{number}/a/b.txt" for number in range(65)], ["{input}"]),
        (
            [f"{number}.txt" for number in range(10, 74)],
            [f"{number}.txt" for number in range(10, 74)],
        ),
    ],
    ids=["files", "folders", "too many folders", "few files"],
)
def test_more_than_64_sources_are_joined(
    names: list[str], sources: list[str], tmp_path: Path
) -> None:
    entries = {
        split: {"sources": dict.fromkeys(sorted(names)[half::2], 2)}
        for half, split in enumerate(("train", "val"))
    }
    name_sources(entries, "{input}")
    runs = [run for entry in entries.values() for run in entry["sources"]]
    assert {name for name, _ in runs} == set(sources)
    assert sum(count for _, count in runs) == 2 * len(names)


def test_generated_documents_are_from_their_preset(corpus: Path) -> None:
    assert Shards(corpus, "val").sources == [("grammar", 60)]


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_every_document_comes_back_from_exactly_one_split(
    tokenizer: str, books: Path, tmp_path: Path
) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, tokenizer, test_ratio=0.1)
    found = [text for split in ("train", "val", "test") for text in documents_of(output, split)]
    assert sorted(found) == sorted(path.read_text() for path in books.iterdir())


def test_the_index_counts_what_is_there(books: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, "byte")
    index = read_index(output)
    assert index["vocab_size"] == 257
    assert index["eot_id"] == 256
    assert index["dtype"] == "uint16"
    for split, documents in {"train": 10, "val": 2}.items():
        entry = index["splits"][split]
        size = sum(len(text.encode()) for text in documents_of(output, split))
        assert (entry["documents"], entry["bytes"], entry["unknown"]) == (documents, size, 0)
        assert entry["tokens"] == size + documents == Shards(output, split).tokens
    total = sum(path.stat().st_size for path in books.iterdir())
    assert sum(entry["bytes"] for entry in index["splits"].values()) == total


def test_the_index_names_the_tokenizer_beside_it(books: Path, tmp_path: Path) -> None:
    prepare(str(books), tmp_path / "data", "char")
    named = read_index(tmp_path / "data")["tokenizer"]
    tokenizer = load_tokenizer(tmp_path / "data" / named["file"])
    assert (named["kind"], named["sha256"]) == ("char", tokenizer.digest)


def test_batches_of_any_size_give_the_same_shards(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(str(books), tmp_path / "one", "byte")
    monkeypatch.setattr(shard_writer, "CHARACTERS", 10)
    monkeypatch.setattr(plain, "PIECE", 7)
    prepare(str(books), tmp_path / "two", "byte")
    assert read_index(tmp_path / "one") == read_index(tmp_path / "two")


def test_characters_that_train_lacks_are_counted(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("ab" * 40 + "aßcb" + "ab" * 8)  # the last fifth is validation
    prepare(str(text), tmp_path / "data", "char")
    entries = read_index(tmp_path / "data")["splits"]
    assert (entries["train"]["unknown"], entries["val"]["unknown"]) == (0, 2)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_tokenizer_sees_the_train_split_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    train = verb.train_tokenizer

    def spy(kind: str, texts: Iterator[str], vocab_size: int | None) -> Any:
        seen.extend(texts)
        return train(kind, seen, vocab_size)

    monkeypatch.setattr(verb, "train_tokenizer", spy)
    prepare("grammar:50", tmp_path / "data", kind)
    assert seen == documents_of(tmp_path / "data", "train")


def test_a_byte_order_mark_is_no_part_of_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xef\xbb\xbf" + b"one long text " * 30)
    prepare(str(tmp_path / "text.txt"), tmp_path / "data", "byte")
    parts = documents_of(tmp_path / "data", "train") + documents_of(tmp_path / "data", "val")
    assert "".join(parts) == "one long text " * 30
    assert f"--data.path {tmp_path / 'data'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("val_ratio", "test_ratio"), [(0.0, 0.0), (-0.1, 0.0), (1.0, 0.0), (0.2, -0.1), (0.6, 0.4)]
)
def test_impossible_shares_are_refused(val_ratio: float, test_ratio: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--val_ratio {val_ratio} --test_ratio {test_ratio}"):
        prepare("grammar:9", tmp_path / "data", val_ratio=val_ratio, test_ratio=test_ratio)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--seed -1"):
        prepare("grammar:9", tmp_path / "data", seed=-1)


def test_an_empty_split_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("ab")
    with pytest.raises(DataError, match="the val split would be empty"):
        prepare(str(tmp_path / "text.txt"), tmp_path / "data", "byte")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_empty_documents_leave_no_trace(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"text {number}" if number % 2 else "")
    prepare(f"{tmp_path}/*.txt", tmp_path / "data", "byte", val_ratio=0.5)
    found = documents_of(tmp_path / "data", "train") + documents_of(tmp_path / "data", "val")
    assert sorted(found) == [f"text {number}" for number in (1, 3, 5, 7)]


@pytest.mark.parametrize("moment", ["_batches", "sync_folder"])
@pytest.mark.parametrize("before", [False, True])
def test_an_interruption_leaves_what_was_there_before(
    before: bool, moment: str, books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "data"
    if before:
        prepare(str(books), output, "char")
    there = files_of(output) if before else None

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shard_writer, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(str(books), output, "byte", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books"] + ["data"] * before
    assert there is None or files_of(output) == there


def test_the_index_is_the_last_file_written(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[str] = []
    write_index = verb.write_index

    def spy(folder: Path, index: dict[str, Any]) -> None:
        assert folder.name == ".data.partial"
        others.extend(sorted(path.name for path in folder.iterdir()))
        write_index(folder, index)

    monkeypatch.setattr(verb, "write_index", spy)
    prepare(str(books), tmp_path / "data", "byte")
    assert others == ["tokenizer.json", "train_000000.bin", "val_000000.bin"]


def test_what_a_kill_left_behind_is_cleared(books: Path, tmp_path: Path) -> None:
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial" / "train_000000.bin").write_bytes(b"torn")
    prepare(str(books), tmp_path / "data", "byte")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["books", "data"]


def test_a_kill_between_the_two_renames_loses_nothing(books: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, "byte")
    there = files_of(output)
    output.rename(tmp_path / ".data.replaced")
    with pytest.raises(ConfigError, match="tokenizer byte, now char"):
        prepare(str(books), output, "char")
    assert files_of(output) == there


def test_a_full_disk_is_one_line(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_writer, "sync_folder", full)
    with pytest.raises(DiskError, match="No space left on device"):
        prepare(str(books), tmp_path / "data", "byte")
    assert not (tmp_path / "data").exists()


def test_a_finished_one_is_not_redone(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, "byte")
    there = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    capsys.readouterr()
    prepare(str(books), output, "byte")
    assert capsys.readouterr().out.startswith(f"{output} is prepared already\n")
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == there


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("tokenizer", "byte"),
        ("vocab_size", 300),
        ("val_ratio", 0.3),
        ("test_ratio", 0.1),
        ("seed", 7),
    ],
)
def test_other_settings_are_refused_by_name(
    setting: str, value: Any, books: Path, tmp_path: Path
) -> None:
    prepare(str(books), tmp_path / "data")
    with pytest.raises(ConfigError, match=rf"{setting} .*, now {value}.*--overwrite"):
        prepare(str(books), tmp_path / "data", **{setting: value})


def test_changed_text_is_refused_and_can_be_overwritten(books: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, "byte")
    before = read_index(output)
    (books / "00.txt").write_text("Another beginning.")
    with pytest.raises(ConfigError, match=r"text 12 files of .*, now 12 files of .*--overwrite"):
        prepare(str(books), output, "byte")
    assert read_index(output) == before
    prepare(str(books), output, "byte", overwrite=True)
    assert "Another beginning." in documents_of(output, "train") + documents_of(output, "val")


def test_another_tokenizer_file_of_the_same_name_is_noticed(books: Path, tmp_path: Path) -> None:
    prepare(str(books), tmp_path / "first", "char")
    file = tmp_path / "first" / "tokenizer.json"
    prepare(str(books), tmp_path / "second", str(file))
    file.write_text('{"kind": "byte"}')
    with pytest.raises(ConfigError, match="tokenizer_sha256"):
        prepare(str(books), tmp_path / "second", str(file))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["thesis.txt", "index.json"])
def test_a_folder_of_someone_else_is_never_touched(
    name: str, overwrite: bool, books: Path, tmp_path: Path
) -> None:
    output = tmp_path / "mine"
    output.mkdir()
    (output / name).write_text("{}")
    with pytest.raises((ConfigError, DataError), match="mine"):
        prepare(str(books), output, "byte", overwrite=overwrite)
    assert files_of(output) == {name: b"{}"}


def test_a_damaged_folder_does_not_count_as_finished(books: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, "byte")
    (output / "val_000000.bin").unlink()
    with pytest.raises(DataError, match=r"val_000000\.bin is missing.*remove"):
        prepare(str(books), output, "byte")


@pytest.mark.parametrize("damage", ["index.json", "train_000000.bin", "tokenizer.json"])
def test_a_damaged_corpus_is_replaced_where_that_is_asked_for(
    damage: str, books: Path, tmp_path: Path
) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, "byte")
    sound = files_of(output)
    (output / damage).write_bytes(b"{}")
    prepare(str(books), output, "byte", overwrite=True)
    assert files_of(output) == sound


@pytest.mark.parametrize("input", [None, ""])
def test_text_has_to_be_named(input: str | None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prepare needs --input TEXT"):
        prepare(input, tmp_path / "data")


def test_preparing_again_finds_a_flipped_bit(books: Path, tmp_path: Path) -> None:
    output = tmp_path / "data"
    prepare(str(books), output, "byte")
    content = bytearray((output / "train_000000.bin").read_bytes())
    content[-1] ^= 1
    (output / "train_000000.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"train_000000\.bin: block .* CRC-32.*remove .*data"):
        prepare(str(books), output, "byte")


def test_a_config_that_nests_without_end_has_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("data: " + "[" * 3000)
    with pytest.raises(ConfigError, match=r"run\.yaml is not YAML"):
        prepare(for_config=tmp_path / "run.yaml")


def test_a_config_gets_the_preset_that_its_data_path_is_named_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "DOCUMENTS", 50)
    config, output = tmp_path / "run.yaml", tmp_path / "grammar"
    config.write_text(f"data: {{path: {output}, block_size: 8}}\n")
    prepare(for_config=config)
    assert read_index(output)["source"]["input"] == "grammar"
    assert "next: " not in capsys.readouterr().out  # it is a step of `make train`
    prepare(for_config=config)
    assert capsys.readouterr().out == f"{output} is prepared already\n"


def test_a_config_with_text_of_ones_own_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the project's own folder may hold that text already
    config = tmp_path / "run.yaml"
    config.write_text("data: {path: data/shakespeare_char}\n")
    command = "make data INPUT=your.txt NAME=shakespeare_char TOKENIZER=char"
    with pytest.raises(DataError, match=command):
        prepare(for_config=config)


@pytest.mark.parametrize("path", ["a\0/grammar", "\ud800/grammar"])
def test_a_folder_that_no_system_can_make_is_named(path: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"data": {"path": path}}))
    with pytest.raises(ConfigError, match="is no folder to make"):
        prepare(for_config=config)
    with pytest.raises(ConfigError, match="is no folder to make"):
        prepare("grammar:9", Path("/"), tokenizer="byte", overwrite=True)


@pytest.mark.parametrize("content", [None, "", "data: 3", "model: {}", "data: [", "\tdata:"])
def test_a_config_without_data_path_is_named(content: str | None, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    if content is not None:
        config.write_text(content)
    with pytest.raises(ConfigError, match=r"run\.yaml") as caught:
        prepare(for_config=config)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_long_text_needs_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "CHARACTERS", 100_000)
    monkeypatch.setattr(plain, "PIECE", 10_000)
    (tmp_path / "text.txt").write_bytes(b"some words " * 1_500_000)
    tracemalloc.start()
    prepare(str(tmp_path / "text.txt"), tmp_path / "data", "byte")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000  # the text has 16.5 MB, its ids would have 132 MB


def test_ids_beyond_sixteen_bits_get_wider_shards(tmp_path: Path) -> None:
    characters = "".join(map(chr, range(0x4E00, 0x9000))) + "".join(
        map(chr, range(0x20000, 0x2C000))
    )
    (tmp_path / "text.txt").write_text(characters * 2, encoding="utf-8")
    prepare(str(tmp_path / "text.txt"), tmp_path / "data", "char", val_ratio=0.4)
    index = read_index(tmp_path / "data")
    assert (index["dtype"], index["vocab_size"]) == ("uint32", len(characters) + 2)
    parts = documents_of(tmp_path / "data", "train") + documents_of(tmp_path / "data", "val")
    assert "".join(parts) == characters * 2


def test_the_report_adds_up(
    books: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(str(books), tmp_path / "data", "byte")
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[:3]}
    size = read_index(tmp_path / "data")["splits"]["val"]["bytes"]
    assert rows["split"] == ["split", "documents", "bytes", "tokens", "bytes/token", "unknown"]
    ratio = f"{size / (size + 2):.2f}"
    assert rows["val"] == ["val", "2", f"{size:,}", f"{size + 2:,}", ratio, "0"]


def test_what_the_text_was_split_by_is_said_with_each_share_of_the_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two files of different kinds: one is trained on, and the other alone validates."""
    for name, size in (("prose", 300), ("code", 100)):
        (tmp_path / f"{name}.txt").write_text(name[0] * size)
    prepare(str(tmp_path), tmp_path / "two", "byte")
    said = capsys.readouterr().out
    train, val = ("prose", "code") if "train 75%" in said else ("code", "prose")
    share = {"prose": 75, "code": 25}
    assert (
        f"\nsplit by document: train {share[train]}% of the bytes, val {share[val]}% of the bytes, "
        f"train is {train}.txt alone, val is {val}.txt alone, "
        "as one file the text would be cut into the splits\n"
    ) in said
    prepare(str(tmp_path / "prose.txt"), tmp_path / "one", "byte")
    says = "\nsplit one document by characters: train 80% of the bytes, val 20% of the bytes\n"
    assert says in capsys.readouterr().out
    (tmp_path / "two.jsonl").write_text('{"text": "abc"}\n{"text": "def"}\n')
    prepare(str(tmp_path / "two.jsonl"), tmp_path / "lines", "byte")  # of one file already
    says = "\nsplit by document: train 50% of the bytes, val 50% of the bytes\n"
    assert says in capsys.readouterr().out


def test_the_index_is_plain_json(books: Path, tmp_path: Path) -> None:
    prepare(str(books), tmp_path / "data", "byte")
    source = json.loads((tmp_path / "data" / "index.json").read_text())["source"]
    assert (source["input"], source["seed"]) == (str(books), 1337)
    assert source["text"].startswith("12 files of")


def test_a_config_whose_corpus_is_there_reads_its_index_once(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make train` comes by here each time."""
    prepare(str(books), tmp_path / "data", "byte")
    (tmp_path / "run.yaml").write_text(f"data: {{path: {tmp_path / 'data'}}}")
    read, fingerprint = list[str](), shards.fingerprint

    def counting(index: dict[str, Any]) -> str:
        read.append(fingerprint(index))
        return read[-1]

    monkeypatch.setattr(shards, "fingerprint", counting)
    prepare(for_config=tmp_path / "run.yaml")
    assert len(read) == 1


def test_copies_of_a_document_are_on_one_side_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        (tmp_path / f"{number:02d}.txt").write_text(f"Text number {number % 20}.")
    (tmp_path / "notes.pdf").write_text("x")
    prepare(str(tmp_path), tmp_path / "data", "byte")
    train, val = (set(documents_of(tmp_path / "data", split)) for split in ("train", "val"))
    assert (len(train), len(val), train & val) == (16, 4, set())
    source, said = read_index(tmp_path / "data")["source"], capsys.readouterr().out
    assert (source["copies"], source["left_out"]) == (40, {".pdf": 1})
    assert "exact copies of other documents, in the same split as these: 40" in said
    assert "left out: 1 .pdf" in said


def test_copies_of_one_text_alone_cannot_be_split(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("The same.")
    with pytest.raises(DataError, match="1 documents, not counting 19 exact copies, are too few"):
        prepare(str(tmp_path), tmp_path / "data", "byte")


@pytest.mark.parametrize("name", ["text.txt", "rows.jsonl"])
def test_a_text_that_grows_meanwhile_leaves_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, batches = tmp_path / name, shard_writer._batches
    path.write_text('{"text": "A line."}\n' * 99 + '{"text": "Another."}\n' * 9)

    def growing(events: Iterator[Any]) -> Iterator[Any]:
        with path.open("a") as file:
            file.write('{"text": "One more."}\n' * 999)
        return batches(events)

    monkeypatch.setattr(shard_writer, "_batches", growing)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(str(path), tmp_path / "data", "byte", format=None if "json" in name else "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_lines_are_left_out_and_counted_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ["{", '{"text": null}', '{"body": "x"}', '["x"]', '{"text": "\\ud83d"}']
    good = [json.dumps({"text": f"Text {number}."}) for number in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*bad[:2], *good, *bad[2:]]))
    with pytest.raises(DataError, match=r"line 1 .*--skip_bad_lines true"):
        prepare(str(tmp_path / "rows.jsonl"), tmp_path / "data", "byte")
    prepare(str(tmp_path / "rows.jsonl"), tmp_path / "data", "byte", skip_bad_lines=True)
    found = documents_of(tmp_path / "data", "train") + documents_of(tmp_path / "data", "val")
    assert sorted(found) == [f"Text {number}." for number in range(10)]
    assert "left out: 5 lines without text" in capsys.readouterr().out


def test_a_large_text_trains_a_bpe_on_a_part_that_is_spread_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, train = list[str](), verb.train_tokenizer
    rows = [json.dumps({"text": f"Text {number:04d}."}) for number in range(1000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))

    def spy(kind: str, texts: Iterator[str], vocab_size: int | None) -> Any:
        seen.extend(texts)
        return train(kind, seen, vocab_size)

    monkeypatch.setattr(verb, "train_tokenizer", spy)
    monkeypatch.setattr(verb, "MOST_BYTES", 1000)
    prepare(str(tmp_path / "rows.jsonl"), tmp_path / "data")
    assert 500 < sum(map(len, seen)) <= 1000
    numbers = [int(text[5:9]) for text in seen]
    assert (min(numbers) < 50, max(numbers) > 950) == (True, True)
