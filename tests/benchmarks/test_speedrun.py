"""A made-up run directory -> its result line."""

import json
from pathlib import Path

from benchmarks.speedrun import result, signature


def made_up_run(folder: Path, last_loss: float = 4.0) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    hardware = {"name": "a CPU", "threads": 2, "precision": "32-true"}
    manifest = {"hardware": hardware, "git": {"commit": "0123456789", "dirty": True}}
    summary = {"seconds": 59.94, "step": 20, "parameters": 1000}
    rows = [
        {"step": 10, "train/loss": 5.0, "val/loss": 4.5, "val/bits_per_byte": 1.4},
        {"step": 20, "train/loss": last_loss, "val/loss": 4.6, "val/bits_per_byte": 1.5},
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "checkpoints/training_metrics.jsonl").write_text(lines)
    return folder


def test_the_line_tells_the_best_validation_the_time_and_what_it_was_measured_on(
    tmp_path: Path,
) -> None:
    line = result(made_up_run(tmp_path / "run"), checked=False)
    assert line.startswith("speedrun: 1.4000 bits per byte in 59.9 s, 20 steps, 1,000 parameters |")
    assert "a CPU, 2 threads, 32-true | commit 01234567 with changes | signature" in line
    assert line.endswith("not reproduced yet")


def test_two_runs_have_one_signature_only_if_all_their_losses_are_equal(tmp_path: Path) -> None:
    lines = [
        result(made_up_run(tmp_path / str(number), loss), checked=True)
        for number, loss in enumerate((4.0, 4.0, 4.0000001))
    ]
    assert lines[0] == lines[1] != lines[2]
    assert signature({(1, "a"): 1.0, (2, "a"): 2.0}) == signature({(2, "a"): 2.0, (1, "a"): 1.0})
