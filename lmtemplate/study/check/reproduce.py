"""A run's manifest -> the same run again, and whether its losses are the same bit for bit."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lmtemplate import metric_names
from lmtemplate.data.shards import read_index
from lmtemplate.errors import CheckpointError, ConfigError, DataError
from lmtemplate.record import read_lines
from lmtemplate.run_dir import manifest as describe
from lmtemplate.run_length import LIMITS
from lmtemplate.study.run_files import command, read_manifest, read_summary

# Settings that no loss depends on.
HARMLESS = ("run_dir", "report", "checkpoint", "samples", "signals", "throughput", "watch")


def recorded_settings(run: Path) -> tuple[dict[str, Any], int]:
    """The settings that a run began with, and the last step that was made with them.

    Raises CheckpointError where there is no manifest, or nothing to compare.
    """
    manifest, summary, recorded = read_manifest(run), read_summary(run), losses(run, None)
    if not all(name in manifest for name in ("settings", "data", "hardware")):
        raise CheckpointError(f"no manifest {run / 'manifest.json'}; is {run} a run directory?")
    if not recorded:
        raise CheckpointError(f"{run} has no record of its losses, so there is nothing to compare")
    settings, last_step = dict(manifest["settings"]), max(step for step, _ in recorded)
    changes = [
        start.get("step") or 0
        for start in manifest.get("resumed", [])
        if start.get("environment")
        or any(not key.startswith(HARMLESS) for key in start.get("changed", {}))
    ]
    if summary.get("max_steps") and not changes:
        # in steps: other limits may come to other lengths here, as a measured time does
        settings["trainer"] = {**settings.get("trainer", {}), "max_steps": summary["max_steps"]}
        settings.update({name: None for name in LIMITS if "." not in name})
    return settings, min([*changes, last_step])


def surroundings(run: Path) -> list[str]:
    """Code, versions and system that are not as when the run was made: "what: before -> now"."""
    before, now = read_manifest(run), describe(None, {}, {})
    versions, git = before.get("versions", {}), before.get("git", {})
    rows = [(f"version of {k}", v, now["versions"].get(k)) for k, v in versions.items()]
    rows.append(("git commit", git.get("commit"), now["git"]["commit"]))
    rows += [(name, before.get(name), now[name]) for name in ("python", "platform")]
    differing = [f"{what}: {old} -> {new}" for what, old, new in rows if old != new]
    return differing + ["the code had changes that were not committed"] * bool(git.get("dirty"))


def other_hardware(run: Path, again: Path) -> list[str]:
    """Device, precision, threads that are not as when the run was made."""
    before, now = (read_manifest(of).get("hardware", {}) for of in (run, again))
    return [f"{k}: {before[k]} -> {now.get(k)}" for k in before if before[k] != now.get(k)]


def check_data(run: Path, settings: dict[str, Any]) -> None:
    """Raises DataError where the run's corpus is missing or another one."""
    folder = settings.get("data", {}).get("path")  # none for data of a class of one's own
    if folder and read_index(Path(folder))["fingerprint"] != read_manifest(run)["data"].get(
        "fingerprint"
    ):
        raise DataError(f"{folder} is not the corpus of {run}; prepare that one again")


def losses(run: Path, last_step: int | None) -> dict[tuple[int, str], float]:
    """(step, name) -> loss, for all that the record has up to a step."""
    return {
        (entry["step"], name): entry[name]
        for entry in read_lines(run)
        for name in (metric_names.TRAIN_LOSS, metric_names.VAL_LOSS)
        if name in entry and (last_step is None or entry["step"] <= last_step)
    }


def verdict(first: Path, again: Path, last_step: int) -> tuple[bool, str]:
    """Whether all losses up to a step are the same, and a sentence about it."""
    before, now = losses(first, last_step), losses(again, last_step)
    common = sorted(before.keys() & now.keys())
    differing = [key for key in common if before[key] != now[key]]
    if differing:
        step, name = differing[0]
        largest = max(abs(before[key] - now[key]) for key in differing)
        first_one = f"{name} at step {step:,}: {before[step, name]!r} -> {now[step, name]!r}"
        return False, (
            f"{len(differing):,} of {len(common):,} losses differ, first {first_one}; the largest "
            f"difference is {largest:.3g}"
        )
    # a run that was ended early has a last row, and a validation, that nobody planned
    alone = [step for step, _ in before.keys() ^ now.keys() if step < last_step]
    if not common or alone:
        same = f"{len(common):,} losses are the same"
        return False, f"{same}, but {len(alone):,} are in one run alone"
    return True, f"all {len(common):,} losses up to step {last_step:,} are the same, bit for bit"


def repeat(settings: dict[str, Any], again: Path, threads: int, allow: list[str]) -> int:
    """Train in a child process; returns its exit code."""
    from lmtemplate.cli_classes import to_yaml

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(to_yaml(settings), encoding="utf-8")
        words = ["fit", "--config", str(config), "--run_dir", str(again), "--report", "false"]
        words += [word for package in allow for word in ("--allow", package)]
        # sums of floats depend on how many threads share them
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        return subprocess.run(command(*words), env=environment, check=False).returncode


def reproduce(run: Path, output: Path | None = None, allow: list[str] | None = None) -> None:
    """Repeat a run from its manifest, and say whether the losses match bit for bit.

    Exits with 0 if they do, 1 if they do not.

    Args:
        run: run directory.
        output: directory of the repeated run; RUN-again if not given.
        allow: packages outside lmtemplate whose classes the run's config names.
    """
    settings, last_step = recorded_settings(run)
    check_data(run, settings)
    again = output or run.with_name(f"{run.name}-again")
    if again.exists():
        raise ConfigError(f"{again} is there already; remove it, or name another with --output")
    for row in surroundings(run):
        print(f"  differs: {row}")
    threads = read_manifest(run)["hardware"].get("threads") or 1
    code = repeat(settings, again, threads, allow or [])
    if code:
        sys.exit(code)
    for row in other_hardware(run, again):
        print(f"  differs: {row}")
    same, sentence = verdict(run, again, last_step)
    print(f"{run} and {again}: {sentence}")
    sys.exit(0 if same else 1)
