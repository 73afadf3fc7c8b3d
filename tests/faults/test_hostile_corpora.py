"""A prepared corpus of a stranger -> refused in one line; data/test_shards.py has its index."""

import hashlib
import json
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

    def call(change: Change) -> None:
        say(prepared, change)
        with watching(tmp_path) as events, within(20), pytest.raises(DataError) as refused:
            TokenData(prepared, block_size=16).setup("fit")
        assert events == []
        assert not canary.exists()
        check_line(Result(refused.value.exit_code, "", str(refused.value)), 8)

    return call


TOKENIZERS = {
    "deep": "[" * 100_000,
    "a model of nothing": '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "ids beyond memory": '{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel",'
    '"vocab":{"a":4294967295,"<eos>":0},"unk_token":"a"}}',
    "an id that would take a minute to write": '{"model":{"type":"BPE","vocab":{"<eos>":0,'
    '"a":4294967294},"merges":[]}}',
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


@pytest.mark.slow
def test_a_refused_corpus_ends_a_run_before_it_has_a_directory(
    ask: Command, prepared: Path
) -> None:
    say(prepared, lambda index: index["tokenizer"].update(file="/etc/passwd"))
    run = prepared.with_name("run")
    check_line(ask("fit", "--data.path", prepared, *TINY, "--run_dir", run), 8)
    assert not run.exists()
