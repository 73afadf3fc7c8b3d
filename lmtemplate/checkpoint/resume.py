"""A run's checkpoints -> which is the best, which stay, and which one a new start loads."""

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lmtemplate.checkpoint.files import CheckpointDict, damage, file_name, load_sound, set_sum
from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.run_dir import folder_of, is_used, read_json, refuse_links, write_json

ResumeMode = Literal["never", "auto", "must"]


class Resumed(NamedTuple):
    """A checkpoint to go on from: verified and loaded once, and handed on."""

    path: Path
    checkpoint: CheckpointDict


def steps_saved(run: Path) -> list[int]:
    """Steps of the run's checkpoints, ascending."""
    names = [re.fullmatch(r"step-(\d{9,})\.ckpt", p.name) for p in folder_of(run).glob("step-*")]
    return sorted(int(name[1]) for name in names if name)


def read_best(run: Path) -> dict[str, Any] | None:
    """What best.json says: step, val_loss, file, and the loss before step 1 if there was one.

    Raises CheckpointError where it names no checkpoint.
    """
    path = folder_of(run) / "best.json"
    if not path.is_file():
        return None
    match read_json(path):
        case {"step": int(n), "val_loss": float(x), **more} if 0 <= n < 2**53 and abs(x) < 1e300:
            before = more.get("initial_val_loss")
            initial = before if isinstance(before, float) else None
            return {"step": n, "val_loss": x, "file": file_name(n), "initial_val_loss": initial}
    raise CheckpointError(f"{path} names no checkpoint; remove it, and the latest one is taken")


def write_best(run: Path, step: int, val_loss: float, initial: float | None = None) -> None:
    """Point at the best checkpoint so far; `initial` is the validation loss before step 1."""
    best = {"step": step, "val_loss": val_loss, "file": file_name(step)}
    write_json(folder_of(run) / "best.json", {**best, "initial_val_loss": initial})


def prune(run: Path, newest: int, best: int | None, keep: int = 2) -> None:
    """Delete all checkpoints up to step `newest` but the last `keep` and `best`. Raises OSError."""
    # later steps were written before a resume that could not read them: they stay
    steps = [step for step in steps_saved(run) if step <= newest]
    kept = {*steps[-keep:], best}
    gone = [folder_of(run) / file_name(step) for step in steps if step not in kept]
    for path in gone:
        path.unlink(missing_ok=True)
    if gone:
        set_sum(folder_of(run))


def clear_leftovers(run: Path) -> None:
    """Delete the temporary files that a kill in the middle of a write has left in a run."""
    folders = (run, folder_of(run), folder_of(run) / "milestones")
    for folder in folders if (run / "manifest.json").is_file() else ():
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def refuse_strange(run: Path) -> None:
    """Raises ConfigError for a run with links out of it, or with what Lightning loads by itself."""
    refuse_links(run)
    if found := next(run.glob("hpc_ckpt_*"), None):  # within a SLURM job
        raise ConfigError(f"{found}: Lightning would go on from it, whatever it holds; remove it")


def resolve(run: Path, which: str) -> Path:
    """`best`, `latest` or a path -> file. Raises CheckpointError if there is none, ConfigError."""
    refuse_strange(run)
    if which not in ("best", "latest"):
        return Path(which)
    if not run.is_dir():
        raise CheckpointError(f"no run {run}; a run directory is what `lmtemplate fit` has made")
    best = read_best(run) if which == "best" else None
    steps = [best["step"]] if best else steps_saved(run)
    if not steps:
        raise CheckpointError(f"no checkpoint in {folder_of(run)}; train first: lmtemplate fit")
    return folder_of(run) / file_name(steps[-1])


def _newest_sound(run: Path) -> Resumed | None:
    """The newest checkpoint that is not damaged; damaged ones after it are set aside and named."""
    damaged = dict[Path, str]()
    for step in reversed(steps_saved(run)):
        path = folder_of(run) / file_name(step)
        if problem := damage(path):
            damaged[path] = problem
            continue
        for bad, why in damaged.items():
            with contextlib.suppress(OSError):  # another process of this run was faster
                bad.replace(f"{bad}.corrupt")  # a name that nothing reads
            print(f"{bad} is damaged ({why}), now {bad.name}.corrupt; going on from step {step:,}")
        return Resumed(path, load_sound(path))
    lost = f"damaged (the newest: {next(iter(damaged.values()))})" if damaged else "gone"
    if damaged or (folder_of(run) / "best.json").exists():
        # damaged ones keep their names: without any, the next start would begin at step 0
        anew = "start anew with another --run_dir"
        if milestones := sorted((folder_of(run) / "milestones").glob("step-*.ckpt")):
            anew += f" (from its last weights: --init_from {shlex.quote(str(milestones[-1]))})"
        raise CheckpointError(f"all checkpoints in {folder_of(run)} are {lost}; {anew}")
    return None


def resume_from(run: Path, mode: ResumeMode) -> Resumed | None:
    """The checkpoint that a new start in this directory continues; None to begin at step 0.

    Raises ConfigError for a folder of another kind, CheckpointError where no checkpoint is sound.
    """
    refuse_strange(run)
    if mode == "never" and is_used(run):
        raise ConfigError(
            f"run directory {run} holds a run already; continue it with "
            f"make resume {shlex.quote(f'RUN={run}')} (or add --resume auto), or start anew with "
            "another --run_dir"
        )
    resumed = None if mode == "never" else _newest_sound(run)
    there = [name for name in ("config.yaml", "summary.json") if (run / name).exists()]
    if resumed is None and there and not (run / "manifest.json").is_file():
        raise ConfigError(
            f"{run} holds a {there[0]} and no manifest.json, so it is no run; move that away, or "
            "name another with --run_dir"
        )
    if resumed is None and mode == "must":
        raise CheckpointError(
            f"no checkpoint in {folder_of(run)}; begin it with --resume auto (as make train does), "
            "or name the directory of the run to continue with --run_dir"
        )
    return resumed
