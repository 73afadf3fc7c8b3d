"""A run's checkpoint and a split -> the loss that validate and test print."""

import json
from pathlib import Path

import pytest
import torch

from lmtemplate.__main__ import run as run_words
from lmtemplate.checkpoint.compatibility import build_net
from lmtemplate.data.shards import Blocks, Shards
from tests.conftest import Command
from tests.runs import curve, load, train

DIGIT = 1.5e-6  # one unit of the last digit that validate prints, and a rounding error


@pytest.fixture
def run(diverged: Path) -> Path:
    return diverged


def printed(shown: str) -> dict[str, float]:
    """Metric -> value, from what validate and test print."""
    rows = [line.split() for line in shown.splitlines()[1:]]
    return {row[0]: float(row[1]) for row in rows if len(row) == 2 and "/" in row[0]}


def test_validating_the_best_checkpoint_gives_its_loss(run: Path, command: Command) -> None:
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    shown = command("validate", run)
    assert f"{best['file']} (step {best['step']})" in shown.out
    assert printed(shown.out)["val/loss"] == pytest.approx(best["val_loss"], abs=DIGIT)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_loss_does_not_depend_on_the_batch_size(
    run: Path, command: Command, batch_size: int
) -> None:
    flags = ["--trainer.precision=32-true", "--data.max_val_blocks=20"]
    losses = [
        printed(command("validate", run, f"--data.batch_size={size}", *flags).out)["val/loss"]
        for size in (4, batch_size)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=DIGIT)


@pytest.mark.slow
def test_the_loss_is_the_mean_over_every_token_of_the_split(
    run: Path, command: Command, corpus: Path
) -> None:
    flags = ["--trainer.precision=32-true", "--data.max_val_blocks=null", "--checkpoint=latest"]
    shown = printed(command("validate", run, *flags).out)["val/loss"]
    net = build_net(load(run, 18))
    shards = Shards(corpus, "val")
    tokens = torch.from_numpy(shards.gather(torch.arange(shards.tokens).numpy()))
    nats = []
    for start in range(0, shards.tokens - 1, 16):
        block = tokens[start : start + 17]
        with torch.no_grad():
            logs = net(block[None, :-1]).double().log_softmax(-1)[0]
        nats.append(-logs.gather(1, block[1:, None]))
    assert torch.cat(nats).shape == (shards.tokens - 1, 1)
    assert shown == pytest.approx(torch.cat(nats).mean().item(), abs=1e-5)


@pytest.mark.slow
def test_latest_and_paths_can_be_validated(run: Path, command: Command) -> None:
    assert "step-000000018.ckpt (step 18)" in command("validate", run, "--checkpoint=latest").out
    milestone = run / "checkpoints/milestones/step-000000000.ckpt"
    shown = command("validate", run, "--checkpoint", milestone)
    assert printed(shown.out)["val/loss"] == pytest.approx(curve(run, "val/loss")[0][1], abs=1e-6)


def test_without_a_test_split_test_exits_8(run: Path, command: Command) -> None:
    mistake = command("test", run)
    assert mistake.code == 8
    assert "no test split" in mistake.error
    assert "--test_ratio" in mistake.error


@pytest.mark.slow
def test_the_test_split_is_measured_in_full(tmp_path: Path, command: Command) -> None:
    words = ["--input", "grammar:200", "--output", str(tmp_path / "data"), "--tokenizer", "byte"]
    run_words(["prepare", *words, "--test_ratio", "0.2"])
    run = train(tmp_path / "run", tmp_path / "data", "--trainer.max_steps=4")
    shown = printed(command("test", run).out)
    assert set(shown) == {"test/loss", "test/perplexity", "test/accuracy", "test/bits_per_byte"}
    assert len(Blocks(Shards(tmp_path / "data", "test"), 16, whole=False)) > 8  # max_val_blocks


def test_a_checkpoint_of_another_folder_is_not_loaded_within_slurm(
    run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning looks for one by itself; it would be no file of torch here."""
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"a pickle")
    monkeypatch.chdir(tmp_path)
    job = dict.fromkeys(("JOB_ID", "NTASKS", "NTASKS_PER_NODE"), "1")
    job |= dict.fromkeys(("PROCID", "LOCALID", "NODEID"), "0")
    job |= {"JOB_NAME": "x", "NODELIST": "localhost", "JOB_NODELIST": "localhost"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert command("validate", run.resolve()).code == 0
