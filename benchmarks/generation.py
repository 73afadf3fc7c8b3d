"""Tokens a second that a model writes on the CPU, beside nanoGPT's model at equal size if it is there.

    make bench BENCH=generation
    make bench BENCH=generation ARGS="--nanogpt DIR"    # DIR: a checkout of nanoGPT, for its model.py

One text of 500 tokens, as nanoGPT's sample.py writes it (temperature 0.8, top_k 200), by one core;
and then many texts at once. All take turns in one process. Machines change speed, so the time of a
token is the least that it took in any round, token by token.
"""

import argparse
import contextlib
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lmtemplate.generate import generate_batch
from lmtemplate.models import GPT, GPT2

SIZES = {
    "0.8M": ({"n_layer": 4, "n_head": 4, "n_embd": 128}, 64),
    "10.6M": ({"n_layer": 6, "n_head": 6, "n_embd": 384}, 256),
}
VOCABULARY = 65  # as in nanoGPT's tiny Shakespeare
TOKENS = 500
TEXTS = 32  # at once
HOW = {"temperature": 0.8, "top_k": 200}


def ours(kind: type, size: str, texts: int) -> Callable[[], Iterator[Any]]:
    shape, block = SIZES[size]
    net = kind(VOCABULARY, block, **shape).eval()
    starts, seeds = [[0]] * texts, range(texts)
    return lambda: generate_batch(net, starts, TOKENS, seeds=seeds, **HOW)  # type: ignore[arg-type]


def nanogpt(folder: Path, size: str) -> Callable[[], Iterator[Any]]:
    spec = importlib.util.spec_from_file_location("nanogpt", folder / "model.py")
    if spec is None or spec.loader is None or not (folder / "model.py").is_file():
        raise SystemExit(f"error: {folder} has no model.py; name a checkout of nanoGPT")
    module = sys.modules["nanogpt"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape, block = SIZES[size]
    config = module.GPTConfig(block_size=block, vocab_size=VOCABULARY, dropout=0.0, **shape)
    with contextlib.redirect_stdout(io.StringIO()):  # it counts its parameters aloud
        net = module.GPT(config).eval()

    def write() -> Iterator[Any]:
        text = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(TOKENS):
            yield (text := net.generate(text, 1, **HOW))

    return write


def seconds(write: Callable[[], Iterator[Any]]) -> list[float]:
    times, before = list[float](), time.perf_counter()
    for _ in write():
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for size in SIZES:
        writers = {"nanoGPT": nanogpt(asked.nanogpt, size)} if asked.nanogpt else {}
        writers |= {"GPT2": ours(GPT2, size, 1), "GPT": ours(GPT, size, 1)}
        many = f"GPT, {TEXTS} texts at once"
        writers[many] = ours(GPT, size, TEXTS)
        least: dict[str, list[float]] = {name: [float("inf")] * TOKENS for name in writers}
        for _ in range(asked.rounds):
            for name, write in writers.items():
                least[name] = [min(p) for p in zip(least[name], seconds(write), strict=True)]
        print(f"{size} parameters, {TOKENS} tokens")
        for name, times in least.items():
            speed = TOKENS * (TEXTS if name == many else 1) / sum(times)
            ratio = f"{speed * sum(least['nanoGPT']) / TOKENS:8.1f}x" if asked.nanogpt else ""
            print(f"  {name:<24}{speed:9,.0f} tokens/s{ratio}", flush=True)


if __name__ == "__main__":
    main()
