"""A corpus format of one's own: named by flag, allowed by flag, no edit to the package."""

from pathlib import Path

import numpy as np
import pytest

from lmtemplate.data.shards import Shards
from lmtemplate.data.tokenizer import load_tokenizer
from tests.conftest import Command

FASTA = ">one the first\nACGT\nAC\n>two\nGGGG\n>three\nTTTTT\n"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    (tmp_path / "genome.fa").write_text(FASTA)
    source, output = tmp_path / "genome.fa", tmp_path / "data"
    return ["--input", source, "--output", output, "--tokenizer", "char"]


def test_each_sequence_of_a_fasta_file_becomes_a_document(
    command: Command, words: list[object], tmp_path: Path
) -> None:
    done = command("prepare", *words, "--format", "examples.fasta.read", "--allow", "examples")
    assert done.code == 0
    tokenizer, text = load_tokenizer(tmp_path / "data/tokenizer.json"), list[str]()
    for split in ("train", "val"):
        shards = Shards(tmp_path / "data", split)
        ids = shards.gather(np.arange(shards.tokens))
        for part in np.split(ids, np.flatnonzero(ids == tokenizer.eot_id) + 1)[:-1]:
            text.append(tokenizer.decode(part.tolist()))
    assert sorted(text) == ["ACGTAC", "GGGG", "TTTTT"]


def test_a_format_of_a_package_that_is_not_allowed_is_refused(
    command: Command, words: list[object]
) -> None:
    refused = command("prepare", *words, "--format", "examples.fasta.read")
    assert refused.code != 0
    assert "add --allow examples on the command line if you trust it" in refused.error


def test_a_header_without_a_name_is_refused_with_its_line(
    command: Command, words: list[object], tmp_path: Path
) -> None:
    (tmp_path / "genome.fa").write_text(">one\nACGT\n>\nGG\n")
    refused = command("prepare", *words, "--format", "examples.fasta.read", "--allow", "examples")
    assert "genome.fa: line 3 names no sequence" in refused.error
