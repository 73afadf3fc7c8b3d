"""A session on one machine -> its processes, each with a time limit, and the figures so far (see gpu.py)."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.against_nanogpt import ROOT

BUDGET_SECONDS, LIMIT_SECONDS = 570, 150  # of all rows, and of one process
NANO = """
import runpy, sys, torch
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
print("peak", torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
"""
TOY = [f"--model.net.{size}" for size in ("n_layer=2", "n_head=2", "n_embd=32")]
QUICK = ["--config=configs/quickstart.yaml", "--report=false", "--checkpoint=null"]
LARGE = [
    *("--config=configs/gpt2_124m.yaml", "--report=false", "--checkpoint=null", "--allow=examples"),
    *("--early_stopping=null", "--samples=null", "--tokens_per_step=null"),
    *("--model.net.dropout=0", "--model.schedule.warmup_steps=0", "--data.vocab_size=50304"),
    "--data.class_path=examples.token_files.TokenFiles",
]


class NotRunError(Exception):
    """Why a row has no figure."""


def printed(name: str, shown: str) -> float:
    """The number on the line that begins with this name; gpu_work.py prints such lines."""
    return float(re.findall(rf"^{name} (\S+)", shown, re.M)[-1])


@dataclass
class Session:
    """What was asked, and what the rows have measured so far."""

    folder: Path
    nanogpt: Path | None
    data: Path | None
    dry: bool
    begin: float = field(default_factory=time.monotonic)
    found: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """Seconds that the next process may take. Raises NotRunError if there are too few."""
        left = 3600 if self.dry else BUDGET_SECONDS + self.begin - time.monotonic()
        if left < 20:
            raise NotRunError("out of time")
        return left if self.dry else min(left, LIMIT_SECONDS)

    def run(self, *words: object, folder: Path = ROOT, code: int = 0) -> str:
        """What a process printed. Raises NotRunError where it fails or there is no time for it."""
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        shown = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=self.limit,
        )
        if shown.returncode != code:
            raise NotRunError(f"exit {shown.returncode}: {shown.stderr.strip()[-300:]}")
        return shown.stdout + shown.stderr

    def size(self, real: int, toy: int) -> int:
        return toy if self.dry else real

    def words(self, run: Path, flags: Sequence[str], steps: int) -> list[str]:
        """Of `lmtemplate fit`."""
        toy = [*TOY, "--data.max_val_blocks=8"] if self.dry else []
        length = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
        return [*flags, *length, f"--run_dir={run}", *toy]

    def fit(self, name: str, flags: Sequence[str], *more: str, steps: int) -> tuple[Path, str]:
        """`lmtemplate fit` of so many steps, validated at the end; its run, and what it printed."""
        words = [*self.words(self.folder / name, flags, steps), *more]
        return self.folder / name, self.run("-m", "benchmarks.gpu_work", "fit", *words)

    def speed(self, name: str, flags: Sequence[str], *more: str, steps: int) -> str:
        """The same as a figure: ms a step, tokens/s, share of the ceiling, memory, ratio."""
        run, shown = self.fit(name, flags, *more, steps=steps)
        told = json.loads((run / "summary.json").read_text())
        self.found["flops"] = told["flops"] / told["tokens"]
        rate = self.found[name] = told["tokens_per_second"]
        return self.figure(rate, told["tokens"] / told["step"], shown)

    def figure(self, rate: float, per_step: float, shown: str) -> str:
        """Tokens a second as text, beside what is known of the machine and of nanoGPT."""
        flops, ceiling, nano = map(self.found.get, ("flops", "ceiling", "nanogpt_124m"))
        text = f"{1000 * per_step / rate:.1f} ms a step, {rate:,.0f} tokens/s"
        text += f", {rate * flops / ceiling:.0%} of the ceiling" if flops and ceiling else ""
        return (
            text
            + f", {printed('peak', shown) / 1e9:.1f} GB"
            + (f", {rate / nano:.2f}x nanoGPT" if nano else "")
        )

    @property
    def random_tokens(self) -> list[str]:
        """Flags of training data of the large rows: ids alone count for speed."""
        generator = np.random.default_rng(0)
        for name, count in (("train", 4_000_000), ("val", 40_000)):
            path = self.folder / f"{name}.bin"
            if not path.exists():
                generator.integers(0, 50257, count, dtype=np.uint16).tofile(path)
        sizes = [
            f"--data.block_size={self.size(1024, 16)}",
            f"--data.batch_size={self.size(32, 2)}",
        ]
        compiled = [] if self.dry else ["--model.compile=true"]  # auto does not in so few steps
        paths = [f"--data.{name}={self.folder / name}.bin" for name in ("train", "val")]
        return [*LARGE, *paths, *sizes, *compiled]

    @property
    def quick(self) -> list[str]:
        """Flags of quickstart, whose text is prepared."""
        if not (self.folder / "sotu").exists():
            words = ["prepare", "--input=sotu-tiny", f"--output={self.folder / 'sotu'}"]
            self.run("-m", "lmtemplate", *words)
        return [*QUICK, f"--data.path={self.folder / 'sotu'}"]

    @property
    def with_checkpoints(self) -> list[str]:
        """The same, saved as `make train` does."""
        return [flag for flag in self.quick if not flag.startswith("--checkpoint")]

    def nano(self, flags: str) -> str:
        """What nanoGPT's train.py printed, and its peak memory."""
        if self.nanogpt is None:
            raise NotRunError("no --nanogpt")
        where = [f"--dataset={self.folder}", f"--out_dir={self.folder / 'nano'}"]
        toy = "--device=cpu --compile=False --n_layer=2 --n_head=2 --n_embd=32 --block_size=16"
        toy += " --batch_size=2" if self.dry else ""
        more = toy.split() if self.dry else ["--batch_size=32", "--compile=True"]
        return self.run("-c", NANO, *flags.split(), *where, *more, folder=self.nanogpt)
