"""What one training step costs, beside nanoGPT's and beside plain AdamW: ms and ratios.

    make bench BENCH=step [ARGS="--nanogpt DIR --compile"]

All steps of one precision run in turns in one process, and the least time of each counts, since
machines change speed. Sizes are those of configs/shakespeare_char.yaml (nanoGPT's CPU recipe) and,
with V = 4,096, of configs/quickstart.yaml.
"""

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmtemplate.hardware import fast_bfloat16, keep_freed_memory
from lmtemplate.loss import training_loss
from lmtemplate.models import GPT, GPT2
from lmtemplate.optimizers import AdamW, MuonAdamW

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128}
BLOCK = 64
Step = Callable[[], None]


def make_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    batch: tuple[int, int],
    dtype: torch.dtype,
) -> Step:
    """Forward, backward, clipping and update on one random batch of (vocabulary, rows)."""
    vocabulary, rows = batch
    inputs, targets = torch.randint(vocabulary, (2, rows, BLOCK)).unbind()

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            objective = loss(net, inputs, targets)
        objective.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return training_loss(net, inputs, targets).objective  # type: ignore[arg-type]


def steps(dtype: torch.dtype, nanogpt: str | None, compiled: bool) -> dict[str, Step]:
    """Name -> a step of one precision."""
    small, large = (65, 12), (4096, 16)
    found: dict[str, Step] = {}
    if nanogpt:
        sys.path.insert(0, nanogpt)
        import model

        theirs = model.GPT(model.GPTConfig(BLOCK, 65, bias=False, dropout=0.0, **SHAPE))
        optimizer = theirs.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
        found["nanoGPT"] = make_step(theirs, optimizer, lambda n, x, y: n(x, y)[1], small, dtype)
    nets: dict[str, tuple[nn.Module, tuple[int, int]]] = {
        "GPT2": (GPT2(65, BLOCK, **SHAPE), small),  # type: ignore[arg-type]
        "GPT2 as nanoGPT": (GPT2(65, BLOCK, mlp="exact_gelu", bias=False, **SHAPE), small),  # type: ignore[arg-type]
    }
    for name, (net, batch) in nets.items():
        found[name] = make_step(net, AdamW().build(net), ours, batch, dtype)
    for batch in (small, large):
        for recipe in (AdamW(), MuonAdamW()):
            net = GPT(batch[0], BLOCK, **SHAPE)  # type: ignore[arg-type]
            name = f"GPT, V {batch[0]}, {type(recipe).__name__}"
            found[name] = make_step(net, recipe.build(net), ours, batch, dtype)
            if compiled:
                loss = torch.compile(ours, dynamic=False)
                found[f"{name}, compiled"] = make_step(net, recipe.build(net), loss, batch, dtype)
    return found


def measure(found: dict[str, Step], rounds: int) -> dict[str, float]:
    """Name -> least milliseconds of `rounds` steps, after two to warm up (the first compiles)."""
    least = dict.fromkeys(found, float("inf"))
    for number in range(rounds + 2):
        for name, step in found.items():
            start = time.perf_counter()
            step()
            if number >= 2:
                least[name] = min(least[name], 1000 * (time.perf_counter() - start))
    return least


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanogpt", help="folder of a clone of karpathy/nanoGPT")
    parser.add_argument("--compile", action="store_true", help="compiled steps too; a minute more")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each kind")
    options = parser.parse_args()
    keep_freed_memory()
    for dtype in [torch.float32, *[torch.bfloat16] * fast_bfloat16(torch.device("cpu"))]:
        torch.manual_seed(0)
        least = measure(steps(dtype, options.nanogpt, options.compile), options.rounds)
        print(f"{dtype}, {torch.get_num_threads()} threads")
        for name, milliseconds in least.items():
            beside = least.get("nanoGPT") if "GPT2" in name else None
            note = f"  x{beside / milliseconds:.2f} of nanoGPT's speed" if beside else ""
            if plain := least.get(name.replace("MuonAdamW", "AdamW")) if "Muon" in name else None:
                note = f"  x{milliseconds / plain:.2f} of AdamW's time"
            print(f"  {name:<36}{milliseconds:8.1f} ms{note}")


if __name__ == "__main__":
    main()
