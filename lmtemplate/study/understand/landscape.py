"""Optimizers at work, as a page: on a textbook bowl, and on the true loss around a run's weights."""

import json as strict_json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lmtemplate.errors import ConfigError
from lmtemplate.run_dir import write_text
from lmtemplate.study.show.page import number, render
from lmtemplate.study.understand.bowl import bowl_parts, schedule_data
from lmtemplate.study.understand.path import Landscape, explore

Grid = Literal[5, 9, 17, 33, 65]

BALL_STEPS = 100
BALL_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
RANDOM_START = (-0.75, 0.6)  # on the map of random directions
SNAPSHOT_COLUMNS = ["step", "loss", "on the plane", "off the plane", "sharpness", "2 / sharpness"]


def finite(value: Any) -> Any:
    """A nest of plain values with null for each number that JSON cannot write."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def snapshot_rows(found: Landscape) -> list[list[str]]:
    """The numbers of each snapshot, in the order of SNAPSHOT_COLUMNS."""
    return [
        [
            f"{s.step:,}",
            f"{s.loss:.4f}",
            f"{s.loss_on_plane:.4f}",
            f"{s.off_plane:.3f}",
            f"{s.sharpness:.4g} ± {s.sharpness_error:.2g}",
            number(s.largest_stable_rate, ".3g"),
        ]
        for s in found.snapshots
    ]


def in_words(found: Landscape) -> str:
    """What was measured, for a terminal."""
    first, second, third = found.through
    where = "a random direction" if third is None else f"step {third:,}"
    table = [SNAPSHOT_COLUMNS, *snapshot_rows(found)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        [
            f"the plane goes through the weights of steps {first:,} and {second:,}, "
            f"{found.surfaces[0].unit:.4g} apart, and {where}",
            f"{found.share_in_plane:.1%} of the way from snapshot to snapshot lies in it",
            f"losses are means over {found.tokens:,} validation tokens ({found.windows} windows), "
            "in nats",
            *("  ".join(map(str.rjust, row, widths)) for row in table),
        ]
    )


def surface_data(found: Landscape) -> dict[str, Any]:
    """What the panel of a run draws: all that was measured, and what the balls need."""
    path = found.snapshots[0].x, found.snapshots[0].y
    warmup, steps = BALL_STEPS // 10, range(BALL_STEPS)
    return finite(asdict(found)) | {
        "starts": [path, RANDOM_START],
        "steps": BALL_STEPS,
        "rates": BALL_RATES,
        "factors": {"none": [1.0] * BALL_STEPS, **schedule_data(warmup, steps, BALL_STEPS)},
        "head": SNAPSHOT_COLUMNS,
        "rows": snapshot_rows(found),
    }


def landscape(
    run: Path | None = None,
    output: Path | None = None,
    grid: Grid = 17,
    windows: int = 16,
    prompt: str = "",
    json: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Write a web page, to be opened offline, on which a ball rolls down a loss landscape.

    Without a run, the landscape is a textbook's bowl. With one, a second map shows the true loss
    around the run's weights, on the plane through the start, best and end of its own path; it is
    computed point by point, and kept in the run directory.

    Args:
        run: run directory.
        output: HTML file to write; without it, landscape.html in the run directory.
        grid: points a side, at which the loss of the run's plane is computed.
        windows: sequences of the validation text over which a loss is the mean.
        prompt: text that each snapshot's weights continue; empty begins a new document.
        json: print one JSON object and nothing else.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    if windows < 1:
        raise ConfigError(f"--windows {windows} has to be 1 or more")
    if run is None and json:
        raise ConfigError("--json prints the numbers of a run: name its directory")
    output = output or (run or Path()) / "landscape.html"
    found = explore(run, grid, windows, prompt, allow or ()) if run else None
    parts = {**bowl_parts(), "run": run and run.resolve().name}
    parts["found"] = surface_data(found) if found else None
    write_text(output, render("landscape", "Training on a loss landscape", parts))
    if found and json:
        print(strict_json.dumps(finite(asdict(found)), indent=2, allow_nan=False))
        return
    if found:
        print(in_words(found))
    print(output)
