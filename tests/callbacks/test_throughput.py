"""Clock and FLOPs -> tokens per second and MFU, validation and saving left out."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmtemplate.callbacks import throughput
from lmtemplate.checkpoint import files
from lmtemplate.models import GPT
from lmtemplate.module import LitLanguageModel
from tests.runs import curve, events, train

pytestmark = pytest.mark.slow

TOKENS = 4 * 16  # of one micro-batch
FLOPS_PER_TOKEN = GPT(257, 16, n_layer=2, n_head=2, n_embd=32).flops_per_token()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Each micro-batch takes 1 s, the first 50 s more, each validation batch 100 s, saving 1000."""
    fake = SimpleNamespace(now=0.0, batches=0)
    fake.perf_counter = lambda: fake.now
    monkeypatch.setattr(throughput, "time", fake)

    def slow(owner: Any, name: str, seconds: Callable[[], float]) -> None:
        original = getattr(owner, name)

        def wrapped(*words: Any, **named: Any) -> Any:
            fake.now += seconds()
            return original(*words, **named)

        monkeypatch.setattr(owner, name, wrapped)

    def training() -> float:
        fake.batches += 1
        return 51.0 if fake.batches == 1 else 1.0

    slow(LitLanguageModel, "training_step", training)
    slow(LitLanguageModel, "validation_step", lambda: 100.0)
    slow(files, "write", lambda: 1000.0)
    return fake


def test_tokens_per_second_leave_out_validation_saving_and_the_first_step(
    corpus: Path, tmp_path: Path, clock: SimpleNamespace
) -> None:
    run = train(tmp_path / "run", corpus)
    points = curve(run, "speed/tokens_per_second")
    assert points == [(step, TOKENS) for step in (2, 4, 6, 8, 10, 12)]
    assert clock.now > 4000


def test_all_micro_batches_of_a_step_count(
    corpus: Path, tmp_path: Path, clock: SimpleNamespace
) -> None:
    run = train(tmp_path / "run", corpus, "--trainer.accumulate_grad_batches=3")
    assert {value for _, value in curve(run, "speed/tokens_per_second")} == {TOKENS}


def test_a_checkpoint_on_the_timer_is_left_out_too(
    corpus: Path, tmp_path: Path, clock: SimpleNamespace
) -> None:
    run = train(tmp_path / "run", corpus, "--checkpoint.every_minutes=1e-9")
    assert {value for _, value in curve(run, "speed/tokens_per_second")} == {TOKENS}


def test_the_summary_counts_the_seconds_of_training_over_all_restarts(
    corpus: Path, tmp_path: Path, clock: SimpleNamespace
) -> None:
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=6")
    train(run, corpus, "--resume=must", "--trainer.max_steps=12")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["training_seconds"] == 5 + 5  # the first step of each start is left out
    assert summary["tokens_per_second"] == TOKENS
    assert summary["tokens"] == 12 * TOKENS


def test_mfu_is_the_share_of_the_peak(corpus: Path, tmp_path: Path, clock: SimpleNamespace) -> None:
    run = train(tmp_path / "run", corpus, "--throughput.peak_tflops=1e-3")
    expected = TOKENS * FLOPS_PER_TOKEN / 1e9
    assert 0 < expected < 1
    points = curve(run, "speed/mfu")
    assert [step for step, _ in points] == [2, 4, 6, 8, 10, 12]
    assert [value for _, value in points] == pytest.approx([expected] * 6, rel=1e-6)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["mfu"] == pytest.approx(expected)


def test_without_a_known_peak_there_is_no_mfu(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=4")
    assert "speed/mfu" not in events(run).Tags()["scalars"]


def test_null_turns_it_off(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--throughput=null", "--trainer.max_steps=4")
    assert "speed/tokens_per_second" not in events(run).Tags()["scalars"]
    assert json.loads((run / "summary.json").read_text())["tokens_per_second"] is None
