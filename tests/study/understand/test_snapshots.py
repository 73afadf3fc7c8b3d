"""Which weights a run keeps, and what they write."""

import json
from pathlib import Path

import torch

from lmtemplate.data.tokenizer import CharTokenizer
from lmtemplate.study.understand.snapshots import continuation, snapshot_files
from tests.study.understand.test_one_step import Pairs


def test_the_snapshots_are_in_their_order_and_the_best_is_one(finished: Path) -> None:
    files = snapshot_files(finished)
    best = json.loads((finished / "checkpoints/best.json").read_text())["step"]
    assert [*files] == sorted({0, best, 12, *files})
    assert all(path.stem == f"step-{step:09d}" for step, path in files.items())


def test_a_run_without_its_checkpoints_has_its_milestones(tmp_path: Path) -> None:
    milestone = tmp_path / "checkpoints/milestones/step-000000000.ckpt"
    milestone.parent.mkdir(parents=True)
    milestone.touch()
    (tmp_path / "checkpoints/best.json").write_text('{"step": 4, "val_loss": 1.0}')
    assert [*snapshot_files(tmp_path)] == [0, 4]  # whoever reads step 4 says that it is gone


def test_a_text_ends_where_its_document_does() -> None:
    net, letters = Pairs().eval(), CharTokenizer("abc")
    with torch.no_grad():
        net.table.weight.zero_()
        for here, follows in ((0, 1), (1, 2), (2, letters.eot_id)):
            net.table.weight[here, follows] = 100.0
    assert continuation(net, letters, "a", 9, seed=1) == "bc"
    assert continuation(net, letters, "a", 1, seed=1) == "b"
