"""A run's snapshots before and after: on a language in which it is known what there is to learn."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmtemplate.__main__ import run as run_words
from lmtemplate.data.tokenizer import CharTokenizer
from lmtemplate.study.understand.before_after import film_of, word_probability
from lmtemplate.study.understand.film import (
    film_text,
    write_film,
)
from tests.browser import needs_browser, open_offline
from tests.conftest import Command
from tests.runs import check_line, contents
from tests.study.understand.test_one_step import Pairs

CONFIG = Path(__file__).parents[3] / "configs/quickstart.yaml"


def test_one_prompt_through_all_snapshots(command: Command, finished: Path) -> None:
    before = contents(finished)
    shown = command("explain", finished, "--before_after", "--text", "the cat", "--json")
    found = json.loads(shown.out)
    assert [*found["prompts"]] == ["the cat"]
    names = [shot["name"] for shot in found["snapshots"]]
    assert names[0] == "untrained"
    assert sum(name.startswith("best, step ") for name in names) == 1
    assert any(name.endswith("step 12") for name in names)  # the newest, after the milestones
    untrained = found["snapshots"][0]["prompts"]["the cat"]
    assert untrained["entropy"] == pytest.approx(math.log(257), abs=1e-3)  # bytes, end of text
    assert untrained["top"][0][1] == pytest.approx(1 / 257, rel=1e-3)
    assert found["largest_difference"] < 1e-5
    notes = " ".join(found["notes"])
    assert "all 257 tokens are equally likely" in notes
    assert "Fewer than half of them come out" in notes  # after 12 steps, on bytes
    assert contents(finished) == before


def test_a_word_s_probability_is_the_product_over_its_tokens() -> None:
    net, letters = Pairs().eval(), CharTokenizer("abcd")
    rows = net.table.weight.detach().softmax(-1)
    expected = float(rows[1, 2] * rows[2, 3])  # b -> c -> d
    assert word_probability(net, letters, "ab", "cd") == pytest.approx(expected)
    assert word_probability(net, letters, "ab", "") is None
    assert word_probability(net, letters, "ab", "c" * 16) is None  # longer than the block


def test_a_run_without_milestones_has_nothing_to_compare(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints/milestones")
    assert "one snapshot" in check_line(command("explain", run, "--before_after"), 3)


def test_a_prompt_longer_than_the_block_is_one_line(command: Command, finished: Path) -> None:
    words = ["--before_after", "--text", "a text of more than 16 bytes"]
    assert "at most 16" in check_line(command("explain", finished, *words), 2)


@pytest.mark.slow
def test_prompts_of_the_lesson_that_are_too_long_are_left_out(finished: Path) -> None:
    prompts = film_of(finished, "", ())["prompts"]
    assert "you" in prompts
    assert all(len(prompt) <= 16 for prompt in prompts)


@pytest.fixture(scope="module")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned the grammar; some words of its vocabulary are two tokens."""
    folder = tmp_path_factory.mktemp("grammar")
    data, run = folder / "data", folder / "run"
    words = ["--input", "grammar:3000", "--output", str(data), "--vocab_size", "512"]
    run_words(["prepare", *words])
    sizes = ["--model.net.n_layer=2", "--model.net.n_head=2", "--model.net.n_embd=64"]
    sizes += ["--trainer.max_steps=300", "--trainer.val_check_interval=300", "--report=false"]
    places = ["--config", str(CONFIG), "--data.path", str(data), "--run_dir", str(run)]
    run_words(["fit", *places, *sizes])
    return run


@pytest.fixture(scope="module")
def film(grammar: Path) -> dict[str, Any]:
    return film_of(grammar, "", ())


@pytest.mark.slow
def test_agreement_and_idioms_come_out_on_the_grammar(film: dict[str, Any]) -> None:
    first, *_, last = (shot["prompts"] for shot in film["snapshots"])
    right = {
        "you": " are",
        "the cat near the dogs": " is",  # the nearest noun misleads
        "once upon a time": " there",
        "the quick brown fox": " jumps",
    }
    for prompt, word in right.items():
        assert first[prompt]["words"][word] < 0.01
        assert last[prompt]["words"][word] > 0.6
        assert last[prompt]["top"][0][0] == word
        assert last[prompt]["entropy"] < 1 < first[prompt]["entropy"]
    assert last["the cat near the dogs"]["words"][" are"] < 0.3


@pytest.mark.slow
def test_analogies_and_neighbours_come_out_on_the_grammar(film: dict[str, Any]) -> None:
    first, *_, last = film["snapshots"]
    ranks = {row["analogy"]: row["rank"] for row in last["analogies"]}
    assert ranks["king - man + woman"] == 1
    people = [rank for name, rank in ranks.items() if "cat" not in name]
    assert sum(rank == 1 for rank in people) >= 3
    assert sum(row["rank"] == 1 for row in first["analogies"]) <= 1
    near = {word for word, _ in last["neighbours"]["cat"][:3]}
    assert near <= {"dog", "horse", "cow", "bird", "duck", "goat", "pig"}


@pytest.mark.slow
def test_samples_go_from_noise_to_the_language(film: dict[str, Any]) -> None:
    first, *_, last = (shot["prompts"] for shot in film["snapshots"])
    noise = [look["sample"] for look in first.values()]
    assert len({*noise}) == len(noise)  # no text twice, though the net has not read the prompts
    assert last["once upon a time"]["sample"].startswith(" there was a ")


@pytest.mark.slow
def test_the_text_says_what_a_word_is_and_how_many_analogies_come_out(
    film: dict[str, Any],
) -> None:
    text = film_text(film)
    assert "the mean of its tokens" in text
    assert "king - man + woman" in text
    assert "'the cat near the dogs'" in text


@needs_browser
@pytest.mark.browser
def test_a_browser_plays_the_film_without_a_complaint(film: dict[str, Any], tmp_path: Path) -> None:
    page = write_film(film, tmp_path)
    assert page.name == "before_after.html"
    assert open_offline(page, tmp_path / "page.png") == []
