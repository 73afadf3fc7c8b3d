"""nanoGPT and configs/shakespeare_char.yaml on one text -> how much sooner ours has its loss.

    make bench BENCH=against_nanogpt ARGS="--nanogpt ../nanoGPT --data tinyshakespeare.txt --quick"

nanoGPT's train.py runs as it is, with the flags that its README gives for a CPU; its loss is that
of its checkpoint over all blocks of the validation text. Both read the same tokens, in turns with
each other. Times of training leave out validation and saving; end to end is from the start of the
process to its end, ours with the verdict and the report. nanoGPT fixes its seed in its code.
"""

import argparse
import json
import math
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmtemplate import metric_names
from lmtemplate.data.shards import Shards, read_index
from lmtemplate.record import read_record

ROOT = Path(__file__).parents[1]
README = (  # nanoGPT's line for a CPU
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=1 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --dropout=0.0"
)
# Runs where nanoGPT's modules can be imported: a checkpoint's mean loss per token.
SCORE = """
import sys, numpy, torch
from model import GPT, GPTConfig
checkpoint = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
net = GPT(GPTConfig(**checkpoint["model_args"])).eval().to(device)
net.load_state_dict(checkpoint["model"])
tokens = torch.from_numpy(numpy.fromfile(sys.argv[2], numpy.uint16).astype(numpy.int64)).to(device)
size, total = checkpoint["model_args"]["block_size"], 0.0
blocks = tokens.unfold(0, size + 1, size)[: int(sys.argv[3]) or None]
with torch.no_grad():
    for part in blocks.split(64):
        total += len(part) * net(part[:, :-1], part[:, 1:].contiguous())[1].item()
print(total / len(blocks))
"""


class Nano(NamedTuple):
    """A run of nanoGPT."""

    loss: float  # of the whole validation text, in nats per token
    training: float  # seconds
    whole: float  # seconds from start to end of its process


class Ours(NamedTuple):
    """A run of lmtemplate."""

    validations: tuple[tuple[int, float, float], ...]  # step, loss, seconds of training until then
    whole: float

    def seconds_to(self, loss: float) -> float | None:
        """Training until the first validation at or below the loss; None if there is none."""
        return next((seconds for _, reached, seconds in self.validations if reached <= loss), None)


class Round(NamedTuple):
    """One seed: nanoGPT, ours, and ours again for as long as nanoGPT trained."""

    nano: Nano
    ours: Ours
    equal: Ours


def nano_seconds(log: str) -> float:
    """Seconds that nanoGPT trained. A step that began with an evaluation counts like the others."""
    evaluated = set(re.findall(r"^step (\d+):", log, re.M))
    steps = re.findall(r"^iter (\d+): loss .*?, time ([\d.]+)ms", log, re.M)
    times = [float(time) / 1000 for step, time in steps if step not in evaluated]
    return sum(times) * len(steps) / len(times)


def as_ours(rows: Sequence[tuple[int, float, float]], whole: float) -> Ours:
    """(step, loss, seconds) of a record, whose clock leaves out the first step, which counts here."""
    return Ours(tuple((n, loss, s * n / (n - 1)) for n, loss, s in rows), whole)


def summary(rounds: Sequence[Round], bits: float) -> list[str]:
    """What the rounds came to, in medians; `bits` turns nats per token into bits per byte."""
    ours = statistics.median(one.equal.validations[-1][1] for one in rounds)
    nano = statistics.median(one.nano.loss for one in rounds)
    both = f"{ours:.4f} (nanoGPT {nano:.4f})", f"{ours * bits:.4f} (nanoGPT {nano * bits:.4f})"
    lines = [f"loss at equal time: {both[0]}; bits per byte: {both[1]}"]
    reached = [(one, one.ours.seconds_to(one.nano.loss)) for one in rounds]
    if missed := sum(seconds is None for _, seconds in reached):
        return [*lines, f"{missed} of {len(rounds)} seeds did not reach nanoGPT's loss"]
    training = statistics.median(one.nano.training / seconds for one, seconds in reached if seconds)
    whole = statistics.median(one.nano.whole / one.ours.whole for one in rounds)
    return [*lines, f"time to loss: {training:.1f}x", f"end to end: {whole:.1f}x"]


def row(seed: int, one: Round) -> str:
    loss, seconds, whole = one.nano
    text = f"seed {seed}: nanoGPT {loss:.4f} in {seconds:.1f} of {whole:.1f} s"
    for ours in (one.ours, one.equal):
        n, loss, seconds = ours.validations[-1]
        text += f"; ours {loss:.4f} in {n:,} steps, {seconds:.1f} of {ours.whole:.1f} s"
    return text


