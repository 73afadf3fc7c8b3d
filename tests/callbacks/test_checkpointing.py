"""Training state -> checkpoints at the right steps; the ones worth keeping stay."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lmtemplate.callbacks import checkpointing
from lmtemplate.callbacks.checkpointing import (
    Checkpoint,
    SafeCheckpointIO,
    all_finite,
    milestone_steps,
)
from lmtemplate.checkpoint import files, resume
from lmtemplate.errors import ConfigError
from lmtemplate.module import LitLanguageModel
from lmtemplate.record import read_record
from tests.conftest import DIVERGING
from tests.runs import contents, curve, equal, load, save, train

IMPROVING = ["--model.optimizer.lr=0.01", "--trainer.val_check_interval=2"]


@pytest.fixture
def run(diverged: Path) -> Path:
    """Its second validation is the best."""
    return diverged


def kept(run: Path) -> list[int]:
    return resume.steps_saved(run)


def milestones(run: Path) -> list[int]:
    return [int(path.stem[5:]) for path in sorted((run / "checkpoints/milestones").glob("*.ckpt"))]


@pytest.mark.parametrize("steps", [1, 2, 12, 1000, 1_000_000])
def test_milestones_are_0_and_log_spaced_up_to_the_end(steps: int) -> None:
    chosen = sorted(milestone_steps(12, steps))
    assert chosen[0] == 0
    assert chosen[-1] == steps
    assert len(chosen) <= 13
    spaced = np.log([step for step in chosen if step > 100])
    if len(spaced) > 2:
        assert np.diff(spaced) == pytest.approx(np.log(steps) / 11, rel=0.02)


def test_the_best_and_the_newest_two_stay(run: Path) -> None:
    losses = {step: loss for step, loss in curve(run, "val/loss") if step}
    best = min(losses, key=lambda step: losses[step])
    assert best not in (15, 18)
    assert kept(run) == [best, 15, 18]


def test_milestones_are_never_pruned(run: Path) -> None:
    expected = {0, *(round(18 ** (place / 11)) for place in range(12))}
    assert milestones(run) == sorted(expected)


def test_milestones_hold_weights_alone(run: Path) -> None:
    for step in milestones(run):
        path = run / "checkpoints/milestones" / files.file_name(step)
        checkpoint = torch.load(path, weights_only=True)
        assert checkpoint["global_step"] == step
        assert not {"optimizer_states", "lr_schedulers", "callbacks"} & checkpoint.keys()


def test_the_last_milestone_has_the_weights_of_the_last_checkpoint(run: Path) -> None:
    path = run / "checkpoints/milestones" / files.file_name(18)
    last = torch.load(path, weights_only=True)["state_dict"]
    assert equal(last, load(run, 18)["state_dict"])


def test_checksums_stand_for_every_file_and_are_right(run: Path) -> None:
    for folder in (run / "checkpoints", run / "checkpoints/milestones"):
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
        there = {path.name: path for path in folder.glob("*.ckpt")}
        assert listed.keys() == there.keys()
        for name, path in there.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name]


def test_best_is_the_lowest_validation_to_the_last_digit(run: Path) -> None:
    best = json.loads((run / "checkpoints/best.json").read_text())
    losses = {step: loss for step, loss in curve(run, "val/loss") if step}
    assert best["step"] == min(losses, key=lambda step: losses[step])
    assert np.float32(best["val_loss"]) == np.float32(losses[best["step"]])


def test_best_knows_the_loss_before_step_1(run: Path) -> None:
    best = resume.read_best(run)
    assert best is not None
    assert best["initial_val_loss"] == read_record(run).initial_val_loss


@pytest.mark.slow
def test_only_a_validation_moves_best(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved at each step, the weights improve from step to step; validated at 5, 10 and 12."""
    pointed = []
    write_best = resume.write_best

    def note(run: Path, step: int, *losses: float) -> None:
        pointed.append(step)
        write_best(run, step, *losses)

    monkeypatch.setattr(resume, "write_best", note)
    flags = ["--checkpoint.every_minutes=1e-9", "--trainer.log_every_n_steps=1"]
    flags += ["--trainer.val_check_interval=5", "--model.optimizer.lr=0.01"]
    run = train(tmp_path / "run", corpus, *flags)
    assert kept(run) == [11, 12]
    assert sorted(set(pointed)) == [5, 10, 12]


def test_a_checkpoint_describes_its_run(run: Path, corpus: Path) -> None:
    checkpoint = load(run, 18)
    index = json.loads((corpus / "index.json").read_text())
    assert checkpoint["fingerprint"] == index["fingerprint"]
    assert (checkpoint["vocab_size"], checkpoint["block_size"]) == (257, 16)
    assert checkpoint["tokenizer"] == (corpus / "tokenizer.json").read_text()
    assert checkpoint["config"]["trainer"]["max_steps"] == 18
    length = {"limit": "trainer.max_steps", "value": 18, "steps": 18, "accumulate": 1}
    assert checkpoint["length"] == length


