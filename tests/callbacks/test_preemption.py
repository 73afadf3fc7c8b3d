"""A signal -> the end of the step, a checkpoint, an exit code; then the run goes on unchanged."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from lmtemplate.callbacks.preemption import SAME_SECONDS, Preemption
from lmtemplate.checkpoint import files as checkpoint
from lmtemplate.errors import SIGNALS, DiskError
from lmtemplate.module import LitLanguageModel
from tests.conftest import TINY, Command
from tests.runs import different, load, train

ROOT = Path(__file__).parents[2]
FLAGS = ["--model.net.dropout=0.1", "--trainer.log_every_n_steps=5"]

Send = Callable[..., None]


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Send:
    """Send a signal in the middle of a step, at a micro-batch of it, or in its validation."""

    def at(number: int, step: int, hook: str = "training_step", batch: int | None = None) -> None:
        original = getattr(LitLanguageModel, hook)

        def signalled(self: LitLanguageModel, *words: Any) -> Any:
            begun = self.global_step + (hook == "training_step")
            here = batch is None or words[1] == batch
            if begun == step and here and not self.trainer.sanity_checking:
                signal.raise_signal(number)
                monkeypatch.setattr(LitLanguageModel, hook, original)
            return original(self, *words)

        monkeypatch.setattr(LitLanguageModel, hook, signalled)

    return at


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("signals") / "whole", corpus, *FLAGS)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "SIGTERM" else pytest.mark.slow) for name in SIGNALS],
)
def test_each_signal_has_its_exit_code_and_loses_no_step(
    fit: Command, send: Send, tmp_path: Path, finished: Path, name: str
) -> None:
    send(signal.Signals[name], step=7)
    shown = fit(tmp_path / "run")
    assert shown.code == SIGNALS[name]
    assert f"stopped  interrupted by {name} at step 7" in shown.out
    assert f"make resume RUN={tmp_path / 'run'}" in shown.out
    assert load(tmp_path / "run", 7)["global_step"] == 7
    assert fit(tmp_path / "run", "--resume=auto").code == 0
    assert different(tmp_path / "run", finished, 12) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "hook"), [(1, "training_step"), (4, "validation_step"), (12, "validation_step")]
)
def test_at_any_moment_the_resumed_run_is_the_uninterrupted_one(
    fit: Command, send: Send, tmp_path: Path, whole: Path, step: int, hook: str
) -> None:
    send(signal.SIGTERM, step, hook)
    code = fit(tmp_path / "run", *FLAGS).code
    assert code == (0 if step == 12 else 143)  # the run was over when it came
    fit(tmp_path / "run", *FLAGS, "--resume=auto")
    assert different(tmp_path / "run", whole, 12) == []


@pytest.mark.slow
def test_a_signal_before_step_1_has_its_exit_code_and_leaves_no_checkpoint(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = LitLanguageModel.validation_step

    def validation_step(self: LitLanguageModel, *words: Any) -> None:
        assert self.trainer.sanity_checking
        signal.raise_signal(signal.SIGTERM)
        step_of(self, *words)

    monkeypatch.setattr(LitLanguageModel, "validation_step", validation_step)
    assert fit(tmp_path / "run", *FLAGS).code == 143
    assert not list((tmp_path / "run").rglob("step-000000001.ckpt"))


@pytest.mark.slow
def test_a_signal_ends_a_run_that_would_go_back(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = LitLanguageModel.training_step

    def training_step(self: LitLanguageModel, *words: Any) -> Any:
        if self.global_step == 8:
            signal.raise_signal(signal.SIGTERM)
        return step_of(self, *words) * (math.nan if self.global_step >= 5 else 1.0)

    monkeypatch.setattr(LitLanguageModel, "training_step", training_step)
    shown = fit(tmp_path / "run", *FLAGS, "--trainer.log_every_n_steps=1")
    assert shown.code == 143
    assert "going back" not in shown.out


def test_lightning_s_loop_still_waits_where_we_take_the_wait_out() -> None:
    """The attribute is private: assigning to another name would silently do nothing."""
    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)
    assert "_broadcast_sigterm_tensor" in _TrainingEpochLoop.advance.__code__.co_names


def test_a_loop_without_that_wait_is_an_error() -> None:
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace()))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(AttributeError, match="_broadcast_sigterm_tensor"):
            Preemption().on_train_start(trainer, None)  # type: ignore[arg-type]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_between_micro_batches_the_step_is_finished_first(
    fit: Command, send: Send, corpus: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--trainer.accumulate_grad_batches=3"]
    whole = train(tmp_path / "whole", corpus, *flags)
    send(signal.SIGTERM, step=6, batch=5 * 3 + 1)
    assert fit(tmp_path / "run", *flags).code == 143
    assert load(tmp_path / "run", 6)["global_step"] == 6
    fit(tmp_path / "run", *flags, "--resume=auto")
    assert different(tmp_path / "run", whole, 12) == []


@pytest.mark.slow
def test_the_handlers_of_before_are_there_again(fit: Command, send: Send, tmp_path: Path) -> None:
    before = [signal.getsignal(signal.Signals[name]) for name in SIGNALS]
    send(signal.SIGTERM, step=2)
    fit(tmp_path / "run")
    fit(tmp_path / "other")
    assert [signal.getsignal(signal.Signals[name]) for name in SIGNALS] == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_signal_that_was_to_be_ignored_stays_so(
    fit: Command, send: Send, tmp_path: Path, name: str
) -> None:
    before = signal.signal(signal.Signals[name], signal.SIG_IGN)  # as nohup does
    send(signal.Signals[name], step=7)
    try:
        assert fit(tmp_path / "run", *FLAGS).code == 0
    finally:
        signal.signal(signal.Signals[name], before)


@pytest.mark.slow
def test_a_signal_whose_checkpoint_cannot_be_saved_is_no_clean_end(
    fit: Command, send: Send, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskError("no space left")

    send(signal.SIGTERM, step=7)
    monkeypatch.setattr(checkpoint, "write", full)
    ended = fit(tmp_path / "run", *FLAGS, "--trainer.val_check_interval=12")
    assert ended.code == 5
    assert "step 7 is not saved: no space left" in ended.error


@pytest.mark.slow
def test_null_leaves_signals_alone(fit: Command, tmp_path: Path) -> None:
    handlers = []
    before = signal.getsignal(signal.SIGUSR1)
    assert fit(tmp_path / "run", "--signals=null").code == 0
    handlers.append(signal.getsignal(signal.SIGUSR1))
    assert handlers == [before]


HANGS = """
import sys, time
from lmtemplate.__main__ import main
from lmtemplate.module import LitLanguageModel
step_of = LitLanguageModel.training_step
def training_step(self, *words):
    if self.global_step == 5:
        print("hanging", flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            sum(range(1000))
    return step_of(self, *words)
LitLanguageModel.training_step = training_step
main()
"""


@pytest.fixture
def hanging(corpus: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A run that hangs in its 6th step, whatever comes."""

    def start(*flags: str) -> subprocess.Popen[str]:
        words = ["fit", "--data.path", str(corpus), *TINY, "--run_dir", str(tmp_path / "run")]
        child = subprocess.Popen(
            [sys.executable, "-c", HANGS, *words, *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        while "hanging" not in child.stdout.readline():
            assert child.poll() is None
        return child

    return start


@pytest.mark.slow
def test_the_workers_of_a_data_loader_do_not_count_as_second_signals(
    corpus: Path, tmp_path: Path
) -> None:
    flags = ["--data.num_workers=2", "--trainer.max_steps=100000", "--trainer.val_check_interval=9"]
    words = ["fit", "--data.path", corpus, *TINY, "--run_dir", tmp_path / "run", *flags]
    child = subprocess.Popen(
        [sys.executable, "-m", "lmtemplate", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    while "step 18/" not in child.stdout.readline():
        assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "stopped  interrupted by SIGINT at step" in out


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(
    hanging: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    child = hanging()
    child.send_signal(signal.SIGINT)
    time.sleep(2 * SAME_SECONDS)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == 130
    assert load(tmp_path / "run", 4)["global_step"] == 4
