"""The verb: what it shows of a run, and what it says where it cannot."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from lmtemplate.checkpoint.files import read, write
from lmtemplate.checkpoint.resume import resolve
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


def test_a_mistake_is_one_line(run: Path, tmp_path: Path, command: Command) -> None:
    check_line(command("probe", tmp_path / "nowhere"), 3)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["path"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "no prepared corpus" in check_line(command("probe", run), 8)


def test_weights_that_give_no_numbers_are_one_line(run: Path, command: Command) -> None:
    path = resolve(run, "best")
    state = read(path)
    state["state_dict"] = {k: v + math.inf for k, v in state["state_dict"].items()}
    write(state, path)
    assert "logits are not finite" in check_line(command("probe", run), 4)


@needs_browser
@pytest.mark.browser
def test_a_browser_opens_the_page_without_a_complaint(
    run: Path, tmp_path: Path, command: Command
) -> None:
    command("probe", run)
    assert open_offline(run / "probe.html", tmp_path / "page.png") == []
