"""A run's manifest -> the same run again, and whether its losses are the same bit for bit."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shlex import quote
from typing import Any

from lmtemplate import metric_names
from lmtemplate.checkpoint.compatibility import differences
from lmtemplate.data.shards import read_index
from lmtemplate.errors import CheckpointError, ConfigError, DataError
from lmtemplate.plain_file import read_plain
from lmtemplate.record import read_lines
from lmtemplate.run_dir import manifest, refuse_links
from lmtemplate.run_length import LIMITS
from lmtemplate.study.run_files import DIFF, command, read_manifest, read_summary

# Settings that no loss depends on.
HARMLESS = ("run_dir", "report", "checkpoint", "samples", "signals", "throughput", "watch")
MOST_THREADS = 4096  # that a manifest of a stranger may ask for


def recorded_settings(run: Path) -> tuple[dict[str, Any], int]:
    """The settings that a run began with, and the last step that was made with them.

    Raises CheckpointError where there is no manifest, or nothing to compare.
    """
    refuse_links(run)
    made, summary, recorded = read_manifest(run), read_summary(run), losses(run, None)
    if not all(name in made for name in ("settings", "data", "hardware")):
        raise CheckpointError(f"no manifest {run / 'manifest.json'}; is {run} a run directory?")
    if not recorded:
        raise CheckpointError(f"{run} has no record of its losses, so there is nothing to compare")
    settings, last_step = dict(made["settings"]), max(step for step, _ in recorded)
    changes = [
        start.get("step") or 0
        for start in made.get("resumed", [])
        if start.get("environment")
        or any(not key.startswith(HARMLESS) for key in start.get("changed", {}))
    ]
    if summary.get("max_steps") and not changes:
        # in steps: other limits may come to other lengths here, as a measured time does
        settings["trainer"] = {**settings.get("trainer", {}), "max_steps": summary["max_steps"]}
        settings.update({name: None for name in LIMITS if "." not in name})
    return settings, min([*changes, last_step])


def differing(before: dict[str, Any], now: dict[str, Any], *names: str) -> list[str]:
    """What differs in these parts of two manifests: "versions.torch: 2.12 -> 2.13"."""
    old, new = ({name: of.get(name) for name in names} for of in (before, now))
    return [f"{key}: {one} -> {other}" for key, (one, other) in differences(old, new).items()]


def other_changes(run: Path, commit: str | None) -> list[str]:
    """Lines on changes that the run's code had beyond its commit; none if they are here as well.

    They are named, and not applied: a run that came from elsewhere could bring any program.
    """
    from lmtemplate.study.experiments.uncommitted import uncommitted_changes

    if not (kept := run / DIFF).is_file():
        return ["  differs: the code had changes that were not committed\n"]
    if read_plain(kept, errors="replace") == uncommitted_changes():
        return []
    # `git checkout .` would lose changes
    known = commit if re.fullmatch("[0-9a-f]{7,64}", str(commit)) else "COMMIT"
    how = f"git checkout {known}; git apply {quote(str(kept))}"
    return [f"  differs: the code had changes that were not committed; to have them: {how}\n"]


def check_data(run: Path, settings: dict[str, Any]) -> None:
    """Raises DataError where the run's corpus is missing or another one."""
    folder = settings.get("data", {}).get("path")  # none for data of a class of one's own
    recorded = read_manifest(run)["data"].get("fingerprint")
    if folder and read_index(Path(folder))["fingerprint"] != recorded:
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
    again = output or run.resolve().with_name(f"{run.resolve().name}-again")
    if again.exists():
        raise ConfigError(f"{again} is there already; remove it, or name another with --output")
    before = read_manifest(run)
    for row in differing(before, manifest(None, {}, {}), "git", "platform", "python", "versions"):
        print(f"  differs: {row}")
    if before.get("git", {}).get("dirty"):
        print(*other_changes(run, before["git"].get("commit")), sep="\n", end="")
    threads = before["hardware"].get("threads") or 1
    if not 0 < threads <= MOST_THREADS:
        raise CheckpointError(f"{run / 'manifest.json'}: no machine has {threads:,} threads")
    code = repeat(settings, again, threads, allow or [])
    if code:
        sys.exit(code)
    for row in differing(before, read_manifest(again), "hardware"):
        print(f"  differs: {row}")
    same, sentence = verdict(run, again, last_step)
    print(f"{run} and {again}: {sentence}")
    sys.exit(0 if same else 1)
