"""A checkpoint that says what it should not, or is no file -> one line and an exit code."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import Command
from tests.faults.conftest import LAST, READERS, vouch_for
from tests.runs import check_line

pytestmark = pytest.mark.slow


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a checkpoint says, in plain types."""
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    vouch_for(path)


def describe_net(run: Path, **said: Any) -> None:
    """Let the run's last checkpoint say this of its net."""

    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["config"]["model"]["net"].update(said)

    rewrite(run / LAST, change)


CLASSES: list[Any] = [
    "os.system",
    "canary_module.Thing",
    "lmtemplate.checkpoint.files.os.system",
    "",
    None,
]


@pytest.mark.parametrize("class_path", CLASSES, ids=str)
def test_a_checkpoint_cannot_name_a_class_of_its_choice(
    ask: Command, run: Path, class_path: Any
) -> None:
    describe_net(run, class_path=class_path)
    check_line(ask("generate", run), 2, 3)


SETTINGS: list[Any] = [
    ["a"],
    {"n_layer": "two"},
    {"n_embd": 2**40, "n_head": 1},
    {"canary": 1},
    None,
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_checkpoint_cannot_crash_the_net_it_describes(
    ask: Command, run: Path, settings: Any
) -> None:
    describe_net(run, init_args=settings)
    check_line(ask("generate", run), 2, 3)


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "no config": {"config": {}},
    "another length": {"length": {"limit": "max_seconds", "value": "x", "steps": 1}},
    "a length without steps": {"length": {"limit": "max_seconds", "value": 1.0}},
    "a length of no number": {"length": {"limit": "trainer.max_steps", "steps": math.nan}},
    "a tokenizer of much": {"tokenizer": "[" * 100_000},
    "no size": {"vocab_size": -1},
    "another size": {"block_size": 2**62},
    "no context": {"block_size": 0},
    "a tensor among words": {"environment": {"python": torch.zeros(3)}},
}


