"""The page of one training step: complete, without foreign scripts, and nothing in it is markup."""

from pathlib import Path
from typing import Any

import pytest

from lmtemplate.optimizers import MuonAdamW
from lmtemplate.study.understand.story import attention_data, write_story
from tests.browser import needs_browser, open_offline
from tests.study.show.test_page import EVIL, Elements
from tests.study.understand.test_forward import trained
from tests.study.understand.test_one_step import IDS, Pairs, explained


def story_of(net: Any, run: Path, token: str = "a") -> str:
    """The page of a step whose tokens read like this."""
    found = explained(net, MuonAdamW(), steps=1)
    found["tokens"] = [f"{token}{n}" for n, _ in enumerate(IDS)]
    facts = {"run": str(run), "step": 7, "optimizer": "lmtemplate.optimizers.MuonAdamW"}
    return write_story({**found, **facts, "notes": [token]}, run).read_text(encoding="utf-8")


def test_every_head_of_every_block_can_be_looked_at() -> None:
    data = attention_data(explained(trained("GPT"), MuonAdamW(), steps=1))
    assert data["blocks"] == ["blocks.0.attention", "blocks.1.attention"]
    assert len(data["tokens"]) == len(IDS) - 1
    for weights in data["weights"]:
        assert len(weights) == 4
        assert [sum(row) for row in weights[0]] == pytest.approx([1.0] * len(weights[0]), abs=1e-3)
    assert attention_data(explained(Pairs().eval(), MuonAdamW(), steps=1)) == {}


@pytest.mark.slow
def test_text_of_a_run_is_never_markup(tmp_path: Path) -> None:
    harmless, evil = (Elements(story_of(trained("GPT"), tmp_path, of)) for of in ("a", EVIL))
    plain, other = ([t for t, _ in page.found if t != "wbr"] for page in (harmless, evil))
    assert plain == other  # a long name may end a line, with <wbr>


@needs_browser
@pytest.mark.browser
@pytest.mark.parametrize("net", ["GPT", "one's own"])
def test_a_browser_opens_the_story_without_a_complaint(tmp_path: Path, net: str) -> None:
    story_of(trained("GPT") if net == "GPT" else Pairs().eval(), tmp_path)
    assert open_offline(tmp_path / "explain.html", tmp_path / "page.png") == []
    assert (tmp_path / "page.png").stat().st_size > 10_000
