"""A run -> the card before it, the card after it, and summary.json."""

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from lmtemplate import run_length as length
from lmtemplate.callbacks.run_summary import card
from lmtemplate.models import GPT
from lmtemplate.module import LitLanguageModel
from tests.conftest import Command
from tests.runs import curve, load


def test_the_rows_of_a_card_are_aligned() -> None:
    lines = card("title", {"a": "x", "bcd": "y"}).splitlines()
    assert lines == ["", "title", "  a        x", "  bcd      y"]


@pytest.fixture
def shown(fit: Command, tmp_path: Path) -> Callable[..., str]:
    """What a run prints, spaces joined: `shown(*flags)`."""

    def call(*flags: object) -> str:
        result = fit(tmp_path / "run", *flags)
        assert result.code == 0
        return " ".join(result.out.split())

    return call


def summary(tmp_path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((tmp_path / "run" / "summary.json").read_text())
    return content


NET = GPT(257, 16, n_layer=2, n_head=2, n_embd=32)
PARAMETERS, FLOPS_PER_TOKEN = NET.parameter_count(), NET.flops_per_token()


@pytest.mark.slow
def test_the_first_card_says_what_will_be_trained_on_what(
    shown: Callable[..., str], corpus: Path
) -> None:
    text = shown("--trainer.accumulate_grad_batches=3")
    index = json.loads((corpus / "index.json").read_text())
    tokens = {split: entry["tokens"] for split, entry in index["splits"].items()}
    assert f"model GPT, {PARAMETERS:,} parameters, AdamW, WarmupCosine" in text
    assert f"{tokens['train']:,} training and {tokens['val']:,} validation tokens" in text
    assert "vocabulary 257 (byte)" in text
    assert "12 steps x 192 tokens = 2,304 tokens = 0.1 epochs" in text
    assert f"{2304 / PARAMETERS:.1f} tokens per parameter" in text
    assert f"{FLOPS_PER_TOKEN * 2304:.2e} FLOPs ({FLOPS_PER_TOKEN:,.0f} per token)" in text
    assert re.search(r"device cpu \(.+\), precision [\w-]+, not compiled", text)


@pytest.mark.slow
def test_the_last_card_says_why_where_and_what_to_type(
    shown: Callable[..., str], tmp_path: Path
) -> None:
    text, run = shown(), tmp_path / "run"
    assert "stopped reached trainer.max_steps 12 at step 12" in text
    best = json.loads((run / "checkpoints/best.json").read_text())
    assert f"best val/loss {best['val_loss']:.4f} at step {best['step']}" in text
    assert f"files {run} (curves: make board; weights: {run}/checkpoints)" in text
    assert f"next make sample RUN={run} PROMPT=The (or lmtemplate generate {run})" in text


def test_a_best_that_is_no_better_than_the_beginning_is_called_so_and_can_be_used(
    fit: Command, command: Command, tmp_path: Path
) -> None:
    """By the next command of the card, with the packages and the quotes that it needs."""
    run = tmp_path / "a run's"
    flags = ["--model.optimizer.lr=0", "--trainer.max_steps=4", "--allow", "examples"]
    text = fit(run, *flags).out
    loss = math.log(257)  # the head begins at 0
    expected = f"at step 4; .*; no better than before step 1 \\({loss:.4f}\\)"
    assert re.search(f"best val/loss {loss:.4f} {expected}", " ".join(text.split()))
    (line,) = re.findall(r"^  next +(.*)$", text, re.M)
    make, _, generate = line.removesuffix(")").partition(" (or ")
    words = ["make", "sample", f"RUN={run}", "PROMPT=The", "ARGS=--allow examples"]
    assert shlex.split(make) == words
    assert shlex.split(generate) == ["lmtemplate", "generate", str(run), "--allow", "examples"]
    assert command(*shlex.split(generate)[1:], "--max_new_tokens=2").code == 0


@pytest.mark.slow
def test_the_command_on_the_last_card_works(
    shown: Callable[..., str], command: Command, tmp_path: Path
) -> None:
    shown()
    for more in ([], ["--prompt", "The"]):
        assert command("generate", tmp_path / "run", *more, "--max_new_tokens=2").code == 0


@pytest.mark.slow
def test_a_patience_that_ran_out_is_named(shown: Callable[..., str], tmp_path: Path) -> None:
    flags = ["--model.optimizer.lr=0", "--trainer.val_check_interval=2"]
    text = shown(*flags, "--early_stopping.patience=2")
    assert summary(tmp_path)["stop_reason"] == "early_stopping"
    assert summary(tmp_path)["step"] == 4
    assert re.search(r"stopped .*val/loss did not improve in the last 2 .* at step 4", text)


@pytest.mark.slow
def test_a_patience_that_ran_out_at_the_last_step_is_no_reason(
    shown: Callable[..., str], tmp_path: Path
) -> None:
    flags = ["--model.optimizer.lr=0", "--trainer.val_check_interval=2", "--trainer.max_steps=4"]
    shown(*flags, "--early_stopping.patience=2")
    assert summary(tmp_path)["stop_reason"] == "trainer.max_steps"


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in length.LIMITS if n != "trainer.max_steps"])
def test_the_limit_that_ended_the_run_is_named(
    shown: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    amounts = {"max_epochs": 0.01, "max_flops": 1e8, "tokens_per_parameter": 0.01}
    value = amounts.get(name, 400.0)
    monkeypatch.setattr("lmtemplate.fit.measure_step", lambda *_, **__: 80.0)
    text = shown("--trainer.max_steps=-1", f"--{name}={value}")
    assert summary(tmp_path)["stop_reason"] == name
    assert summary(tmp_path)["step"] == summary(tmp_path)["max_steps"]
    assert f"stopped reached {name} {value:,.10g} at step" in text


@pytest.mark.slow
def test_the_time_that_is_over_is_named(
    shown: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmtemplate.fit.measure_step", lambda *_, **__: 1e-5)
    text = shown("--trainer.max_steps=-1", "--max_seconds=0.2")
    assert summary(tmp_path)["stop_reason"] == "max_seconds"
    assert summary(tmp_path)["step"] < summary(tmp_path)["max_steps"]  # type: ignore[operator]
    assert re.search(r"stopped max_seconds 0\.2 are over at step [\d,]+", text)


@pytest.mark.slow
def test_the_summary_counts_over_all_restarts(
    fit: Command, shown: Callable[..., str], tmp_path: Path
) -> None:
    shown("--trainer.max_steps=4")
    first = summary(tmp_path)
    fit(tmp_path / "run", "--resume=must", "--trainer.max_steps=10")
    last = summary(tmp_path)
    assert (first["step"], last["step"]) == (4, 10)
    assert last["tokens"] == 10 * 4 * 16
    assert last["flops"] == FLOPS_PER_TOKEN * 10 * 4 * 16
    assert last["flops_6nd"] == 6 * PARAMETERS * 10 * 4 * 16
    assert last["parameters"] == PARAMETERS
    assert last["flops_6nd"] == 6 * PARAMETERS * 10 * 4 * 16
    assert last["training_seconds"] > first["training_seconds"]  # type: ignore[operator]


@pytest.mark.slow
def test_the_card_of_a_continued_run_counts_what_was_read_before(
    fit: Command, tmp_path: Path
) -> None:
    fit(tmp_path / "run", "--trainer.max_steps=4")
    flags = ["--resume=auto", "--trainer.max_steps=6", "--data.batch_size=8"]
    tokens = 4 * 4 * 16 + 2 * 8 * 16
    shown = fit(tmp_path / "run", *flags).out
    assert f"4 steps before, then 2 steps x 128 tokens = {tokens} tokens" in shown
    assert summary(tmp_path)["tokens"] == tokens


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_null(
    shown: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(module: LitLanguageModel, *_: object) -> None:
        module.latest["val/loss"] = float("nan")

    monkeypatch.setattr(LitLanguageModel, "on_train_end", broken, raising=False)
    monkeypatch.setattr(LitLanguageModel, "on_train_epoch_end", broken, raising=False)
    shown("--trainer.max_steps=4")
    assert summary(tmp_path)["last_val_loss"] is None


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_can_be_continued(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(module: LitLanguageModel, *_: object) -> None:
        if module.global_step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LitLanguageModel, "on_train_batch_start", interrupt)
        stopped = fit(tmp_path / "run")
    assert stopped.code != 0
    assert "\ninterrupted\n" in stopped.out
    assert summary(tmp_path)["stop_reason"] == "interrupted"
    assert fit(tmp_path / "run", "--resume=must").code == 0
    assert summary(tmp_path)["stop_reason"] == "trainer.max_steps"
    assert load(tmp_path / "run", 12)["global_step"] == 12
    assert [step for step, _ in curve(tmp_path / "run", "val/loss")] == [0, 4, 8, 12]
