"""Does anything grow? Step time and memory along 100,000 steps; verbs on a record of 1,000,000 rows.

    make bench BENCH=growth
    make bench BENCH=growth ARGS="--steps 10000 --rows 100000"

The net is tiny and everything is on, so that what grows with the run would be seen. The seconds of
a step are those of the processor (median over stretches of 100 steps), for they hardly depend on
what else the machine does. Memory is what the process holds, at the ends of those stretches.
"""

import argparse
import contextlib
import io
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.overhead import watched_fit
from lmtemplate.__main__ import run

EVERY = 100  # steps of a stretch
WINDOW = 50  # stretches compared: steps 1,000 to 6,000 with the last 5,000


def resident() -> float:
    """Megabytes that this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def train(corpus: Path, folder: Path, steps: int) -> np.ndarray:
    """One `fit`; returns (seconds of the processor, megabytes) after each stretch, (N, 2)."""
    seen: list[tuple[float, float]] = []
    started = itertools.count()

    def watch() -> None:
        if next(started) % EVERY == 0:
            seen.append((time.process_time(), resident()))

    length = (f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps // 10}")
    watched_fit(corpus, folder, watch, *length, "--early_stopping=null")
    return np.array(seen)


def lengthen(folder: Path, rows: int, name: str, last: int) -> Path:
    """A copy of a run whose record has this many rows, as that of a long run would, up to a step."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    record = copy / "checkpoints/training_metrics.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    row = next(line for line in reversed(lines) if "train/loss" in line)
    noise = np.random.default_rng(0).normal(0, 0.02, rows)
    with record.open("w") as file:
        file.write(json.dumps(lines[0]) + "\n")
        for number in range(1, rows + 1):
            row["step"] = min(number, last)
            row["train/loss"] = 2 + 2 * number**-0.3 + noise[number - 1]
            file.write(json.dumps(row) + "\n")
            if number % (rows // 20) == 0:
                loss = 2 + 2 * number**-0.3
                file.write(json.dumps({"step": row["step"], "val/loss": loss}) + "\n")
    (copy / "checkpoints/training_metrics.json").unlink()
    return copy


def seconds(*words: str) -> float:
    """Seconds of a verb in a process of its own. An exit code of 1 is a verdict."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "lmtemplate", *words]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode > 1:
        raise SystemExit(ended.stderr)
    return time.perf_counter() - began


def until_card(folder: Path, steps: int) -> float:
    """Seconds until a run that goes on shows its card: all that it reads is read by then."""
    began = time.perf_counter()
    words = [f"--config={folder}/config.yaml", f"--run_dir={folder}", "--resume=must"]
    command = [sys.executable, "-u", "-m", "lmtemplate", "fit", *words]
    with subprocess.Popen(
        [*command, f"--trainer.max_steps={steps}"], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        next(line for line in child.stdout if line.startswith("training in"))
        took = time.perf_counter() - began
        child.kill()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()):
            run(["prepare", "--input=grammar:5000", f"--output={folder}/data", "--tokenizer=byte"])
        times, memory = train(folder / "data", folder / "run", asked.steps).T
        steps = 1000 * np.diff(times) / EVERY
        for name, values, unit in (("step", steps, "ms"), ("memory", memory, "MB")):
            begin, end = np.median(values[10 : 10 + WINDOW]), np.median(values[-WINDOW:])
            print(f"{name:<10} {begin:.2f} {unit} at first, {end:.2f} at {asked.steps:,} steps")
            print(f"{'':<10} {end / begin - 1:+.1%}")
        long = lengthen(folder / "run", asked.rows, "long", asked.rows)
        size = (long / "checkpoints/training_metrics.jsonl").stat().st_size / 1e6
        print(f"a record of {asked.rows:,} rows, {size:.0f} MB")
        for verb in ("diagnose", "report", "summary"):
            print(f"{verb:<10} {seconds(verb, str(long)):.1f} s")
        # what lies before its checkpoint stays; the card is printed before step 1
        resumed = [folder / "run", lengthen(folder / "run", asked.rows, "resumed", asked.steps)]
        brief, took = (until_card(one, asked.steps + 10) for one in resumed)
        print(f"{'resume':<10} {took:.1f} s to its card, {brief:.1f} without these rows")


if __name__ == "__main__":
    main()