@pytest.mark.slow
def test_null_turns_milestones_off(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--checkpoint.milestones=null")
    assert kept(run) == [8, 12]
    assert not (run / "checkpoints/milestones").exists()


@pytest.mark.slow
def test_null_turns_checkpoints_off(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, "--checkpoint=null")
    assert not list(run.rglob("*.ckpt"))
    assert not (run / "checkpoints" / "best.json").exists()


@pytest.mark.parametrize(
    "setting", [{"milestones": 0}, {"every_minutes": 0.0}, {"milestones": 10_001}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"has to be (above 0, or null|at most 10,000)"):
        Checkpoint(**setting)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_timer_saves_between_validations(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    """A step takes a minute; saved every 3 minutes, at the validation at 10, and at the end."""
    clock, saved = SimpleNamespace(now=0.0), []
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(checkpointing, "time", clock)

    def tick(module: LitLanguageModel, *_: object) -> None:
        clock.now += 60 / accumulate

    def write(checkpoint: dict[str, int], path: Path) -> None:
        saved.append(checkpoint["global_step"])

    monkeypatch.setattr(LitLanguageModel, "on_train_batch_start", tick)
    monkeypatch.setattr(files, "write", write)
    flags = ["--checkpoint.every_minutes=3", "--checkpoint.milestones=null"]
    flags += ["--trainer.log_every_n_steps=1"]
    flags += [f"--trainer.accumulate_grad_batches={accumulate}", "--trainer.val_check_interval=10"]
    train(tmp_path / "run", corpus, *flags)
    assert saved == [3, 6, 9, 10, 12]


@pytest.mark.slow
def test_without_a_timer_only_validations_save(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    write = files.write

    def note(checkpoint: dict[str, int], path: Path) -> None:
        saved.append(checkpoint["global_step"])
        write(checkpoint, path)

    monkeypatch.setattr(files, "write", note)
    flags = ["--checkpoint.every_minutes=null", "--checkpoint.milestones=null"]
    train(tmp_path / "run", corpus, *flags, "--trainer.max_steps=10")
    assert saved == [4, 8, 10]


@pytest.mark.slow
def test_every_checkpoint_restores_the_rest_of_the_run_from_its_own_best(
    corpus: Path, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", corpus, *IMPROVING, "--trainer.max_steps=4")
    first = resume.read_best(run)
    train(run, corpus, *IMPROVING, "--trainer.max_steps=6", "--resume=must")
    last = resume.read_best(run)
    assert first is not None
    assert last is not None
    assert (first["step"], last["step"]) == (4, 6)
    flags = ["--trainer.max_steps=8", "--resume=must", "--model.optimizer.lr=5"]
    train(run, corpus, *IMPROVING, *flags)
    assert resume.read_best(run) == last  # a worse validation after the resume moves nothing
    assert last["initial_val_loss"] == read_record(run).initial_val_loss


@pytest.mark.slow
def test_a_best_checkpoint_that_is_lost_gives_way_to_the_next(
    run: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    best = resume.read_best(copy)
    assert best is not None
    (copy / "checkpoints" / best["file"]).unlink()
    train(copy, corpus, *DIVERGING, "--trainer.max_steps=21", "--resume=auto")
    assert f"the best checkpoint, step {best['step']}, is gone" in capsys.readouterr().out
    now = resume.read_best(copy)
    assert now is not None
    assert now["step"] in {21} & {*kept(copy)}


@pytest.mark.slow
def test_a_resume_from_before_the_best_forgets_it(corpus: Path, tmp_path: Path) -> None:
    flags = [*IMPROVING, "--trainer.val_check_interval=4", "--checkpoint.every_minutes=1e-9"]
    run = train(tmp_path / "run", corpus, *flags, "--trainer.max_steps=4")
    assert kept(run) == [3, 4]
    (run / "checkpoints" / files.file_name(4)).write_bytes(b"damaged")
    end = ["--trainer.max_steps=5", "--trainer.val_check_interval=5", "--resume=auto"]
    train(run, corpus, *flags, *end)
    assert resume.read_best(run) == {**(resume.read_best(run) or {}), "step": 5}


@pytest.mark.slow
def test_a_torn_best_json_is_written_anew(corpus: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", corpus, *IMPROVING, "--trainer.max_steps=8")
    (run / "checkpoints" / "best.json").write_text("{")
    train(run, corpus, *IMPROVING, "--trainer.max_steps=12", "--resume=auto")
    best = resume.read_best(run)
    assert best is not None
    assert best["step"] in kept(run)


def test_a_milestone_leaves_room_for_a_checkpoint_with_two_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space for 4 times the weights is enough: once for itself, 3 times for the next checkpoint."""
    net, written = torch.nn.Linear(10, 10, bias=False), []
    trainer = SimpleNamespace(
        global_step=0,
        is_global_zero=True,
        lightning_module=SimpleNamespace(state_dict=net.state_dict, print=lambda *_, **__: None),
        strategy=SimpleNamespace(reduce_boolean_decision=bool),
    )
    checkpoint = Checkpoint()
    monkeypatch.setattr(checkpoint, "_write", lambda *_, **__: written.append(free))
    for free in (390, 400):
        usage = SimpleNamespace(free=free * 4)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        checkpoint._due_milestones = {0}
        checkpoint._save_milestone(trainer)  # type: ignore[arg-type]
    assert written == [400]


@pytest.mark.slow
def test_a_resumed_checkpoint_is_hashed_once_and_loaded_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--checkpoint.milestones=null", "--samples=null", "--trainer.val_check_interval=2"]
    run = train(tmp_path / "run", corpus, *flags, "--trainer.max_steps=2")
    resumed, counts = run / "checkpoints" / files.file_name(2), {"sha256": 0, "load": 0}
    sha256, load_file = files.file_sha256, torch.load

    def counted_sha256(path: Path) -> str:
        counts["sha256"] += path == resumed
        return sha256(path)

    def counted_load(path: Path, **more: Any) -> Any:
        counts["load"] += path == resumed
        return load_file(path, **more)

    monkeypatch.setattr(files, "file_sha256", counted_sha256)
    monkeypatch.setattr(torch, "load", counted_load)
    train(run, corpus, *flags, "--trainer.max_steps=4", "--resume=must")
    assert kept(run) == [2, 4]
    assert counts == {"sha256": 1, "load": 1}


@pytest.mark.slow
def test_a_handed_over_checkpoint_is_let_go_of(tmp_path: Path) -> None:
    files.write({"state_dict": {}, "global_step": 1}, tmp_path / "a.ckpt")
    loaded = {"global_step": 1}
    door = SafeCheckpointIO({}, resume.Resumed(tmp_path / "a.ckpt", loaded))
    assert door.load_checkpoint(str(tmp_path / "a.ckpt")) is loaded
    assert door.resumed is None
    assert door.load_checkpoint(tmp_path / "a.ckpt").items() >= {"global_step": 1}.items()


def test_the_number_of_newest_checkpoints_that_stay_is_a_setting(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5)
    resume.prune(tmp_path, newest=5, best=1, keep=3)
    assert kept(tmp_path) == [1, 3, 4, 5]
    with pytest.raises(ConfigError, match=r"checkpoint\.keep=0 has to be 1 or more"):
        Checkpoint(keep=0)


@pytest.mark.slow
def test_a_milestone_leaves_the_last_room_to_checkpoints(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checkpointing, "MILESTONE_ROOM", 1e12)  # times its size
    run = train(tmp_path / "run", corpus, "--trainer.max_steps=4")
    assert "milestone not saved: checkpoints need the space" in capsys.readouterr().out
    assert not milestones(run)
    assert kept(run) == [4]


def test_lightning_can_neither_leave_a_torn_file_nor_load_one(tmp_path: Path) -> None:
    door = SafeCheckpointIO({"config": {"a": 1}})
    door.save_checkpoint({"state_dict": {}, "global_step": 1}, str(tmp_path / "a.ckpt"))
    assert contents(tmp_path).keys() == {"a.ckpt", "SHA256SUMS"}
    loaded = door.load_checkpoint(str(tmp_path / "a.ckpt"), map_location="cpu")
    assert {**loaded, "config": {"a": 1}, "state_dict": {}, "global_step": 1} == loaded


def test_nothing_is_removed_but_where_this_process_has_saved(tmp_path: Path) -> None:
    """A stranger's checkpoint may name any path to ModelCheckpoint as its own."""
    (tmp_path / "victim.txt").write_text("mine")
    door = SafeCheckpointIO({})
    own = tmp_path / "own/a.ckpt"
    door.save_checkpoint({"state_dict": {}, "global_step": 1}, str(own))
    for path in (tmp_path / "victim.txt", tmp_path / "own/../victim.txt", own):
        door.remove_checkpoint(str(path))
    assert (tmp_path / "victim.txt").read_text() == "mine"
    assert not own.exists()


@pytest.mark.parametrize("place", ["weights", "moments"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(place: str, bad: float) -> None:
    net = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(7)).sum().backward()
    optimizer.step()
    trainer = SimpleNamespace(optimizers=[optimizer], lightning_module=net)
    assert all_finite(trainer)  # type: ignore[arg-type]
    tensor = net.weight.data if place == "weights" else optimizer.state[net.weight]["exp_avg_sq"]
    tensor[3, 4] = bad
    assert not all_finite(trainer)  # type: ignore[arg-type]
