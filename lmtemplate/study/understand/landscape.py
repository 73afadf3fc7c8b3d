"""Optimizers at work, as a page: on a textbook bowl, and on the true loss around a run's weights."""

import json as strict_json
from pathlib import Path
from typing import Literal

from lmtemplate.errors import ConfigError
from lmtemplate.run_dir import write_text
from lmtemplate.study.progress import progress_shown
from lmtemplate.study.show.page import render
from lmtemplate.study.understand.bowl import bowl_parts, schedule_data
from lmtemplate.study.understand.path import explore
from lmtemplate.study.understand.tables import Found, as_lines, as_table

Grid = Literal[5, 9, 17, 33, 65]

BALL_STEPS = 100
BALL_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
RANDOM_START = (-0.75, 0.6)  # on the map of random directions


def finite(value: Found) -> Found:
    """Plain values with null for each number that JSON cannot write, and text for each key."""
    plain: Found = strict_json.loads(strict_json.dumps(value), parse_constant=lambda _: None)
    return plain


def in_words(found: Found) -> str:
    """What was measured, for a terminal."""
    first, second, third = found["through"]
    where = "a random direction" if third is None else f"step {third:,}"
    notes = [
        f"The plane goes through the weights of steps {first:,} and {second:,}, "
        f"{found['surfaces'][0]['unit']:.4g} apart, and {where}. {found['share_in_plane']:.1%} of the "
        "way from snapshot to snapshot lies in it.",
        f"Losses are means over {found['tokens']:,} validation tokens ({found['windows']} windows), "
        "in nats.",
    ]
    return as_lines(
        "the loss around the weights", notes, {"Snapshots": as_table(found["snapshots"])}
    )


def surface_data(found: Found) -> Found:
    """What the panel of a run draws: all that was measured, and what the balls need."""
    first, steps = found["snapshots"][0], range(BALL_STEPS)
    schedules = schedule_data(BALL_STEPS // 10, steps, BALL_STEPS)
    return finite(found) | {
        "starts": [(first["x"], first["y"]), RANDOM_START],
        "steps": BALL_STEPS,
        "rates": BALL_RATES,
        "factors": {"none": [1.0] * BALL_STEPS, **schedules},
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
    with progress_shown(unless=json):
        found = explore(run, grid, windows, prompt, allow or ()) if run else {}
    parts = {**bowl_parts(), "run": run and run.resolve().name, "found": None}
    if found:
        parts |= {"found": surface_data(found), "snapshots": as_table(found["snapshots"])}
    write_text(output, render("landscape", "Training on a loss landscape", parts))
    if json:
        print(strict_json.dumps(finite(found), indent=2, allow_nan=False))
        return
    if found:
        print(in_words(found), end="\n\n")
    print(output)
