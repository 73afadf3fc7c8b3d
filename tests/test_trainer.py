"""A config in steps, tokens and `auto` -> Lightning's Trainer: lengths, precision, devices."""

import shutil
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from lmtemplate.cli import TrainingCLI
from lmtemplate.errors import ConfigError
from lmtemplate.fit import describe, make_plan, measured_seconds
from lmtemplate.hardware import auto_precision
from lmtemplate.run_dir import lock
from lmtemplate.run_length import RunLength
from lmtemplate.trainer import Machine, as_list, check_strategy, find_machine, in_lightnings_units
from tests.conftest import TINY, Command
from tests.runs import contents, load, steps, train


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_run_shorter_than_the_interval_of_validations_is_validated_at_its_end(
    fit: Command, tmp_path: Path
) -> None:
    assert (
        fit(tmp_path / "run", "--trainer.max_steps=3", "--trainer.val_check_interval=9").code == 0
    )
    assert steps(tmp_path / "run", "val/loss") == [0, 3]


@pytest.mark.slow
def test_precision_is_chosen_for_the_device_and_said(fit: Command, tmp_path: Path) -> None:
    chosen = auto_precision(torch.device("cpu"))
    assert f"precision {chosen}," in fit(tmp_path / "a", "--trainer.max_steps=4").out
    wanted = fit(tmp_path / "b", "--trainer.max_steps=4", "--trainer.precision=64-true")
    assert "precision 64-true," in wanted.out
    assert load(tmp_path / "b", 4)["state_dict"]["net.head.weight"].dtype == torch.float64


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--model.optimizer=torch.optim.Muon", "Muon only supports 2D parameters"),
        ("--model.schedule=torch.optim.lr_scheduler.LRScheduler", "NotImplementedError"),
        (
            "--allow=prodigyopt --model.optimizer=prodigyopt.Prodigy --model.optimizer.lr=-1",
            "Invalid learning rate",
        ),
    ],
)
def test_a_class_that_cannot_do_its_part_here_is_a_wrong_setting(
    fit: Command, tmp_path: Path, flag: str, says: str
) -> None:
    refused = fit(tmp_path / "run", *flag.split())
    assert refused.code == 2
    assert says in refused.error


@pytest.mark.slow
def test_a_run_without_logger_checkpoints_and_samples_still_trains(
    fit: Command, tmp_path: Path
) -> None:
    off = ["--trainer.logger=false", "--checkpoint=null", "--samples=null"]
    off += ["--early_stopping=null", "--throughput=null", "--lr_monitor=null"]
    shown = fit(tmp_path / "run", *off)
    assert shown.code == 0
    assert "reached trainer.max_steps 12 at step 12" in shown.out
    left = {path.name for path in (tmp_path / "run").iterdir()}
    left.discard("uncommitted.diff")  # of a working tree with changes
    assert left == {"config.yaml", "manifest.json", "summary.json"}


def tiny(corpus: Path, *flags: str) -> TrainingCLI:
    cli = TrainingCLI(["--data.path", str(corpus), *TINY, *flags], [])
    cli.datamodule.setup("fit")
    return cli


def test_a_length_in_seconds_is_measured_once_and_on_a_single_device(corpus: Path) -> None:
    cli = tiny(corpus, "--trainer.max_steps=-1", "--max_seconds=5")
    known = {"limit": "max_seconds", "value": 5.0, "steps": 77}
    assert make_plan(cli, {"length": known}).steps == 77
    cli.machine = Machine(torch.device("cpu"), world_size=2, precision="32-true")
    with pytest.raises(ConfigError, match="max_seconds works on one device"):
        measured_seconds(cli)


def test_the_machine_is_the_one_that_was_asked_for_and_settings_stay(corpus: Path) -> None:
    cli = tiny(corpus, "--trainer.precision=64-true")
    before = cli.settings
    assert find_machine(cli.trainer_settings) == Machine(torch.device("cpu"), 1, "64-true")
    assert cli.settings == before


def test_a_strategy_whose_checkpoints_nothing_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="ModelParallelStrategy needs a net that splits itself"):
        check_strategy(ModelParallelStrategy())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "read"), [("1", 1), ("3", 3), ("0.5", 0.5), ("1.0", 1.0), ("null", None)]
)
def test_a_number_of_validation_batches_is_no_share(
    corpus: Path, typed: str, read: float | None
) -> None:
    settings = tiny(corpus, f"--trainer.limit_val_batches={typed}").trainer_settings
    assert settings["limit_val_batches"] == read
    assert type(settings["limit_val_batches"]) is type(read)


@pytest.mark.parametrize(("given", "expected"), [(None, []), (3, [3]), ([1, 2], [1, 2]), ([], [])])
def test_nothing_one_thing_and_a_list_become_a_list(given: Any, expected: list[int]) -> None:
    assert as_list(given) == expected


def test_a_description_is_of_plain_types_and_holds_what_a_net_needs(corpus: Path) -> None:
    cli = tiny(corpus, "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=1")
    description = describe(cli, make_plan(cli))
    assert yaml.safe_load(yaml.safe_dump(description)) == description
    assert (description["vocab_size"], description["block_size"]) == (257, 16)
    assert description["length"]["steps"] == 12


