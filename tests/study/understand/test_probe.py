"""The verb: what it shows of a run, and what it says where it cannot."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from lmtemplate.study.diagnose.artifacts import open_model, open_run_corpus
from lmtemplate.study.understand import probing
from tests.browser import needs_browser, open_offline
from tests.conftest import Command
from tests.runs import check_line


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(probing, "NOISE_SEQUENCES", 8)
    monkeypatch.setattr(probing, "ASKED_TOKENS", 512)
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.slow
def test_a_run_is_looked_into_and_has_its_own_loss(run: Path, command: Command) -> None:
    answer = command("probe", run, "--json")
    found = json.loads(answer.out)
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert found["step"] == best["step"]
    assert [layer["name"] for layer in found["layers"]] == ["blocks.0", "blocks.1"]
    assert all(0 < layer["attention_entropy"] < np.log(16) for layer in found["layers"])
    assert len(found["by_position"]) == 16
    tokens = sum(one["tokens"] for one in found["documents"])
    total = sum(one["tokens"] * one["loss"] for one in found["documents"])
    assert total / tokens == pytest.approx(np.mean(found["by_position"]), rel=1e-3)
    steps = [(one["first_step"], one["last_step"]) for one in found["updates"]]
    assert steps[0] == (0, 1)
    assert {0, best["step"]} <= {one["step"] for one in found["noise"]}
    assert found["unseen"] == []
    (source,) = found["sources"]
    assert (source["source"], source["tokens"]) == ("grammar", tokens)
    assert source["loss"] == pytest.approx(total / tokens)
    page = (run / "probe.html").read_text(encoding="utf-8")
    assert "What each depth knows" in page
    assert "Loss by source of the text" in page
    assert "blocks.1, head 2" in page


def test_the_sequences_are_those_that_the_run_reads_next(run: Path) -> None:
    from lmtemplate.data.datamodule import TokenData

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
    found = {"layers": [{"name": "a"}], "knowledge": {}, "sources": []}
    told = " ".join(probing.cannot_see(found))
    for word in ("attention:", "dead units:", "each depth knows:", "by source:"):
        assert word in told
    assert "layers:" in " ".join(probing.cannot_see({**found, "layers": []}))


def test_a_mistake_is_one_line(run: Path, tmp_path: Path, command: Command) -> None:
    check_line(command("probe", tmp_path / "nowhere"), 3)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["path"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "no prepared corpus" in check_line(command("probe", run), 8)


@needs_browser
@pytest.mark.browser
def test_a_browser_opens_the_page_without_a_complaint(
    run: Path, tmp_path: Path, command: Command
) -> None:
    command("probe", run)
    assert open_offline(run / "probe.html", tmp_path / "page.png") == []
