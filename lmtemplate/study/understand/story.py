"""The numbers of one training step -> tables, for a terminal and for RUN/explain.html."""

from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.run_dir import write_text
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import INK, SERIES
from lmtemplate.study.understand.tables import (
    Found,
    TextTable,
    as_lines,
    as_table,
    pairs,
    shown_token,
)
from lmtemplate.study.understand.update import FORMULAS

BLUE, ORANGE, GREEN = SERIES[:3]
DECIMALS = 4  # of a number in a picture
TITLES = {
    "worked_example": 'Five made-up words after "The cat sat": "on" follows; by the same code',
    "stages": "Forward: from tokens to logits",
    "predictions": "Predictions: p of the next token, and the loss, -ln p",
    "logit_gradient": "Gradient at the logits, where the loss is largest",
    "gradient_norms": "Gradient norms, each of which is the slope along the gradient",
    "after": "After the step: loss of the same tokens; foretold: gradient · movement, summed",
    "differences": "By hand and by torch: the largest differences, as a share of numbers above 1",
}


def update_table(update: Found) -> TextTable:
    """One weight on its way through the optimizer: what, and its number."""
    names = {"lr": "lr", "momentum": "mu", "weight_decay": "wd", "eps": "eps", "betas": "b1, b2"}
    settings = {names.get(name, name): value for name, value in update["settings"].items()}
    shown = [(FORMULAS[name], f"{value:.9g}") for name, value in update["values"].items()]
    return TextTable((), [*pairs(settings).rows, *shown])


def step_tables(found: Found) -> dict[str, TextTable]:
    """Key of TITLES, or the title of an update -> table, in the order of the step."""
    example, gradient = found["worked_example"], found["logit_gradient"]
    mean = {"read": "mean", "loss": found["loss"], "likeliest": f"e^loss {found['perplexity']:.2f}"}
    total = {"layer": "all", "norm": found["gradient_norm"]}
    stages = {stage["name"] for stage in found["stages"]}
    apart = {name: value for name, value in found["differences"].items() if name not in stages}
    return {
        "worked_example": as_table([*example["rows"], {"token": f"loss {example['loss']:.2f}"}]),
        "stages": as_table(found["stages"]),
        "predictions": as_table([*found["predictions"], mean]),
        "logit_gradient": as_table([*gradient["rows"], gradient["sum"]]),
        "gradient_norms": as_table([*found["gradient_norms"], total]),
        **{
            f"Update of {one['parameter']}[{', '.join(map(str, one['place']))}]": update_table(one)
            for one in found["updates"]
        },
        "after": pairs(found["after"]),
        "differences": pairs({**apart, "of all": found["largest_difference"]}),
    }


def walk_through(found: Found) -> str:
    """The whole step for a terminal."""
    net, optimizer = (found[key].rpartition(".")[2] for key in ("net", "optimizer"))
    title = f"One step of {found['run']}, after step {found['step']:,}: {net}, {optimizer}"
    tokens = " ".join(map(shown_token, found["tokens"]))
    notes = [*found["notes"], f"Tokens, each of which is predicted from those before it: {tokens}"]
    return as_lines(title, notes, {TITLES.get(k, k): t for k, t in step_tables(found).items()})


def bars(rows: list[Found], name: str, value: str, colors: list[str] | str) -> Any:
    """A plot of one bar for each row; names may repeat."""
    import plotly.graph_objects as plotly

    names = [page.label(shown_token(row[name])) for row in rows]
    heights, places = [row[value] for row in rows], [*range(len(names))]
    figure = plotly.Figure()
    hover = "%{hovertext}: %{y:.4g}<extra></extra>"
    figure.add_bar(x=places, y=heights, marker_color=colors, hovertext=names, hovertemplate=hover)
    page.style_figure(figure, 340)
    figure.update_layout(margin={"t": 20, "b": 90})
    figure.update_xaxes(tickvals=places, ticktext=names, tickangle=-45)
    figure.update_yaxes(title=value, zeroline=True, zerolinecolor=INK)
    return page.plot_html(figure)


def attention_data(found: Found) -> dict[str, Any]:
    """Scores and weights of every head, for the script of the page; {} where none are known."""
    known = {name: np.round(of, DECIMALS).tolist() for name, of in found["attention"].items()}
    blocks = [*dict.fromkeys(name.partition(" ")[0] for name in known)]
    if not blocks:
        return {}
    scores, weights = ([known[f"{block} {of}"] for block in blocks] for of in ("scores", "weights"))
    read = map(shown_token, found["tokens"][: len(scores[0][0])])
    tokens = [page.label(f"{n} {token}") for n, token in enumerate(read)]
    return {"blocks": blocks, "scores": scores, "weights": weights, "tokens": tokens}


def write_story(found: Found, run: Path) -> Path:
    """Write RUN/explain.html. Raises DiskError."""
    name, target, gradient = run.resolve().name, run / "explain.html", found["logit_gradient"]
    colors = [GREEN if row["gradient"] < 0 else ORANGE for row in gradient["rows"]]
    parts = {
        "found": found,
        "name": name,
        "tables": step_tables(found),
        "tokens": [*map(shown_token, found["tokens"])],
        "attention": attention_data(found),
        "losses": bars(found["predictions"], "next", "loss", ORANGE),
        "slopes": bars(gradient["rows"], "token", "gradient", colors),
        "norms": bars(found["gradient_norms"], "layer", "norm", BLUE),
    }
    write_text(target, page.render("explain", f"{name}: one training step", parts))
    return target
