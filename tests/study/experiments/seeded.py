"""Runs of one recipe with several seeds, without training, for the tests of experiments."""

import json
from pathlib import Path

import yaml

from lmtemplate.study.experiments.arms import Arm, named_arm
from lmtemplate.study.show.page import read_run
from tests.study.show.test_page import write_run


def write_seed(folder: Path, seed: int, shift: float = 0.0, lr: float = 0.1) -> Path:
    """The run of `write_run` with a seed; all that it validated is `shift` bits per byte higher."""
    run = write_run(folder, lr=lr)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "seed_everything": seed}))
    path = run / "checkpoints" / "training_metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if "val/bits_per_byte" in line:
            line["val/bits_per_byte"] += shift
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def write_arm(folder: Path, shifts: list[float], lr: float = 0.1, first_seed: int = 1) -> Path:
    """A folder as `fit --seeds` leaves it: a run for each shift, the seeds counted up."""
    for seed, shift in enumerate(shifts, first_seed):
        write_seed(folder / f"seed-{seed}", seed, shift, lr)
    return folder


def arms_of(folders: list[Path]) -> list[Arm]:
    """Each run an arm of its own."""
    return [named_arm([read_run(folder)]) for folder in folders]
