"""What one process of gpu.py does: `python -m benchmarks.gpu_work fit|ceiling|plain WORDS`."""

import itertools
import statistics
import sys
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lmtemplate.__main__ import run
from lmtemplate.cli import TrainingCLI
from lmtemplate.loss import cross_entropy

ON_GPU = torch.cuda.is_available()


class CountSyncs(Callback):
    """Count how often training waits for the GPU, and make one gradient NaN meanwhile.

    Args:
        first: step from which it counts.
        last: step until which it does.
    """

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.caught = warnings.catch_warnings(record=True)

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        if index == self.first:
            self.told = self.caught.__enter__() or []
            warnings.simplefilter("always")
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("warn")

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == (self.first + self.last) // 2:
            next(p.grad for p in module.parameters() if p.grad is not None).mul_(float("nan"))

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index == self.last:
            if ON_GPU:
                torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            waits = [one for one in self.told if "synchroniz" in str(one.message)]
            places = sorted({f"{one.filename}:{one.lineno}" for one in waits})
            print("syncs", len(waits), *places)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        print("finite", all(bool(p.isfinite().all()) for p in module.parameters()))


def fit(words: list[str]) -> None:
    """`lmtemplate fit`, and the most memory that its tensors held."""
    run(["fit", *words])
    print("peak", torch.cuda.max_memory_allocated() if ON_GPU else 0)


def ceiling(size: int) -> None:
    """FLOP/s of a product of square bfloat16 matrices, the best of 20."""
    device, best = "cuda" if ON_GPU else "cpu", float("inf")
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(5):
            product = a @ b
        float(product[0, 0])  # waits
        best = min(best, (time.perf_counter() - start) / 5)
    print("ceiling", 2 * size**3 / best)


def plain(steps: int, words: list[str]) -> None:
    """Seconds a step of a plain loop: the config's net, loss and optimizer, without Lightning."""
    cli = TrainingCLI(words, ["examples"])
    cli.datamodule.setup("fit")
    device, times = cli.machine.device, list[float]()
    net = cli.model.net.to(device)
    optimizer = cli.model.recipe.build(net)

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(net(inputs), targets).objective

    is_small = net.parameter_count() < 20_000_000  # then launches are what it waits for
    mode = "reduce-overhead" if is_small else "default"
    compiled = torch.compile(loss, dynamic=False, mode=mode) if ON_GPU else loss
    for number, batch in enumerate(cli.datamodule.train_dataloader()):
        if number % 10 == 0:
            if ON_GPU:
                torch.cuda.synchronize()
            times.append(time.perf_counter())
        if number == steps:
            break
        if ON_GPU:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, torch.bfloat16):
            objective = compiled(*(part.to(device, non_blocking=True) for part in batch))
        objective.backward()
        optimizer.step()
        optimizer.zero_grad()
    spans = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
    print("plain", statistics.median(spans) / 10)


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    if name == "fit":
        fit(rest)
    elif name == "ceiling":
        ceiling(int(rest[0]))
    elif name == "plain":
        plain(int(rest[0]), rest[1:])