@pytest.mark.parametrize("reader", ["generate", "resume"])
@pytest.mark.parametrize("said", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_what_a_checkpoint_says_of_its_run_is_not_relied_on(
    ask: Command, run: Path, said: dict[str, Any], reader: str
) -> None:
    rewrite(run / LAST, lambda checkpoint: checkpoint.update(said))
    answer = ask(*READERS[reader](run))
    is_harmless = said.get("length", {}).get("steps") == 1
    check_line(answer, *([0] if is_harmless else []), 2, 3, 8)


NEEDED = {
    "generate": ["config", "tokenizer", "global_step", "vocab_size"],
    "validate": ["tokenizer", "global_step"],
    "resume": ["config", "tokenizer", "global_step", "vocab_size"],
    "init_from": ["tokenizer", "global_step"],
}


@pytest.mark.parametrize(
    ("reader", "key"), [(reader, key) for reader, keys in NEEDED.items() for key in keys]
)
def test_a_checkpoint_that_says_less_than_ours_is_refused(
    ask: Command, run: Path, key: str, reader: str
) -> None:
    rewrite(run / LAST, lambda checkpoint: checkpoint.pop(key))
    check_line(ask(*READERS[reader](run)), 3)


REMOTE = [
    "https://127.0.0.1:9/canary.ckpt",
    "file:///etc/passwd",
    "a\0b",
    "/dev/zero",
    ".",
]


@pytest.mark.parametrize("address", REMOTE, ids=[address[:20] for address in REMOTE])
def test_only_a_file_is_a_checkpoint(ask: Command, run: Path, address: str) -> None:
    check_line(ask("generate", run, f"--checkpoint={address}"), 2, 3)
    words = READERS["init_from"](run)
    words[words.index("--init_from") + 1] = address
    check_line(ask(*words), 2, 3)
    assert not run.with_name("new").exists()


STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a number for a callback": lambda saved: saved["callbacks"].update(Throughput=1),
    "a text for a callback": lambda saved: saved["callbacks"].update(Checkpoint="nan"),
    "a list for the data": lambda saved: saved.update(TokenData=[1, "a"]),
    "moments of no kind": lambda saved: saved["optimizer_states"][0]["state"].update({0: 1.5}),
    "moments that are too short": lambda saved: saved["optimizer_states"][0]["state"][0].update(
        exp_avg=torch.zeros(3)
    ),
    "a moment that asks for a gradient": lambda saved: saved["optimizer_states"][0]["state"][0][
        "exp_avg"
    ].requires_grad_(),
    "a moment without content": lambda saved: saved["optimizer_states"][0]["state"][0].update(
        exp_avg=saved["optimizer_states"][0]["state"][0]["exp_avg"].to("meta")
    ),
    "a moment that is missing": lambda saved: saved["optimizer_states"][0]["state"][0].pop(
        "exp_avg_sq"
    ),
    "rates of moments in words": lambda saved: saved["optimizer_states"][0]["param_groups"][
        0
    ].update(betas="xy"),
    "random states in words": lambda saved: saved["random_states"][0].update(numpy="x"),
    "random states of another generator": lambda saved: saved["random_states"][0].update(
        numpy=("PCG64", *saved["random_states"][0]["numpy"][1:])
    ),
    "a place outside of NumPy's keys": lambda saved: saved["random_states"][0].update(
        numpy=(*saved["random_states"][0]["numpy"][:2], 10**9, 0, 0.0)
    ),
    "a Gaussian number in words": lambda saved: saved["random_states"][0].update(
        python=(*saved["random_states"][0]["python"][:2], "x")
    ),
    "a tensor for the data": lambda saved: saved.update(TokenData=torch.ones(3)),
    "a step below 0": lambda saved: saved.update(global_step=-5),
    "a step that is no number": lambda saved: saved.update(global_step=True),
    "the step of another file": lambda saved: saved.update(global_step=saved["global_step"] + 1),
    "seconds without end": lambda saved: saved["callbacks"]["RunEnd"].update(seconds=math.inf),
    "seconds of no kind": lambda saved: saved["callbacks"]["Throughput"].update(seconds=math.nan),
    "more data than there is": lambda saved: saved["TokenData"].update(sequences=10**18),
    "a schedule's step in words": lambda saved: saved["lr_schedulers"][0].update(last_epoch="x"),
    "a best loss of no kind": lambda saved: saved["callbacks"]["Checkpoint"].update(best=5),
    "no random states": lambda saved: saved.pop("random_states"),
    "no optimizer": lambda saved: saved.pop("optimizer_states"),
    "no word of its length, and none of its model": lambda saved: (
        saved.pop("length"),
        saved["config"].pop("model"),
    ),
    "a best loss below all": lambda saved: saved["callbacks"]["Checkpoint"].update(
        best=(-math.inf, 4)
    ),
    "a value in words": lambda saved: saved["latest"].update({"val/loss": "x"}),
    "steps of a guard in words": lambda saved: saved["callbacks"]["NonFiniteGuard"].update(
        norms=[[1.0, 2.0]]
    ),
    "a count in words": lambda saved: saved["callbacks"]["early_stopping"].update(
        stopped_epoch="x", wait_count="x"
    ),
    "a best score that has no order": lambda saved: saved["callbacks"]["early_stopping"].update(
        best_score=torch.ones((), dtype=torch.complex64)
    ),
    "a method of its schedule": lambda saved: saved["lr_schedulers"][0].update(state_dict=5),
    "a best score of two": lambda saved: saved["callbacks"]["early_stopping"].update(
        best_score=torch.zeros(2)
    ),
    "a best score without a tensor": lambda saved: saved["callbacks"]["early_stopping"].update(
        best_score=None
    ),
}


@pytest.mark.parametrize("name", ["\ud800", 5])
def test_a_group_keeps_the_name_that_the_optimizer_gives_it(
    ask: Command, run: Path, name: object
) -> None:
    """It becomes the name of a curve."""

    def change(saved: dict[str, Any]) -> None:
        saved["optimizer_states"][0]["param_groups"][-1]["name"] = name

    rewrite(run / LAST, change)
    words = ["--config", run / "config.yaml", "--run_dir", run, "--resume", "must"]
    assert ask("fit", *words, "--trainer.max_steps=5", "--tensorboard=true").code == 0


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_of_no_kind_is_the_fault_of_its_checkpoint(
    ask: Command, run: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    rewrite(run / LAST, change)
    words = ["--config", run / "config.yaml", "--run_dir", run, "--resume", "must"]
    check_line(ask("fit", *words, "--trainer.max_steps=6"), 3)
