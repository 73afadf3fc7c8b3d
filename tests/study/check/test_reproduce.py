"""A run -> the same run again, and an honest word on whether it is the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmtemplate.errors import CheckpointError, ConfigError, DataError
from lmtemplate.record import Writer
from lmtemplate.study.check import reproduce as module
from lmtemplate.study.check.reproduce import recorded_settings, reproduce, verdict
from tests.conftest import Command
from tests.runs import train


def record(run: Path, losses: dict[int, float]) -> Path:
    writer = Writer(run, 0)
    for step, loss in losses.items():
        writer.append(step, {"train/loss": loss})
    return run


LOSSES = {5: 4.0, 10: 3.0 + 2**-40, 15: 2.5}


def test_the_same_losses_are_the_same(tmp_path: Path) -> None:
    one, other = record(tmp_path / "a", LOSSES), record(tmp_path / "b", LOSSES)
    assert verdict(one, other, 15) == (True, "all 3 losses up to step 15 are the same, bit for bit")


def test_a_difference_of_one_bit_is_found_and_named(tmp_path: Path) -> None:
    one, other = record(tmp_path / "a", LOSSES), record(tmp_path / "b", {**LOSSES, 10: 3.0})
    same, sentence = verdict(one, other, 15)
    assert not same
    assert "1 of 3 losses differ, first train/loss at step 10" in sentence
    assert "the largest difference is 9.09e-13" in sentence


def test_a_shorter_run_is_not_the_same(tmp_path: Path) -> None:
    one, other = record(tmp_path / "a", LOSSES), record(tmp_path / "b", {5: 4.0})
    assert verdict(one, other, 15)[0] is False
    assert verdict(one, other, last_step=5)[0] is True


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["--model.net.dropout=0.1", "--trainer.max_steps=-1", "--max_tokens=800"]
    return train(tmp_path_factory.mktemp("reproduce") / "run", corpus, *flags)


@pytest.mark.slow
def test_a_run_repeats_itself_bit_for_bit(run: Path, command: Command, tmp_path: Path) -> None:
    result = command("reproduce", run, "--output", tmp_path / "again")
    assert result.code == 0, result.error
    # steps 0, 2 .. 12 and validations at 0, 4, 8, 12
    assert "all 10 losses up to step 12 are the same, bit for bit" in result.out


@pytest.mark.slow
def test_its_length_is_the_one_it_had_in_steps(run: Path) -> None:
    settings, changed_at = recorded_settings(run)
    assert settings["trainer"]["max_steps"] == 800 // 64
    assert settings["max_tokens"] is None
    assert changed_at == 12


def edit(run: Path, **changes: Any) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def other(run: Path, tmp_path: Path) -> Path:
    """A copy of the run's descriptions, to be changed."""
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "checkpoints").mkdir()
    for name in ("manifest.json", "summary.json", "checkpoints/training_metrics.jsonl"):
        (folder / name).write_text((run / name).read_text())
    return folder


@pytest.mark.slow
def test_other_code_versions_and_hardware_are_named(
    other: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = json.loads((other / "manifest.json").read_text())
    hardware = {**made["hardware"], "device": "cuda"}
    edit(other, git={"commit": "0123", "dirty": True}, python="2.7.18", hardware=hardware)

    def made_again(settings: object, again: Path, *_: object) -> int:
        (record(again, LOSSES) / "manifest.json").write_text(json.dumps(made))
        return 0

    monkeypatch.setattr(module, "repeat", made_again)
    with pytest.raises(SystemExit):
        reproduce(other)
    said = capsys.readouterr().out
    assert f"differs: git.commit: 0123 -> {made['git']['commit']}" in said
    assert "differs: python: 2.7.18 -> " in said
    assert "changes that were not committed" in said
    assert "differs: hardware.device: cuda -> cpu\n" in said
    assert "hardware.name" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"changed": {"lr": [1, 2]}}, {"changed": {}, "environment": {"hardware.threads": [1, 2]}}],
)
def test_a_run_whose_settings_or_machine_changed_is_compared_up_to_there(
    other: Path, change: dict[str, Any]
) -> None:
    edit(other, resumed=[{"step": 4, "changed": {"run_dir": [1, 2]}}, {"step": 8, **change}])
    assert recorded_settings(other)[1] == 8


def test_the_end_that_nobody_planned_is_not_compared(tmp_path: Path) -> None:
    one = record(tmp_path / "a", {5: 4.0, 10: 3.0, 12: 2.0})  # ended at 12 by the clock
    other = record(tmp_path / "b", {5: 4.0, 10: 3.0, 15: 2.5})
    assert verdict(one, other, 12)[0] is True
    assert verdict(one, record(tmp_path / "c", {5: 4.0, 15: 2.5}), 12)[0] is False


@pytest.mark.slow
def test_a_run_without_losses_is_refused_before_training(other: Path) -> None:
    (other / "checkpoints" / "training_metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="no record of its losses"):
        reproduce(other)


@pytest.mark.slow
def test_another_corpus_is_refused(other: Path) -> None:
    edit(other, data={"fingerprint": "0"})
    with pytest.raises(DataError, match="is not the corpus of"):
        reproduce(other)


@pytest.mark.slow
def test_a_run_that_is_there_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is there already"):
        reproduce(run, output=tmp_path)


def test_a_folder_without_a_manifest_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no manifest .*manifest\.json"):
        reproduce(tmp_path)


@pytest.mark.slow
def test_the_exit_code_of_a_failed_run_is_passed_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list[Path]()

    def failing(_: object, again: Path, *__: object) -> int:
        given.append(again)
        return 4

    monkeypatch.setattr(module, "repeat", failing)
    monkeypatch.chdir(run)
    for output in (tmp_path / "again", None):
        with pytest.raises(SystemExit) as end:
            reproduce(Path(), output)
        assert end.value.code == 4
    assert given == [tmp_path / "again", run.with_name(f"{run.name}-again")]


@pytest.mark.slow
def test_losses_that_differ_are_exit_code_1(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(settings: object, again: Path, *_: object) -> int:
        record(again, LOSSES)
        return 0

    monkeypatch.setattr(module, "repeat", another)
    with pytest.raises(SystemExit) as end:
        reproduce(run, output=tmp_path / "again")
    assert end.value.code == 1
