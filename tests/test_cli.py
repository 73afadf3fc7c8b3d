"""Configs and flags -> settings: who wins, what is linked, what Lightning is given."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lmtemplate import optimizers, schedules
from lmtemplate.checkpoint import differences
from lmtemplate.cli import is_finished
from lmtemplate.hardware import auto_precision
from lmtemplate.models import GPT2
from lmtemplate.parsing import CALLBACKS, TrainingCLI
from tests.conftest import Command
from tests.runs import curve, load, steps, train

Settings = dict[str, Any]


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Write a config: `config(yaml_text)`; each has a name of its own."""

    def write(text: str) -> Path:
        path = tmp_path / f"config_{len(list(tmp_path.glob('config_*')))}.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def settings(command: Command, corpus: Path) -> Callable[..., Settings]:
    """What `--print_config` says that a run with these words would be."""

    def read(*words: object) -> Settings:
        shown = command("fit", "--data.path", corpus, *words, "--print_config")
        assert (shown.code, shown.error) == (0, "")
        content: Settings = yaml.safe_load(shown.out)
        return content

    return read


def test_the_command_line_beats_the_config(
    config: Callable[[str], Path], settings: Callable[..., Settings]
) -> None:
    path = config("trainer: {max_steps: 7, val_check_interval: 3}")
    for words in (
        ["--config", path, "--trainer.max_steps=9"],
        ["-c", path, "--trainer.max_steps=9"],
    ):
        trainer = settings(*words)["trainer"]
        assert (trainer["max_steps"], trainer["val_check_interval"]) == (9, 3)


def test_a_second_config_beats_the_first_and_leaves_the_rest(
    config: Callable[[str], Path], settings: Callable[..., Settings]
) -> None:
    first = config("model: {net: {init_args: {n_layer: 3, n_embd: 48}}}\ndata: {batch_size: 5}")
    second = config("model: {net: {init_args: {n_layer: 6}}}")
    merged = settings("--config", first, "--config", second)
    assert merged["model"]["net"]["init_args"]["n_layer"] == 6
    assert merged["model"]["net"]["init_args"]["n_embd"] == 48
    assert merged["data"]["batch_size"] == 5


@pytest.mark.parametrize("key", CALLBACKS)
def test_an_overlay_loses_no_callback(
    config: Callable[[str], Path], settings: Callable[..., Settings], key: str
) -> None:
    first = config("early_stopping: {patience: 3}\ncheckpoint: {init_args: {milestones: 5}}")
    second = config("early_stopping: {init_args: {patience: 9}}")
    merged = settings("--config", first, "--config", second)
    assert merged[key]["class_path"].endswith(CALLBACKS[key].__name__)
    assert merged["early_stopping"]["init_args"]["patience"] == 9
    assert merged["checkpoint"]["init_args"]["milestones"] == 5


@pytest.mark.parametrize("key", CALLBACKS)
def test_null_turns_one_callback_off(
    config: Callable[[str], Path], settings: Callable[..., Settings], key: str
) -> None:
    merged = settings("--config", config(f"{key}: null"))
    assert merged[key] is None
    assert all(merged[other] is not None for other in CALLBACKS if other != key)


def test_a_config_adds_callbacks_beside_those_of_every_run(
    config: Callable[[str], Path], settings: Callable[..., Settings]
) -> None:
    summary = "{class_path: lightning.pytorch.callbacks.ModelSummary}"
    first = config(f"trainer: {{callbacks+: [{summary}]}}")
    second = config(f"trainer: {{callbacks+: [{summary}]}}")
    merged = settings("--config", first, "--config", second)
    assert len(merged["trainer"]["callbacks"]) == 2
    assert all(merged[key] for key in CALLBACKS)


SWAPS = [
    ("model.optimizer", optimizers.MuonAdamW, {"lr": 0.02, "weight_decay": 0.0}),
    ("model.optimizer", optimizers.SGD, {"lr": 0.1, "weight_decay": 0.0}),
    ("model.schedule", schedules.WarmupLinear, {"floor_ratio": 0.0}),
    ("model.schedule", schedules.Constant, {"warmup_steps": 0}),
    ("model.net", GPT2, {"n_layer": 12, "n_embd": 768}),
]


