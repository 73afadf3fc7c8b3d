"""Optimizers at work, as a page: on a textbook bowl, and on the true loss around a run's weights."""

import json as strict_json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lmtemplate.errors import ConfigError
from lmtemplate.run_dir import write_text
from lmtemplate.study.show.page import render
from lmtemplate.study.understand.bowl import bowl_parts
from lmtemplate.study.understand.path import Landscape, explore

Grid = Literal[5, 9, 17, 33, 65]


def finite(value: Any) -> Any:
    """A nest of plain values with null for each number that JSON cannot write."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sentences(found: Landscape) -> str:
    """The numbers of a landscape, for a terminal."""
    first, second, third = found.through
    where = f"step {third:,}" if third is not None else "a random direction"
    head = f"{'step':>8}  {'loss':>7}  {'on plane':>8}  {'off plane':>9}  {'sharpness':>15}  2/sharpness"
    rows = [
        f"{s.step:8,}  {s.loss:7.4f}  {s.loss_on_plane:8.4f}  {s.off_plane:9.3f}  "
        f"{s.sharpness:8.4g} ± {s.sharpness_error:4.2g}  {s.largest_stable_rate or math.nan:11.3g}"
        for s in found.snapshots
    ]
    return "\n".join(
        [
            f"plane through the weights of steps {first:,} and {second:,}, and {where}; 1 is the "
            f"distance of the first two, {found.surfaces[0].unit:.4g}",
            f"{found.share_in_plane:.1%} of the way from snapshot to snapshot lies in the plane",
            f"loss: nats per token over {found.tokens:,} validation tokens ({found.windows} windows)",
            head,
            *rows,
        ]
    )


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
    parts = {**bowl_parts(), "run": None, "found": None}
    if run and found:
        parts |= {"run": run.resolve().name, "found": finite(asdict(found))}
    write_text(output, render("landscape", "Training on a loss landscape", parts))
    if found and json:
        print(strict_json.dumps(finite(asdict(found)), indent=2, allow_nan=False))
        return
    if found:
        print(sentences(found))
    print(output)
