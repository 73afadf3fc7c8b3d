"""Run directory -> its landscape: planes through its own path and around its best weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmtemplate.data.shards import file_sha256
from lmtemplate.errors import CheckpointError
from lmtemplate.study.diagnose.artifacts import open_model, open_run_corpus
from lmtemplate.study.progress import pieces
from lmtemplate.study.understand.snapshots import continuation, snapshot_files
from lmtemplate.study.understand.surface import (
    DRAW_SEED,
    Kept,
    NetOnText,
    Plane,
    measure_surface,
    orthogonal,
    plane_through,
    random_direction,
)

CACHE = "landscape_numbers.json"  # in the run directory
OFF_LINE = 1e-3  # a third point is at least this share of the first two's distance off their line
MAP_MARGIN = 0.4  # of a map around the path, as a share of the path's extent
TEXT_TOKENS = 60


def choose_plane(
    measured: NetOnText, files: dict[int, Path], best: int
) -> tuple[Plane, tuple[int, int, int | None]]:
    """The plane through start, best and end of a path, and the steps that it goes through.

    Where these are fewer than three points, or lie on a line, the snapshot furthest off the line
    is the third; where there is none, a random direction. Raises CheckpointError.
    """
    steps = [*files]
    second = best if best != steps[0] else steps[-1]
    start, goal = measured.read(files[steps[0]]), measured.read(files[second])
    unit = (goal - start).norm().item()
    if not 0 < unit < math.inf:
        raise CheckpointError(
            f"the weights of steps {steps[0]:,} and {second:,} are {unit:g} apart: no plane is there"
        )
    line = (goal - start) / unit
    third, step = goal + random_direction(measured.net, DRAW_SEED), None  # of the net just read
    furthest = OFF_LINE * unit
    for other in steps[-1:] + steps[1:-1]:
        weights = measured.read(files[other])
        away = orthogonal(weights - start, line).norm().item()
        if away > furthest:
            third, step, furthest = weights, other, away
        if step == steps[-1]:
            break
    return plane_through(start, goal, third), (steps[0], second, step)


def measure_path(
    measured: NetOnText, sharp: NetOnText, files: dict[int, Path], plane: Plane, kept: Kept
) -> tuple[list[dict[str, Any]], float]:
    """Each snapshot, and the share of the way from one to the next that lies in the plane.

    Of a snapshot: the nearest point x, y of the plane and its distance, in units of the plane;
    losses here and there, in nats per token; the largest eigenvalue of the loss's Hessian, by how
    much it may be off, and 2 over it, the largest stable rate of plain gradient descent.
    """
    snapshots, before = list[dict[str, Any]](), Tensor()
    inside = whole = 0.0
    for step, path in pieces([*files.items()], "sharpness along the path"):
        weights = measured.read(path)
        x, y = plane.place(weights)
        nearest = plane.at(x, y)
        names = f"sharpness {step}", f"sharpness error {step}"
        if not {*names} <= kept.numbers.keys():
            kept.numbers |= zip(names, sharp.sharpness(weights), strict=True)
        largest, error = (kept.numbers[name] for name in names)
        if snapshots:
            inside += plane.unit * math.hypot(x - snapshots[-1]["x"], y - snapshots[-1]["y"])
            whole += (weights - before).norm().item()
        snapshots.append(
            {
                "step": step,
                "x": x,
                "y": y,
                "off_plane": (weights - nearest).norm().item() / plane.unit,
                "loss": kept.get(f"loss {step}", measured.loss, weights),
                "loss_on_plane": kept.get(f"loss near {step}", measured.loss, nearest),
                "sharpness": largest,
                "sharpness_error": error,
                "largest_stable_rate": 2 / largest if largest > 0 else None,
            }
        )
        before = weights
        kept.save()
    return snapshots, inside / whole


def square(xs: Sequence[float], ys: Sequence[float], size: int) -> tuple[list[float], list[float]]:
    """Evenly spaced x and y of a square around these points, so that both axes have one scale.

    Rounded, so that the losses at them are found again in the cache.
    """
    middles = [(min(values) + max(values)) / 2 for values in (xs, ys)]
    half = (0.5 + MAP_MARGIN) * max(max(values) - min(values) for values in (xs, ys))
    around = torch.linspace(-half, half, size, dtype=torch.float64).tolist()
    x, y = ([round(middle + way, 5) for way in around] for middle in middles)
    return x, y


def explore(
    run: Path, grid: int, windows: int, prompt: str, allow: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure what the landscape of a run shows. Raises UserError where something is missing.

    `through` are the steps whose weights span the plane, None for a random direction; `texts` what
    the weights of a step write.
    """
    files, model, corpus = snapshot_files(run), open_model(run, "best", allow), open_run_corpus(run)
    inputs, targets, _ = corpus.batch("val", model.net.block_size, windows)
    measured = NetOnText(model.net, inputs, targets)
    sharp = NetOnText(model.net, inputs[::2], targets[::2])  # a product costs six times a loss
    depends = {
        "weights": {str(step): file_sha256(path) for step, path in files.items()},
        "corpus": corpus.index["fingerprint"],
        "windows": windows,
    }
    kept = Kept(run / CACHE, depends)
    plane, through = choose_plane(measured, files, model.step)
    snapshots, share = measure_path(measured, sharp, files, plane, kept)
    x, y = square([s["x"] for s in snapshots], [s["y"] for s in snapshots], grid)
    surfaces = [measure_surface("the run's path", measured, plane, x, y, kept)]
    best = measured.read(files[model.step])
    axes = torch.stack([random_direction(model.net, DRAW_SEED + n) for n in (1, 2)])
    wide = torch.linspace(-1, 1, grid // 2 + 1, dtype=torch.float64).tolist()
    around = Plane(best, axes)
    surfaces.append(measure_surface("random directions", measured, around, wide, wide, kept))
    texts = dict[int, str]()
    for step, path in files.items():
        measured.read(path)
        more = continuation(model.net, model.tokenizer, prompt, TEXT_TOKENS, seed=DRAW_SEED)
        texts[step] = prompt + more
    return {
        "through": through,
        "best": model.step,
        "share_in_plane": share,
        "windows": len(inputs),
        "tokens": measured.tokens,
        "snapshots": snapshots,
        "surfaces": surfaces,
        "texts": texts,
    }
