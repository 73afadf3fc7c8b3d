"""Two processes (gloo) -> the same data, the same losses and the same files as one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing

from lmtemplate.data.datamodule import to_tensors
from lmtemplate.data.sampler import fixed_order
from lmtemplate.data.shards import Blocks, Shards
from lmtemplate.loss import cross_entropy
from lmtemplate.metrics import TokenMetrics
from lmtemplate.models import GPT
from tests.conftest import TINY
from tests.runs import curve, load, steps, train

# Plain descent and full precision: rounding differences stay as small as they are.
FLAGS = [
    "--trainer.precision=32-true",
    "--model.optimizer=lmtemplate.optimizers.SGD",
    "--model.optimizer.lr=0.5",
    "--data.max_val_blocks=7",  # divides neither by the batch nor by the processes
    "--trainer.max_steps=8",
    "--trainer.accumulate_grad_batches=2",
]


def measure(rank: int, world_size: int, corpus: Path, folder: Path) -> None:
    """One process's part of a validation; all of them write what they agreed on."""
    meeting = f"file://{folder}/meeting-{world_size}"
    distributed.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
    torch.manual_seed(0)
    net = GPT(257, 16, n_layer=1, n_head=2, n_embd=16)
    torch.nn.init.normal_(net.head.weight)
    blocks, metrics = Blocks(Shards(corpus, "val"), 16, whole=False), TokenMetrics()
    for numbers in fixed_order(len(blocks), 8, rank=rank, world_size=world_size):
        inputs, targets = to_tensors(blocks[numbers])
        with torch.no_grad():
            logits = net(inputs)
        metrics.update(cross_entropy(logits, targets).nats, logits, targets)
    values = {name: float(value) for name, value in metrics.compute().items()}
    part = {"tokens": int(metrics.tokens), "values": values}
    (folder / f"{world_size}-{rank}.json").write_text(json.dumps(part))
    distributed.destroy_process_group()


def test_a_validation_comes_to_the_same_over_one_and_two_processes(
    corpus: Path, tmp_path: Path
) -> None:
    kind = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    for world_size in (1, 2):
        context = multiprocessing.start_processes(
            measure, (world_size, corpus, tmp_path), world_size, join=False, start_method=kind
        )
        assert context is not None
        while not context.join(timeout=60):
            pass
    one, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    predicted = Shards(corpus, "val").tokens - 1
    assert one["tokens"] == first["tokens"] + second["tokens"] == predicted
    assert first["values"] == second["values"]
    assert first["values"] == pytest.approx(one["values"], rel=1e-6)


def lmtemplate(*words: object) -> str:
    """Run the program in processes of its own; returns what it prints."""
    ours = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        [sys.executable, "-m", "lmtemplate", *map(str, words)],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def one(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process with batches of 4."""
    run = tmp_path_factory.mktemp("one") / "run"
    return train(run, corpus, *FLAGS, "--data.batch_size=4")


@pytest.fixture(scope="module")
def two(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of two processes, each with batches of 2."""
    run = tmp_path_factory.mktemp("two") / "run"
    flags = [*TINY, *FLAGS, "--data.batch_size=2", *TWO]
    lmtemplate("fit", "--data.path", corpus, "--run_dir", run, *flags)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["val/loss", "train/loss", "val/bits_per_byte", "optim/grad_norm"])
def test_two_processes_train_like_one_on_the_same_sequences(one: Path, two: Path, tag: str) -> None:
    assert steps(two, tag) == steps(one, tag)
    values = [[value for _, value in curve(run, tag)] for run in (one, two)]
    assert values[0] == pytest.approx(values[1], rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one_run(one: Path, two: Path) -> None:
    def names(run: Path) -> set[str]:
        return {re.sub(r"tfevents\..*", "tfevents", p.name) for p in run.rglob("*")}

    assert names(two) == names(one)
    assert len(list(two.glob("events.*"))) == 1
    assert load(two, 8)["TokenData"] == load(one, 8)["TokenData"]
    assert len(load(two, 8)["random_states"]) == 2
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert summaries[0]["tokens"] == summaries[1]["tokens"]


@pytest.mark.slow
def test_one_process_validates_what_two_have_trained(two: Path) -> None:
    best = json.loads((two / "checkpoints/best.json").read_text())
    for flags in (["--trainer.devices=1", "--trainer.strategy=auto"], TWO):
        shown = lmtemplate("validate", two, *flags)
        (loss,) = re.findall(r"val/loss +([\d.]+)", shown)
        assert float(loss) == pytest.approx(best["val_loss"], abs=1.5e-6)


@pytest.mark.slow
def test_one_process_continues_at_the_sequence_that_two_have_reached(
    two: Path, corpus: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(two, tmp_path / "run")
    flags = [*FLAGS, "--data.batch_size=2", "--trainer.max_steps=10", "--resume=must"]
    train(run, corpus, *flags)
    assert load(run, 10)["TokenData"] == {"sequences": 8 * 8 + 2 * 4}
