"""The numbers of `probe`: which sequences they are of, and what they leave as it was."""

import shutil
from pathlib import Path

import pytest
import yaml

from lmtemplate.data.datamodule import TokenData
from lmtemplate.study.diagnose.artifacts import open_model, open_run_corpus
from lmtemplate.study.understand import probing


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_sequences_are_those_that_the_run_reads_next(run: Path) -> None:

    corpus, settings = open_run_corpus(run), yaml.safe_load((run / "config.yaml").read_text())
    data = TokenData(corpus.folder, 16, 4, seed=settings["seed_everything"])
    data.setup("fit")
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]
    assert probing.batch_of(run) == 4
    inputs, targets = probing.next_sequences(run, corpus, 3, 4)
    assert (inputs == batches[3][0]).all()
    assert (targets == batches[3][1]).all()


def test_a_snapshot_leaves_the_weights_of_the_model_alone(run: Path) -> None:
    model = open_model(run)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    batch = probing.next_sequences(run, open_run_corpus(run), 0, 8)
    (run / "checkpoints/milestones/step-000000001.ckpt").write_bytes(b"damaged")
    unseen = list[str]()
    first = probing.follow_snapshots(run, model, batch, unseen)["updates"][0]
    assert (first["first_step"], first["last_step"]) == (0, 2)
    assert "step-000000001.ckpt is damaged" in unseen[0]
    assert all((before[name] == value).all() for name, value in model.net.state_dict().items())


def test_what_cannot_be_seen_is_said() -> None:
    found = {"layers": [{"name": "a"}], "knowledge": {}}
    told = " ".join(probing.cannot_see(found))
    for word in ("attention:", "dead units:", "each depth knows:"):
        assert word in told
    assert "layers:" in " ".join(probing.cannot_see({**found, "layers": []}))
