"""One resumed run -> what it reads: each file of the corpus, each config and its checkpoint, once."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmtemplate.data import datamodule
from lmtemplate.data.shards import Shards
from tests.conftest import Command


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of these is called, from now on."""
    counted = Counter[str]()

    def count(owner: Any, name: str, label: Any) -> None:
        original = getattr(owner, name)

        def counting(*args: Any, **more: Any) -> Any:
            counted[label(*args)] += 1
            return original(*args, **more)

        monkeypatch.setattr(owner, name, counting)

    count(datamodule, "read_index", lambda folder: "index.json")
    count(Shards, "__init__", lambda self, folder, split, *_: f"shards of {split}")
    count(torch, "load", lambda *_: "checkpoint, loaded")
    count(hashlib, "file_digest", lambda file, *_: f"{Path(file.name).suffix}, hashed")
    count(yaml, "compose", lambda *_: "config")
    return counted


@pytest.mark.slow
def test_a_resumed_run_reads_everything_once(
    fit: Command, tmp_path: Path, calls: Counter[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("trainer: {gradient_clip_val: 1.0}\n")
    off = ["--config", config, "--checkpoint.milestones", "null", "--samples", "null"]
    assert fit(tmp_path / "run", *off).code == 0
    calls.clear()
    longer = ["--resume", "must", "--trainer.max_steps", "12"]
    (tmp_path / "run/summary.json").unlink()  # as if it had been killed before its end
    assert fit(tmp_path / "run", *off, *longer).code == 0
    assert dict(calls) == {
        "index.json": 1,
        "shards of train": 1,
        "shards of val": 1,
        "checkpoint, loaded": 1,
        ".ckpt, hashed": 1,
        "config": 1,
    }