@pytest.mark.parametrize("where", ["config", "command line"])
@pytest.mark.parametrize(("key", "kind", "expected"), SWAPS)
def test_a_class_that_is_named_alone_comes_with_its_own_defaults(
    config: Callable[[str], Path],
    settings: Callable[..., Settings],
    where: str,
    key: str,
    kind: type,
    expected: Settings,
) -> None:
    class_path = f"{kind.__module__}.{kind.__name__}"
    group, name = key.split(".")
    text = f"{group}: {{{name}: {{class_path: {class_path}}}}}"
    words = ["--config", config(text)] if where == "config" else [f"--{key}={class_path}"]
    chosen = settings(*words)[group][name]["init_args"]
    assert {argument: chosen[argument] for argument in expected} == expected


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


def test_the_config_keeps_what_the_user_wrote(corpus: Path, tmp_path: Path) -> None:
    flags = ["--trainer.max_steps=-1", "--max_tokens=768", "--tokens_per_step=192"]
    run = train(tmp_path / "run", corpus, *flags, "--trainer.val_check_interval=2")
    content = yaml.safe_load((run / "config.yaml").read_text())
    assert content["trainer"]["val_check_interval"] == 2
    assert content["trainer"]["accumulate_grad_batches"] == 1
    assert content["trainer"]["max_steps"] == -1
    assert content["trainer"]["precision"] == "auto"
    assert content["tokens_per_step"] == 192
    assert steps(run, "val/loss") == [0, 2, 4]


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--max_tokens=700", 10),  # 64 tokens a step
        ("--max_flops=1e8", 7),  # 64 x about 209,000 FLOPs a step
        ("--tokens_per_parameter=0.02", 12),  # about 41,000 parameters
        ("--max_epochs=0.01", 5),  # 1,909 blocks of 16 tokens
    ],
)
def test_every_length_comes_to_steps(
    corpus: Path, tmp_path: Path, flag: str, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=-1", flag)
    assert steps(run, "val/loss")[-1] == expected
    shown = capsys.readouterr().out
    name, value = flag.removeprefix("--").split("=")
    assert f"(from {name} {float(value):,.10g})" in shown
    assert f"reached {name} {float(value):,.10g} at step {expected}" in shown


def test_the_sizes_of_the_data_reach_the_net(corpus: Path) -> None:
    cli = TrainingCLI(["--data.path", str(corpus), "--data.block_size=24"])
    assert (cli.model.net.vocab_size, cli.model.net.block_size) == (257, 24)


def test_the_seed_reaches_the_order_of_the_data(corpus: Path) -> None:
    cli = TrainingCLI(["--data.path", str(corpus), "--seed_everything=5"])
    assert cli.datamodule.seed == 5
    assert torch.initial_seed() == 5


def test_precision_is_chosen_for_the_device_and_said(fit: Command, tmp_path: Path) -> None:
    chosen = auto_precision(torch.device("cpu"))
    assert f"precision {chosen}," in fit(tmp_path / "a", "--trainer.max_steps=4").out
    wanted = fit(tmp_path / "b", "--trainer.max_steps=4", "--trainer.precision=64-true")
    assert "precision 64-true," in wanted.out
    assert load(tmp_path / "b", 4)["state_dict"]["net.head.weight"].dtype == torch.float64


def test_a_run_without_logger_checkpoints_and_samples_still_trains(
    fit: Command, tmp_path: Path
) -> None:
    off = ["--trainer.logger=false", "--checkpoint=null", "--samples=null"]
    off += ["--early_stopping=null", "--throughput=null", "--lr_monitor=null"]
    shown = fit(tmp_path / "run", *off)
    assert shown.code == 0
    assert "reached trainer.max_steps 12 at step 12" in shown.out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml",
        "manifest.json",
        "summary.json",
    }


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
    cli = TrainingCLI(["--config", str(run / "config.yaml")])
    assert is_finished(run, before, cli, 4)
    assert not is_finished(run, before, cli, 5)
    (run / "summary.json").unlink()
    assert is_finished(run, before, cli, 4)
