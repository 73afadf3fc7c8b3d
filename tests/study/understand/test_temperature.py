"""What temperature does to the next token, against softmax and argmax by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lmtemplate.data.tokenizer import ByteTokenizer
from lmtemplate.models import GPT2
from lmtemplate.study.diagnose.artifacts import Model
from lmtemplate.study.understand import temperature as verb
from tests.browser import needs_browser, open_offline
from tests.conftest import Command
from tests.runs import check_line


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    net = GPT2(257, 16, n_layer=1, n_head=1, n_embd=16).eval()
    torch.nn.init.normal_(net.embedding.weight)  # sharp
    return Model(net, ByteTokenizer(), None, 7)


def test_one_is_the_softmax_zero_is_the_argmax_and_entropy_rises_between(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "SHOWN_TEMPERATURES", (0.0, *verb.SHOWN_TEMPERATURES))
    found = verb.heat_prompt(model, "You", 4, 1)
    logits = model.net(torch.tensor([[*b"You"]]))[0, -1].detach().double().numpy()
    softmax = np.exp(logits) / np.exp(logits).sum()
    (one,) = (one for one in found["temperatures"] if one["temperature"] == 1.0)
    assert one["probabilities"] == pytest.approx(np.sort(softmax)[::-1][: verb.LISTED], rel=1e-5)
    assert one["entropy"] == pytest.approx(-(softmax * np.log(softmax)).sum(), rel=1e-5)
    coldest = found["temperatures"][0]
    assert (coldest["probabilities"][0], coldest["entropy"]) == (1.0, 0.0)
    assert found["tokens"][0] == verb.quoted(model.tokenizer, int(logits.argmax()))
    assert (np.diff([one["entropy"] for one in found["temperatures"]]) > 0).all()
    greedy = [*b"You"]
    for _ in range(4):
        greedy.append(int(model.net(torch.tensor([greedy]))[0, -1].argmax()))
    assert coldest["sample"] == model.tokenizer.decode(greedy[3:])


def test_what_a_run_shows_is_its_own_loss_and_its_page_opens(
    finished: Path, tmp_path: Path, command: Command
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    words = ("temperature", run, "--prompt", "The <b>", "--max_new_tokens", 3)
    answer = command(*words, "--json")
    found = json.loads(answer.out)
    (one,) = (one for one in found["temperatures"] if one["temperature"] == 1.0)
    assert len(found["temperatures"]) == len(verb.SHOWN_TEMPERATURES)
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert found["step"] == best["step"]
    assert one["val_loss"] == pytest.approx(best["val_loss"], abs=1e-4)  # all of its 8 sequences
    page = (run / "temperature.html").read_text(encoding="utf-8")
    assert "The &lt;b&gt;" in page
    assert "The <b>" not in page
    assert "The loss is lowest at temperature" in " ".join(command(*words).out.split())


def test_a_mistake_is_one_line(finished: Path, tmp_path: Path, command: Command) -> None:
    assert "17 tokens, and the net reads 16; shorten it" in check_line(
        command("temperature", finished, "--prompt", "x" * 17), 2
    )
    check_line(command("temperature", tmp_path / "nowhere"), 3)
    assert "--max_new_tokens 0 has to be 1 or more" in check_line(
        command("temperature", finished, "--max_new_tokens", 0), 2
    )
    run = shutil.copytree(finished, tmp_path / "moved")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["path"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    answer = command("temperature", run, "--max_new_tokens", 1)
    assert answer.code == 0
    assert "not calibrated: no prepared corpus" in answer.out


@needs_browser
@pytest.mark.browser
def test_a_browser_opens_the_page_without_a_complaint(
    finished: Path, tmp_path: Path, command: Command
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    command("temperature", run, "--max_new_tokens", 3)
    assert open_offline(run / "temperature.html", tmp_path / "page.png") == []
