"""A config -> the best bits per byte that it reaches in 60 s on this machine, as one line.

    make speedrun                          # quickstart's recipe
    make speedrun CONFIG=configs/mine.yaml # yours
    make speedrun ARGS=--check             # repeats that run from its manifest, and signs the line

The clock of `max_seconds` runs from before the first validation to the last step, validations
included, so that the line says what one gets, not what one could. The signature is a digest of
all losses of the run: who repeats it with the same code on the same kind of machine gets the same.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmtemplate import metric_names
from lmtemplate.record import read_lines, read_record
from lmtemplate.terminal import prepare_streams

RUN = Path("runs/speedrun")
SECONDS = 60


def signature(losses: Mapping[tuple[int, str], float]) -> str:
    """(step, name) -> loss, as a digest."""
    rows = sorted([step, name, loss] for (step, name), loss in losses.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]


def result(run: Path, checked: bool) -> str:
    """The line of a run."""
    summary, manifest = (
        json.loads((run / name).read_text()) for name in ("summary.json", "manifest.json")
    )
    bits = read_record(run).values[metric_names.VAL_BITS_PER_BYTE]
    hardware, git = manifest["hardware"], manifest.get("git") or {}
    names = (metric_names.TRAIN_LOSS, metric_names.VAL_LOSS)
    losses = {(e["step"], n): e[n] for e in read_lines(run) for n in names if n in e}
    return (
        f"speedrun: {min(bits[bits == bits]):.4f} bits per byte in {summary['seconds']:.1f} s, "
        f"{summary['step']:,} steps, {summary['parameters']:,} parameters | {hardware['name']}, "
        f"{hardware['threads']} threads, {hardware['precision']} | commit {str(git.get('commit'))[:8]}"
        f"{' with changes' if git.get('dirty') else ''} | signature {signature(losses)}, "
        f"{'reproduced bit for bit' if checked else 'not reproduced yet'}"
    )


def main() -> None:
    prepare_streams()  # --run_dir may name a run of a stranger
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", default="configs/quickstart.yaml", help="the recipe")
    parser.add_argument("--run_dir", type=Path, default=RUN, help="where the run is left")
    parser.add_argument("--check", action="store_true", help="repeat the run that is there")
    asked, more = parser.parse_known_args()
    words: list[Any] = [
        "fit",
        "--config",
        asked.config,
        "--run_dir",
        asked.run_dir,
        "--report=false",
    ]
    words += ["--trainer.max_steps=-1", f"--max_seconds={SECONDS}", "--early_stopping=null", *more]
    if asked.check:
        words = ["reproduce", asked.run_dir]
    code = subprocess.run([sys.executable, "-m", "lmtemplate", *map(str, words)]).returncode
    if code:
        sys.exit(code)
    print(result(asked.run_dir, asked.check))


if __name__ == "__main__":
    main()
