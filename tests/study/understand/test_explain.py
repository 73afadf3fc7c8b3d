"""`lmtemplate explain RUN`: one step of a real run, as text, as JSON and as a page."""

import json
import math
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtemplate.checkpoint.files import read, write
from lmtemplate.errors import CheckpointError
from lmtemplate.models.base import LanguageModel
from lmtemplate.optimizers import recipe_of
from lmtemplate.plug import load_named
from lmtemplate.study.understand.explain import (
    PEAK_RATE,
    build_optimizer,
    newest_that_steps,
    step_of_run,
)
from tests.conftest import Command
from tests.runs import check_line, contents
from tests.study.understand.test_forward import trained
from tests.study.understand.test_one_step import built

NUMBERS = (
    "tokens stages predictions loss perplexity logit_gradient gradient_norms gradient_norm updates "
    "after differences worked_example notes"
)


@pytest.fixture
def run(tmp_path: Path, finished: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def changed(run: Path) -> Callable[..., Path]:
    """The run, whose checkpoints have been changed by a function of their content."""

    def call(change: Callable[[Any], None], *steps: int) -> Path:
        for step in steps:
            path = run / f"checkpoints/step-{step:09d}.ckpt"
            state = read(path)
            change(state)
            write(state, path)
        return run

    return call


def test_json_has_all_parts_and_its_numbers_are_those_of_torch(command: Command, run: Path) -> None:
    before = contents(run)
    shown = command("explain", run, "--text", "the cat is", "--json")
    found = json.loads(shown.out)
    assert {*NUMBERS.split()} <= {*found}
    assert found["largest_difference"] < 1e-5
    assert "".join(found["tokens"]) == found["text"] == "the cat is"
    assert found["step"] == 12
    assert contents(run) == before


def test_moments_and_rate_are_those_that_the_run_saved(run: Path) -> None:
    found = step_of_run(run, "the dog is", ())
    state = torch.load(run / "checkpoints/step-000000012.ckpt", weights_only=True)
    saved = state["optimizer_states"][0]
    row = next(row for row in found["updates"] if "first_before" in row["values"])
    moments = [one["exp_avg"] for one in saved["state"].values() if "exp_avg" in one]
    alike = [moment for moment in moments if moment.shape == row["shape"]]
    weights = state["state_dict"][f"net.{row['parameter']}"]
    assert row["values"]["weight"] == weights[row["place"]].item()
    assert row["values"]["first_before"] in {one[row["place"]].item() for one in alike}
    assert row["settings"]["t"] == 13
    assert row["settings"]["lr"] in {group["lr"] for group in saved["param_groups"]}


RECIPES: list[tuple[str, dict[str, float]]] = [
    ("lmtemplate.optimizers.MuonAdamW", {"weight_decay": 0.1}),
    ("lmtemplate.optimizers.AdamW", {"lr": 0.01}),
    ("lmtemplate.optimizers.SGD", {}),
    ("torch.optim.NAdam", {}),
]


@pytest.mark.parametrize(("name", "settings"), RECIPES, ids=[name for name, _ in RECIPES])
def test_the_optimizer_goes_on_where_the_saved_one_stood(
    name: str, settings: dict[str, float]
) -> None:
    net = trained("GPT")
    kind = load_named(name, "", ["torch"])
    made = kind(**settings) if name.startswith("lmtemplate") else partial(kind, **settings)
    optimizer = built(recipe_of(made), net)

    def step(net: LanguageModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()

    step(net, optimizer, 1)
    described = {"class_path": name, "init_args": settings}
    saved = {
        "config": {"model": {"optimizer": described}},
        "optimizer_states": [deepcopy(optimizer.state_dict())],
    }
    other = deepcopy(net)
    step(other, build_optimizer(saved, other, ()), 2)
    step(net, optimizer, 2)
    for one, same in zip(other.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one, same)


def test_without_a_text_the_run_s_validation_text_is_taken(run: Path, corpus: Path) -> None:
    found = step_of_run(run, "", ())
    assert len(found["predictions"]) == 12
    assert found["text"]


def test_the_newest_checkpoint_with_a_rate_is_taken(changed: Callable[..., Path]) -> None:
    def end(state: Any) -> None:
        for group in state["optimizer_states"][0]["param_groups"]:
            group["lr"] = 0.0

    run = changed(end, 12)
    assert newest_that_steps(run)[1].name == "step-000000008.ckpt"
    note = "The rate of step-000000012.ckpt is 0, so the step is made from step-000000008.ckpt."
    assert any(said == note for said in step_of_run(run, "the cat", ())["notes"])
    state, path = newest_that_steps(changed(end, 8))
    assert path.name == "step-000000012.ckpt"
    groups = state["optimizer_states"][0]["param_groups"]
    assert all(group["lr"] == group["initial_lr"] > 0 for group in groups)
    assert state[PEAK_RATE]  # and the page says so


def test_the_text_walks_through_all_parts_and_the_page_is_the_one_new_file(
    command: Command, run: Path
) -> None:
    before = contents(run)
    shown = command("explain", run, "--text", "the cat is")
    assert shown.code == 0
    for part in ("Tokens", "Forward", "Predictions", "Gradient", "Update", "After the step"):
        assert part in shown.out
    after = contents(run)
    assert after.pop("explain.html")
    assert after == before


MISTAKES = {
    "too long": (["--text", "a text of more than 17 bytes"], 2, "at most 16"),
    "one token": (["--text", "a"], 2, "two or more"),
}


@pytest.mark.parametrize(("words", "code", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_text_that_does_not_fit_is_one_line(
    command: Command, finished: Path, words: list[str], code: int, says: str
) -> None:
    assert says in check_line(command("explain", finished, *words), code)


def test_no_run_is_one_line(command: Command, tmp_path: Path) -> None:
    assert "no run" in check_line(command("explain", tmp_path / "none"), 3)


def test_classes_of_other_packages_need_to_be_allowed(
    command: Command, changed: Callable[..., Path]
) -> None:
    def rename(state: Any) -> None:
        state["config"]["model"]["optimizer"]["class_path"] = "mine.Fast"

    run = changed(rename, 12)
    assert "--allow mine" in check_line(command("explain", run, "--text", "the cat"), 2)


def test_a_checkpoint_of_weights_alone_makes_no_step(changed: Callable[..., Path]) -> None:
    def strip(state: Any) -> None:
        del state["optimizer_states"]

    with pytest.raises(CheckpointError, match="no state of one optimizer"):
        newest_that_steps(changed(strip, 12))


def test_without_its_corpus_a_run_needs_a_text(
    command: Command, run: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(corpus), str(run / "gone")))
    assert "--text" in check_line(command("explain", run), 8)
    assert command("explain", run, "--text", "the cat", "--json").code == 0


HOSTILE: dict[str, Any] = {
    "a function": {"class_path": "torch.hub.load"},
    "a module that acts when imported": {"class_path": "torch.utils.model_dump.__main__.X"},
    "another package": {"class_path": "os.system"},
    "through ours": {"class_path": "lmtemplate.checkpoint.files.os.system"},
    "no text": {"class_path": None},
    "settings": {"init_args": {"lr": "fast"}},
    "no settings": {"init_args": 3},
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_a_checkpoint_cannot_name_an_optimizer_of_its_choice(
    command: Command, changed: Callable[..., Path], said: dict[str, Any]
) -> None:
    def rename(state: Any) -> None:
        state["config"]["model"]["optimizer"].update(said)

    run = changed(rename, 12)
    check_line(command("explain", run, "--text", "the cat"), 2, 3)


STATES: dict[str, Callable[[Any], Any]] = {
    "betas in words": lambda state: state["param_groups"][0].update(betas="xx"),
    "no eps": lambda state: state["param_groups"][0].pop("eps"),
    "a short moment": lambda state: state["state"][0].update(exp_avg=torch.zeros(3)),
    "a step that is none": lambda state: state["state"][0].update(step=torch.tensor(math.nan)),
    "a step far below 0": lambda state: state["state"][0].update(step=torch.tensor(-(2.0**31))),
    "a rate of three": lambda state: state["param_groups"][1].update(lr=torch.ones(3)),
    "a rate beyond all": lambda state: state["param_groups"][1].update(lr=10**400),
    "half of its moments": lambda state: state["state"][0].pop("exp_avg"),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_that_no_step_can_be_made_with_is_one_line(
    command: Command, changed: Callable[..., Path], change: Callable[[Any], Any]
) -> None:
    run = changed(lambda state: change(state["optimizer_states"][0]), 12)
    check_line(command("explain", run, "--text", "the cat"), 3)


def test_a_rate_that_is_a_tensor_is_a_number(
    command: Command, changed: Callable[..., Path]
) -> None:
    def change(state: Any) -> None:
        for group in state["optimizer_states"][0]["param_groups"]:
            group["lr"] = torch.tensor(group["lr"])

    assert command("explain", changed(change, 12), "--text", "the cat").code == 0


@pytest.mark.parametrize(
    "states", [[], [{"param_groups": 3}], [{"param_groups": torch.ones(2, 3)}], "x"], ids=str
)
def test_a_state_that_is_none_is_one_line(
    command: Command, changed: Callable[..., Path], states: Any
) -> None:
    run = changed(lambda state: state.update(optimizer_states=states), 12)
    check_line(command("explain", run, "--text", "the cat"), 3)
