"""Runs -> a table of what differs and of their results, and one page with their curves overlaid."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate import metric_names
from lmtemplate.checkpoint.compatibility import differences
from lmtemplate.errors import ConfigError
from lmtemplate.record import Ints
from lmtemplate.run_dir import write_text
from lmtemplate.study.diagnose.diagnose import examine
from lmtemplate.study.show import page
from lmtemplate.study.show.page import BITS, NONE, RunFiles, style_figure
from lmtemplate.study.show.plots import SERIES, Curve, curves_of

AXES = {  # the button's word, the axis' title
    "steps": ("steps", "optimizer steps"),
    "tokens": ("tokens", "tokens trained on"),
    "flops": ("FLOPs", "training FLOPs"),
    "seconds": ("seconds", "seconds of training"),
}
DASHES = ("solid", "dot", "dash", "dashdot")  # more runs than colors differ in these
VAL_LABEL = "validation loss"
Rows = list[tuple[str, list[str]]]
Places = dict[str, list[float]]  # a curve's points on each axis


def verdict_of(run: RunFiles, allow: Sequence[str] = ()) -> str:
    """That of `diagnose`, in a few words: the first fault and how many more there are."""
    verdict = examine(run.folder, allow=allow).verdict
    faults = [found for found in verdict.findings if found.fault]
    if not faults:
        return verdict.headline if len(run.record) else NONE
    more = f" (+{len(faults) - 1})" if len(faults) > 1 else ""
    return faults[0].name.replace("_", " ") + more


def labels_of(runs: list[RunFiles]) -> list[str]:
    """A name for each run: its folder's, or its path where two are alike; shortened if unique."""
    names = [run.name for run in runs]
    labels = [
        name if names.count(name) == 1 else str(run.folder)
        for name, run in zip(names, runs, strict=True)
    ]
    short = [f"{name[:17]}…{name[-18:]}" if len(name) > 36 else name for name in labels]
    return short if len({*short}) == len(runs) else labels


def setting_rows(runs: list[RunFiles]) -> Rows:
    """Settings that differ between the runs, named as on the command line."""
    known = [run.settings for run in runs if run.settings]
    keys = sorted({key for other in known[1:] for key in differences(known[0], other)})

    def cells(key: str) -> list[str]:
        values = [run.settings.get(key, NONE) for run in runs]
        return [v if isinstance(v, str) else json.dumps(v, default=str) for v in values]

    names = {key: key.replace("init_args.", "").removesuffix(".class_path") for key in keys}
    return [(names[key], cells(key)) for key in keys if key != "run_dir"]


def differ(runs: list[RunFiles], key: str) -> bool:
    """Whether their manifests tell of different data: "fingerprint", or "tokenizer_sha256"."""
    return len({run.manifest.get("data", {}).get(key) for run in runs} - {None}) > 1


def notes_on(runs: list[RunFiles], labels: list[str]) -> list[str]:
    """What one must know before comparing the figures."""
    notes = []
    if differ(runs, "tokenizer_sha256"):
        notes.append(
            "The tokenizers differ, so losses per token cannot be compared. Compare bits per byte; "
            "the plot shows those."
        )
    elif differ(runs, "fingerprint"):
        notes.append("The data differ: each run was validated on its own text.")
    without = [name for name, run in zip(labels, runs, strict=True) if not run.flops_per_token]
    if without:
        notes.append(f"The FLOPs of {', '.join(without)} are unknown: no summary.json yet.")
    return notes


def positions(run: RunFiles, steps: Ints) -> Places:
    """The places of a run's steps on each axis; NaN where that is not known."""
    tokens = run.counted(metric_names.TOKENS, steps)
    return {
        "steps": steps.tolist(),
        "tokens": tokens.tolist(),
        "flops": (tokens * (run.flops_per_token or np.nan)).tolist(),
        "seconds": run.counted(metric_names.SECONDS, steps).tolist(),
    }


def lines_of(run: RunFiles, in_bits: bool) -> dict[str, Curve]:
    """The curves to draw of a run; in bits per byte there is no training loss."""
    if not in_bits:
        return {k: curve for k, curve in curves_of(run.record).items() if k != "learning rate"}
    steps, bits = run.logged(BITS)
    if BITS in run.record.initial:
        steps, bits = np.insert(steps, 0, 0), np.insert(bits, 0, run.record.initial[BITS])
    return {VAL_LABEL: (steps, bits)}