def run(words: Sequence[object], folder: Path, limit: float | None = None) -> tuple[str, float]:
    """What a process printed, and its seconds, no more than `limit`. Ends all where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command, start = [sys.executable, *map(str, words)], time.perf_counter()
    shown = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit
    )
    if shown.returncode:
        sys.exit(f"{command[1:4]} failed:\n{shown.stdout[-1000:]}{shown.stderr[-2000:]}")
    return shown.stdout, time.perf_counter() - start


def prepare(text: Path, folder: Path, *flags: object) -> float:
    """The same tokens for both of them; returns bits per byte of a nat."""
    words = ["-m", "lmtemplate", "prepare", "--input", text.resolve(), "--output", folder / "data"]
    run([*words, *flags], ROOT)
    index, vocab_size = read_index(folder / "data"), 0
    for split in ("train", "val"):
        tokens = Shards(folder / "data", split, index)
        ids = tokens.gather(np.arange(tokens.tokens))
        ids = ids[ids != index["eot_id"]]
        ids.astype(np.uint16).tofile(folder / f"{split}.bin")
        vocab_size = max(vocab_size, int(ids.max()) + 1)  # ours has an end of text as well
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": vocab_size}))
    validation = index["splits"]["val"]
    return float(validation["tokens"] / validation["bytes"] / math.log(2))


def train_nano(
    nano: Path, folder: Path, flags: str, steps: int, blocks: int = 0, limit: float | None = None
) -> Nano:
    """nanoGPT's train.py for so many steps; its loss is over all blocks, or over the first ones."""
    length = f"--max_iters={steps} --lr_decay_iters={steps} --eval_interval={min(steps, 250)}"
    where = [f"--dataset={folder}", f"--out_dir={folder}"]
    log, seconds = run(["train.py", *f"{flags} {length}".split(), *where], nano, limit)
    scored, _ = run(["-c", SCORE, folder / "ckpt.pt", folder / "val.bin", blocks], nano, limit)
    return Nano(float(scored.split()[-1]), nano_seconds(log), seconds)


def train_ours(
    folder: Path, name: str, *flags: object, steps: int | None = None, limit: float | None = None
) -> Ours:
    """A config as it is; with a number of steps, so long, validated at the end alone."""
    words = ["-m", "lmtemplate", "fit", *flags, "--data.path", folder / "data"]
    if steps:
        words += ["--trainer.max_steps", steps, "--trainer.val_check_interval", steps]
    _, seconds = run([*words, "--run_dir", folder / name], ROOT, limit)
    record = read_record(folder / name)
    clock = dict(
        zip(record.steps.tolist(), record.values[metric_names.TRAINING_SECONDS], strict=True)
    )
    losses = zip(*(column.tolist() for column in record.validations), strict=True)
    return as_ours([(step, loss, clock[step]) for step, loss in losses], seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--data", type=Path, required=True, help="one text file")
    parser.add_argument("--quick", action="store_true", help="one seed instead of three")
    parser.add_argument("--nano_steps", type=int, default=2000, help="of nanoGPT's recipe")
    parser.add_argument("--steps", type=int, help="of ours; the config's own if not given")
    asked, rounds = parser.parse_args(), list[Round]()
    with tempfile.TemporaryDirectory() as temporary:
        folder, size = Path(temporary), len(asked.data.read_text(encoding="utf-8"))
        share = 1 - int(size * 0.9) / size  # where nanoGPT splits
        bits = prepare(asked.data, folder, "--tokenizer=char", f"--val_ratio={share}")
        for seed in (1,) if asked.quick else (1, 2, 3):
            flags = ["--config=configs/shakespeare_char.yaml", "--model.compile=false"]
            flags += [f"--seed_everything={seed}"]
            nano = train_nano(asked.nanogpt.resolve(), folder, README, asked.nano_steps)
            ours = train_ours(folder, f"first-{seed}", *flags, steps=asked.steps)
            steps, _, seconds = ours.validations[-1]
            steps = max(2, int(steps * nano.training / seconds))
            equal = train_ours(folder, f"equal-{seed}", *flags, steps=steps)
            rounds.append(Round(nano, ours, equal))
            print(row(seed, rounds[-1]), flush=True)
        hardware = json.loads((folder / "first-1" / "manifest.json").read_text())["hardware"]
    print(", ".join(f"{name} {value}" for name, value in hardware.items()))
    print("\n".join(summary(rounds, bits)))


if __name__ == "__main__":
    main()
