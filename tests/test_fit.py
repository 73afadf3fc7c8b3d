"""The verbs: what a run keeps of its config, what is shown, when it is finished."""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmtemplate.checkpoint.compatibility import differences
from lmtemplate.cli import TrainingCLI
from lmtemplate.fit import is_finished, run
from lmtemplate.module import LitLanguageModel
from lmtemplate.record import read_record
from lmtemplate.run_length import RunLength
from tests.conftest import TINY, Command
from tests.runs import curve, load, train

pytestmark = pytest.mark.slow


def test_what_print_config_says_runs_again_and_is_the_same(
    fit: Command, command: Command, tmp_path: Path
) -> None:
    shown = fit(tmp_path / "a", "--trainer.max_steps=4", "--print_config")
    assert not (tmp_path / "a").exists()
    (tmp_path / "printed.yaml").write_text(shown.out)
    words = ["--config", tmp_path / "printed.yaml", "--run_dir", tmp_path / "b"]
    assert command("fit", *words).code == 0
    fit(tmp_path / "a", "--trainer.max_steps=4")
    one, other = (
        yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("a", "b")
    )
    assert set(differences(one, other)) == {"run_dir"}
    assert curve(tmp_path / "a", "val/loss") == curve(tmp_path / "b", "val/loss")


def test_the_config_of_a_run_repeats_it(fit: Command, command: Command, tmp_path: Path) -> None:
    fit(tmp_path / "a", "--trainer.max_steps=4")
    command("fit", "--config", tmp_path / "a/config.yaml", "--run_dir", tmp_path / "b")
    assert curve(tmp_path / "a", "val/loss") == curve(tmp_path / "b", "val/loss")


def test_lightning_s_own_adverts_and_advice_are_not_shown(corpus: Path, tmp_path: Path) -> None:
    flags = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.block_size=16"]
    flags += ["--trainer.log_every_n_steps=1"]
    words = ["--data.path", str(corpus), "--model.net.n_layer=1", "--model.net.n_embd=16", *flags]
    words += ["--model.schedule.warmup_steps=0", "--run_dir", str(tmp_path / "run")]
    for more in ([], ["--resume=must", "--trainer.max_steps=4"]):
        done = subprocess.run(
            [sys.executable, "-m", "lmtemplate", "fit", *words, *more, "--data.max_val_blocks=4"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_finished_when_it_ended_as_planned(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=4")
    before = load(run, 4)
    cli = TrainingCLI(["--config", str(run / "config.yaml")], [])
    assert is_finished(run, before, cli, RunLength("trainer.max_steps", 4, 4))
    assert not is_finished(run, before, cli, RunLength("trainer.max_steps", 5, 5))
    (run / "summary.json").unlink()  # killed between its last step and its end
    assert not is_finished(run, before, cli, RunLength("trainer.max_steps", 4, 4))


def test_a_data_worker_that_is_killed_is_named(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_of = LitLanguageModel.training_step

    def training_step(self: LitLanguageModel, *words: Any) -> Any:
        for worker in multiprocessing.active_children() if self.global_step == 3 else ():
            worker.kill()
            worker.join()
        return step_of(self, *words)

    monkeypatch.setattr(LitLanguageModel, "training_step", training_step)
    ended = fit(tmp_path / "run", "--data.num_workers=1", "--trainer.max_steps=50")
    assert ended.code == 6
    assert re.match(r"data worker \d+ was killed, as when memory", ended.error)


def test_an_error_that_nobody_knows_is_not_explained_away(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def training_step(*_: object) -> None:
        raise RuntimeError("gloo")  # of a single process

    monkeypatch.setattr(LitLanguageModel, "training_step", training_step)
    with pytest.raises(RuntimeError, match="gloo"):
        fit(tmp_path / "run")


def test_only_what_fails_while_restoring_is_a_state_that_cannot_be_restored(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("no such thing")

    monkeypatch.setattr(LitLanguageModel, "on_save_checkpoint", fail)
    with pytest.raises(TypeError):
        fit(tmp_path / "a", "--trainer.max_steps=4")
    monkeypatch.undo()
    assert fit(tmp_path / "b", "--trainer.max_steps=4").code == 0
    again = ("--resume=must", "--trainer.max_steps=8")
    monkeypatch.setattr(LitLanguageModel, "training_step", fail)  # inside of the optimizer's step
    with pytest.raises(TypeError):
        fit(tmp_path / "b", *again)
    monkeypatch.setattr(LitLanguageModel, "on_train_start", fail)  # a line of one's own code
    with pytest.raises(TypeError):
        fit(tmp_path / "b", *again)
    monkeypatch.undo()
    of_a_library = eval("lambda *_: None + 1")  # of no file of the user's
    for where, name in ((LitLanguageModel, "on_load_checkpoint"), (torch.optim.AdamW, "step")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, of_a_library)
            refused = fit(tmp_path / "b", *again)
        assert refused.code == 3
        assert "step-000000004.ckpt holds a state that cannot be restored" in refused.error


def test_training_from_python_goes_on_where_it_stopped(corpus: Path, tmp_path: Path) -> None:
    settings = {
        **dict(flag.removeprefix("--").split("=") for flag in TINY),
        "data.path": str(corpus),
        "run_dir": str(tmp_path / "run"),
        "samples.prompts": ["a", "b c"],
        "early_stopping": None,
        "model.net": {"class_path": "lmtemplate.models.GPT", "init_args": {"n_layer": 1}},
        "resume": "auto",
    }
    del settings["model.net.n_layer"]
    assert run(settings=settings) == tmp_path / "run"
    assert read_record(tmp_path / "run").steps[-1] == 12
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["samples"]["init_args"]["prompts"] == ["a", "b c"]
    assert written["early_stopping"] is None
    assert written["model"]["net"]["init_args"]["n_layer"] == 1
    run(settings={**settings, "trainer.max_steps": 16})
    assert read_record(tmp_path / "run").steps[-1] == 16


def test_a_directory_with_another_model_names_both_ways_out(fit: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fit(folder, "--trainer.max_steps=4")
    refused = fit(folder, "--resume=auto", "--model.net.n_embd=16")
    assert refused.code == 3
    assert "n_embd: 32 -> 16" in refused.error
    assert "make train RUN=runs/NAME" in refused.error
    assert f"rm -r {folder}" in refused.error
