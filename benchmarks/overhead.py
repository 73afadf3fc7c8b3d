"""What Lightning and the callbacks cost: ms a step beside a plain loop, and without parts of them.

    make bench

Both run in one process, in turns, and medians are compared, since machines change speed. The net is
small on purpose: the cost per step does not depend on it.
"""

import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch

from lmtemplate.__main__ import run
from lmtemplate.callbacks.throughput import Throughput
from lmtemplate.data.datamodule import TokenData
from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT
from lmtemplate.optimizers import AdamW

STEPS, ROUNDS = 300, 7
BLOCK, BATCH = 32, 4
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32}
# What is switched off -> how. With the loggers go the record and TensorBoard.
WITHOUT = {
    "nothing": [],
    "record, TensorBoard, watch": ["--trainer.logger=false", "--watch=null"],
    "guard, signals": ["--guard=null", "--signals=null"],
}


def plain_loop(corpus: Path) -> float:
    """Milliseconds per step of forward, backward, clipping and update, on the same batches."""
    data = TokenData(corpus, block_size=BLOCK, batch_size=BATCH)
    net = GPT(data.vocab_size, BLOCK, **SHAPE)  # type: ignore[arg-type]
    optimizer = AdamW().build(net)
    batches = iter(data.train_dataloader())
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        inputs, targets = next(batches)
        cross_entropy(net(inputs), targets).objective.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def lightning(corpus: Path, folder: Path, *flags: str) -> float:
    """Milliseconds per step of `lmtemplate fit`, by its own meter."""
    meters: list[Throughput] = []
    create = Throughput.__init__

    def remember(self: Throughput, *values: float | None) -> None:
        create(self, *values)
        meters.append(self)

    Throughput.__init__ = remember  # type: ignore[method-assign]
    words = [
        *("fit", "--data.path", str(corpus), "--run_dir", str(folder)),
        *(f"--model.net.{name}={value}" for name, value in SHAPE.items()),
        *(f"--data.block_size={BLOCK}", f"--data.batch_size={BATCH}", "--data.max_val_blocks=4"),
        *(f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS}"),
        *("--trainer.precision=32-true", "--trainer.gradient_clip_val=1.0", "--samples=null"),
        *("--trainer.accelerator=cpu", "--checkpoint.milestones=null", "--report=false"),
        *flags,
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        run(words)
    Throughput.__init__ = create  # type: ignore[method-assign]
    return 1000 * meters[-1].training_seconds / (meters[-1].tokens / (BLOCK * BATCH))


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()):
            run(["prepare", "--input=grammar:5000", f"--output={folder}/data", "--tokenizer=byte"])
        rounds = [
            [plain_loop(folder / "data")]
            + [
                lightning(folder / "data", folder / f"run{number}-{kind}", *flags)
                for kind, flags in enumerate(WITHOUT.values())
            ]
            for number in range(ROUNDS)
        ]
    plain, full, *others = (statistics.median(times) for times in zip(*rounds, strict=True))
    print(f"plain loop      {plain:6.2f} ms a step")
    print(f"lmtemplate fit  {full:6.2f} ms a step: {full - plain:+.2f} ms, x{full / plain:.2f}")
    for name, times in zip(list(WITHOUT)[1:], others, strict=True):
        print(f"  of that {full - times:+.2f} ms for {name}")


if __name__ == "__main__":
    main()
