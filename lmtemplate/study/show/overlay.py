"""Arms of runs -> one figure with all their curves, over steps, tokens, FLOPs or seconds."""

from typing import Any

import numpy as np

from lmtemplate.study.experiments.arms import Arm, Places, differ, positions
from lmtemplate.study.show.page import BITS, RunFiles, label, style_figure
from lmtemplate.study.show.plots import SERIES, Curve, curves_of

AXES = {  # the button's word, the axis' title
    "steps": ("steps", "optimizer steps"),
    "tokens": ("tokens", "tokens trained on"),
    "flops": ("FLOPs", "training FLOPs"),
    "seconds": ("seconds", "seconds of training"),
}
DASHES = ("solid", "dot", "dash", "dashdot")  # more arms than colors differ in these
VAL_LABEL = "validation loss"


def lines_of(run: RunFiles, in_bits: bool, alone: bool = True) -> dict[str, Curve]:
    """The curves to draw of a run: the validation's alone in bits per byte, and of many seeds."""
    if not in_bits:
        curves = {k: curve for k, curve in curves_of(run.record).items() if k != "learning rate"}
        return {k: curve for k, curve in curves.items() if alone or k == VAL_LABEL}
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


def overlay(arms: list[Arm], labels: list[str]) -> Any:
    """The figure: train thin, val thick, a color for each arm, buttons for the x axis."""
    import plotly.graph_objects as go

    figure, in_bits, places = go.Figure(), differ(arms, "tokenizer_sha256"), list[Places]()
    runs = [(index, run) for index, arm in enumerate(arms) for run in arm.runs]
    for index, run in runs:
        again, color = divmod(index, len(SERIES))
        look = {"color": SERIES[color], "dash": DASHES[again % len(DASHES)]}
        alone = len(arms[index].runs) == 1
        for name, (steps, values) in lines_of(run, in_bits, alone).items():
            thick = name == VAL_LABEL
            places.append(positions(run, steps))
            figure.add_scatter(
                x=places[-1]["steps"],
                y=values,
                name=label(labels[index]),
                legendgroup=str(index),
                showlegend=thick and run is arms[index].runs[0],
                mode="lines+markers" if thick else "lines",
                line={**look, "width": (3 if alone else 1.5) if thick else 1},
                opacity=1 if thick else 0.75,
                hovertemplate=f"{name} %{{y:.4f}} at %{{x:.4~s}}<extra>{label(run.name)}</extra>",
            )
    style_figure(figure, 500 + 25 * len(arms))
    figure.update_layout(
        updatemenus=[axis_menu(places)],
        margin={"t": 80, "b": 90},
        xaxis_title=AXES["steps"][1],
        yaxis_title="bits per byte" if in_bits else "loss (nats per token)",
    )
    return figure