def test_a_process_waits_ten_minutes_for_the_others_unless_the_strategy_says_otherwise(
    corpus: Path,
) -> None:
    settings, length = tiny(corpus).trainer_settings, RunLength("trainer.max_steps", 12, 12)

    def chosen(strategy: Any, world_size: int) -> Any:
        machine = Machine(torch.device("cpu"), world_size, "32-true")
        return in_lightnings_units({**settings, "strategy": strategy}, machine, length)["strategy"]

    assert chosen("auto", 2)._timeout.total_seconds() == 600
    own = DDPStrategy(timeout=timedelta(seconds=5))
    assert chosen(own, 2) is own
    assert chosen("auto", 1) == "auto"
    assert chosen("fsdp", 2) == "fsdp"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--trainer.devices=abc", "trainer.accelerator, devices or strategy is not available"),
        ("--trainer.devices=-1", "trainer.accelerator, devices or strategy is not available"),
        ("--trainer.strategy=ddp_spawn", "trainer.strategy: spawn, fork and notebook"),
        ("--trainer.strategy=ddp_notebook", "trainer.strategy: spawn, fork and notebook"),
        ("--trainer.accelerator=tpu", "torch_xla"),
        ("--trainer.limit_val_batches=1.5", "trainer: "),
        ("--trainer.limit_val_batches=0.0001", "validation would never happen"),
        ("--trainer.profiler=xla", "trainer.profiler (command line): expected one of"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val (command line): "),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    fit: Command, tmp_path: Path, flag: str, told: str
) -> None:
    refused = fit(tmp_path / "run", flag)
    assert refused.code == 2
    assert told in refused.error
    assert not (tmp_path / "run").exists()


def test_a_machine_without_a_compiler_is_told_so_before_step_1(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    refused = fit(tmp_path / "run", "--model.compile=true")
    assert refused.code == 2
    assert "model.compile: true needs a compiler" in refused.error
    assert not (tmp_path / "run").exists()


def test_where_gpus_are_hidden_the_variable_is_named(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    refused = fit(tmp_path / "run", "--trainer.accelerator=gpu")
    assert refused.code == 2
    assert "CUDA_VISIBLE_DEVICES=-1" in refused.error


@pytest.mark.slow
def test_a_disk_without_room_for_two_checkpoints_is_refused_before_step_1(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1_000_000)  # a checkpoint has half of it
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    refused = fit(tmp_path / "run")
    assert refused.code == 5
    assert "has 1.0 MB free, and saving needs about 1.1 MB" in refused.error
    assert not (tmp_path / "run").exists()
    assert fit(tmp_path / "run", "--checkpoint=null").code == 0


def test_a_rank_left_in_the_environment_neither_writes_nor_skips_the_lock(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what Lightning makes of RANK=1 when it is imported
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert fit(tmp_path / "run", "--trainer.max_steps=4").code == 0
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "training_metrics.jsonl").exists()
    before = contents(tmp_path / "run")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    refused = fit(tmp_path / "run", "--resume=never", "--trainer.max_steps=40")
    assert refused.code == 2
    assert "holds a run" in refused.error
    assert contents(tmp_path / "run") == before
    with lock(tmp_path / "other"):
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        assert fit(tmp_path / "other").code == 7


def test_a_local_rank_without_a_device_is_named(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    refused = fit(tmp_path / "run", "--trainer.strategy=ddp")
    assert refused.code == 2
    assert "LOCAL_RANK=3" in refused.error


def test_a_run_that_is_further_than_its_length_is_told_so(
    fit: Command, finished: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    refused = fit(run, "--resume=auto", "--trainer.max_steps=8")
    assert refused.code == 2
    assert "trainer.max_steps 8 ends at step 8, and" in refused.error
    assert "is at step 12 already" in refused.error


@pytest.mark.slow
def test_checkpoints_of_lightning_s_callback_stand_where_they_are_asked_for(
    fit: Command, tmp_path: Path
) -> None:
    words = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename={step}"]
    words.append(f"--trainer.callbacks.dirpath={tmp_path / 'mine'}")
    assert fit(tmp_path / "run", "--allow=lightning", *words).code == 0
    assert [path.name for path in (tmp_path / "mine").glob("*.ckpt")] == ["step=12.ckpt"]


@pytest.mark.slow
def test_a_value_that_nothing_logs_is_named_where_it_is_monitored(
    fit: Command, tmp_path: Path
) -> None:
    allow = "--allow=lightning"
    summary = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelSummary"  # may log anything
    refused = fit(tmp_path / "a", allow, summary, "--early_stopping.monitor=val/foo")
    assert refused.code == 2
    assert "early_stopping.monitor: Early stopping conditioned on metric `val/foo`" in refused.error
    own = "lightning.pytorch.callbacks.ModelCheckpoint"
    words = [f"--trainer.callbacks+={own}", "--trainer.callbacks.monitor=val/foo"]
    refused = fit(tmp_path / "b", allow, *words)
    assert refused.code == 2
    assert "could not find the monitored key" in refused.error
