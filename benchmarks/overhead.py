"""What Lightning and the callbacks cost: ms a step beside a plain loop, and without parts of them.

    make bench

Both run in one process, in turns, and medians are compared, since machines change speed. The net is
small on purpose: the cost per step does not depend on it.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lmtemplate.__main__ import run
from lmtemplate.callbacks.throughput import Throughput
from lmtemplate.data.datamodule import TokenData
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT
from lmtemplate.optimizers import AdamW

STEPS, ROUNDS, EVERY = 300, 7, 5  # EVERY: steps from one logged step to the next
BLOCK, BATCH = 32, 4
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32}
# What is switched off -> how. With the loggers go the record and TensorBoard.
WITHOUT = {
    "nothing": [],
    "record, TensorBoard, watch": ["--trainer.logger=false", "--watch=null"],
    "guard, signals": ["--guard=null", "--signals=null"],
}


def plain_loop(corpus: Path) -> float:
    """Median milliseconds of forward, backward, clipping and update, on the same batches."""
    data = TokenData(corpus, block_size=BLOCK, batch_size=BATCH)
    net = GPT(data.vocab_size, BLOCK, **SHAPE)  # type: ignore[arg-type]
    optimizer = AdamW().build(net)
    batches, times = iter(data.train_dataloader()), [time.perf_counter()]
    for _ in range(STEPS):
        inputs, targets = next(batches)
        cross_entropy(net(inputs), targets).objective.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
    return 1000 * float(np.median(np.diff(times)))


def watched_fit(corpus: Path, folder: Path, watch: Callable[[], object], *flags: str) -> None:
    """A silent `lmtemplate fit` of the small net on a CPU; `watch` is called as each step starts."""

    def remember(self: Throughput, *values: object) -> None:
        watch()
        start(self, *values)

    start = Throughput.on_train_batch_start
    Throughput.on_train_batch_start = remember  # type: ignore[method-assign]
    words = [
        *("fit", "--data.path", str(corpus), "--run_dir", str(folder)),
        *(f"--model.net.{name}={value}" for name, value in SHAPE.items()),
        *(f"--data.block_size={BLOCK}", f"--data.batch_size={BATCH}", "--data.max_val_blocks=4"),
        *("--trainer.precision=32-true", "--trainer.accelerator=cpu", *flags),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        run(words)
    Throughput.on_train_batch_start = start  # type: ignore[method-assign]


def lightning(corpus: Path, folder: Path, *flags: str) -> tuple[float, float]:
    """Median milliseconds of the steps of `lmtemplate fit` that log nothing, and of those that do."""
    starts: list[float] = []
    watched_fit(
        corpus,
        folder,
        lambda: starts.append(time.perf_counter()),
        *(f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS}"),
        *("--trainer.gradient_clip_val=1.0", "--samples=null", "--report=false"),
        *("--checkpoint.milestones=null", f"--trainer.log_every_n_steps={EVERY}", *flags),
    )
    times = 1000 * np.diff(starts)  # of steps 1 to STEPS - 1
    logged = np.arange(1, STEPS) % EVERY == 0
    return float(np.median(times[~logged])), float(np.median(times[logged]))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()):
            run(["prepare", "--input=grammar:5000", f"--output={folder}/data", "--tokenizer=byte"])
        rounds = [
            (
                (plain_loop(folder / "data"),),
                *(
                    lightning(folder / "data", folder / f"run{number}-{kind}", *flags)
                    for kind, flags in enumerate(WITHOUT.values())
                ),
            )
            for number in range(ROUNDS)
        ]
    ((plain,), *fits) = [np.median(times, axis=0) for times in zip(*rounds, strict=True)]
    print(f"plain loop      {plain:6.2f} ms a step")
    for name, (quiet, logged) in zip(WITHOUT, fits, strict=True):
        mean = quiet + (logged - quiet) / EVERY
        print(
            f"fit without {name}: {quiet:.2f} ms a step ({quiet - plain:+.2f}), a logged one "
            f"{logged - quiet:+.2f} more; in all {mean - plain:+.2f} ms, x{mean / plain:.2f}"
        )


if __name__ == "__main__":
    main()