def axis_menu(places: list[Places]) -> dict[str, Any]:
    """Plotly's buttons, one for each axis, which move all curves."""
    buttons = [
        {
            "label": word,
            "method": "update",
            "args": [{"x": [x[axis] for x in places]}, {"xaxis.title.text": title}],
        }
        for axis, (word, title) in AXES.items()
    ]
    look = {"type": "buttons", "direction": "right", "bgcolor": "rgba(128,128,128,0.15)"}
    place = {"x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return {"buttons": buttons, **look, **place}


def overlay(runs: list[RunFiles], labels: list[str]) -> Any:
    """The figure: train thin, val thick, a color for each run, buttons for the x axis."""
    import plotly.graph_objects as go
    from markupsafe import escape

    figure, in_bits, places = go.Figure(), differ(runs, "tokenizer_sha256"), list[Places]()
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        again, color = divmod(index, len(SERIES))
        look = {"color": SERIES[color], "dash": DASHES[again % len(DASHES)]}
        for name, (steps, values) in lines_of(run, in_bits).items():
            thick = name == VAL_LABEL
            places.append(positions(run, steps))
            figure.add_scatter(
                x=places[-1]["steps"],
                y=values,
                name=str(escape(label)),  # plotly reads some HTML in a name
                legendgroup=str(index),
                showlegend=thick,
                mode="lines+markers" if thick else "lines",
                line={**look, "width": 3 if thick else 1},
                opacity=1 if thick else 0.75,
                hovertemplate=f"{name} %{{y:.4f}} at %{{x:.4~s}}",
            )
    style_figure(figure, 500 + 25 * len(runs))
    figure.update_layout(
        updatemenus=[axis_menu(places)],
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        margin={"t": 80, "b": 90},
        xaxis_title=AXES["steps"][1],
        yaxis_title="bits per byte" if in_bits else "loss (nats per token)",
    )
    return figure


def as_text(rows: Rows, labels: list[str], width: int) -> str:
    """The table for a terminal: one column for each run, in blocks that fit `width` characters."""
    names = ["", *(name for name, _ in rows)]
    first = max(map(len, names))
    left = [f"{name:<{first}}" for name in names]
    blocks = [left]
    for index, label in enumerate(labels):
        column = [label, *(cells[index] for _, cells in rows)]
        wide = max(map(len, column))
        if first < len(blocks[-1][0]) > width - wide - 2:
            blocks.append(left)
        blocks[-1] = [f"{a}  {b:>{wide}}" for a, b in zip(blocks[-1], column, strict=True)]
    return "\n\n".join("\n".join(line.rstrip() for line in block) for block in blocks)


def compare(
    runs: list[Path],
    output: Path = Path("compare.html"),
    allow: list[str] | None = None,
) -> None:
    """Print runs beside each other, and draw their curves over each other in one HTML page.

    Args:
        runs: run directories, two or more.
        output: the page to write; it opens without a network.
        allow: packages outside lmtemplate whose classes the checkpoints may name.
    """
    if len({run.resolve() for run in runs}) < max(2, len(runs)):
        named = " ".join(map(str, runs))
        raise ConfigError(f"compare needs two runs or more, each named once, got: {named}")
    found = [page.read_run(run) for run in runs]
    labels = labels_of(found)
    results = [{**page.figures_of(run), "verdict": verdict_of(run, allow or ())} for run in found]
    rows = setting_rows(found) + [(name, [one[name] for one in results]) for name in results[0]]
    notes = notes_on(found, labels)
    print(as_text(rows, labels, shutil.get_terminal_size().columns))
    print("", *notes, "", sep="\n" if notes else "")
    parts = {
        "rows": [(name, *cells) for name, cells in rows],
        "head": ["", *labels],
        "notes": notes,
        "curves": page.plot_html(overlay(found, labels)),
    }
    write_text(output, page.render("compare", f"{len(found)} runs beside each other", parts))
    print(f"curves: {output}")
