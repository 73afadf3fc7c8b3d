"""The numbers of one training step -> lines for a terminal, and a page to scroll through like a story.

Both print the same tables; the page is RUN/explain.html.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.run_dir import write_text
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import INK, SERIES
from lmtemplate.study.understand.update import FORMULAS

BLUE, ORANGE, GREEN = SERIES[:3]
LINE = 110  # characters
DECIMALS = 4  # of a number in a picture
Found = dict[str, Any]
TextTable = list[tuple[str, ...]]  # the first row has the heads of the columns
SPECTRA = ("ahead / its norm", "O")  # whose singular values are known of a Muon matrix


def figure_of(value: float) -> str:
    """About four digits: "0.1234", "12.34", "1.2e-07"."""
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def shown_token(text: str) -> str:
    """A token in which spaces and line ends can be seen."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns, two spaces apart."""
    known = [*rows]
    widths = [max(map(len, column)) for column in zip(*known, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in known]


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, LINE, initial_indent="  ", subsequent_indent="  ")


def gradient_table(gradient: Found, count: int) -> TextTable:
    """Token by token, p - onehot, which is divided by the number of places for the mean loss."""
    rows = [
        (shown_token(token), figure_of(p), f"{onehot:.0f}", f"{slope:+.4f}", figure_of(share))
        for token, p, onehot, slope, share in gradient["rows"]
    ]
    return [("", "p", "onehot", "p - onehot", f"/ {count}"), *rows]


def stage_table(found: Found) -> TextTable:
    head = ("stage", "formula", "shape", "mean ± spread", "first numbers of the last row")
    rows = [
        (
            stage["name"],
            stage["formula"],
            " × ".join(map(str, stage["shape"])),
            f"{figure_of(stage['mean'])} ± {figure_of(stage['deviation'])}",
            " ".join(map(figure_of, stage["last"])),
            f"{stage['difference']:.0e}" if "difference" in stage else "",
        )
        for stage in found["stages"]
    ]
    return [(*head, "difference from torch"), *rows]


def prediction_table(found: Found) -> TextTable:
    rows: TextTable = [("read", "next", "p", "-ln p", "likeliest")]
    for token, row in zip(found["tokens"][:-1], found["predictions"], strict=True):
        top = ", ".join(f"{shown_token(word)} {share:.1%}" for word, share in row["top"])
        numbers = figure_of(row["probability"]), f"{row['loss']:.3f}"
        rows.append((shown_token(token), shown_token(row["next"]), *numbers, top))
    return rows


def step_tables(found: Found) -> dict[str, TextTable]:
    """All tables but those of the updates."""
    norms = [
        (row["layer"], f"{row['weights']:,}", figure_of(row["norm"]), figure_of(row["slope"]))
        for row in found["gradient_norms"]
    ]
    stages = {stage["name"] for stage in found["stages"]}
    apart = [(k, f"{v:.1e}") for k, v in found["differences"].items() if k not in stages]
    return {
        "example": [row[:4] for row in gradient_table(found["worked_example"], 1)],
        "stages": stage_table(found),
        "predictions": prediction_table(found),
        "gradient": gradient_table(found["logit_gradient"], len(found["predictions"])),
        "norms": [("layer", "weights", "norm", "slope measured"), *norms],
        "differences": [("", "largest difference"), *apart],
    }


def update_title(update: Found) -> str:
    """Parameter and place, and the settings that the formulas use, as they write them."""
    names = {"lr": "lr", "momentum": "mu", "weight_decay": "wd", "eps": "eps"}
    known = update["settings"]
    parts = [f"{short} {known[name]:.4g}" for name, short in names.items() if known.get(name)]
    parts += ["b1 {:g}, b2 {:g}".format(*known["betas"])] if "betas" in known else []
    parts += [f"t {update['t']}"] if "t" in update else []
    return f"{update['parameter']}[{', '.join(map(str, update['place']))}] ({', '.join(parts)})"


def update_rows(update: Found) -> Iterator[tuple[str, str]]:
    """One weight on its way through the optimizer: what, and its number."""
    if update["values"]["gradient"] != update["gradient_before_clipping"]:
        yield "gradient, before clipping", figure_of(update["gradient_before_clipping"])
    for name, value in update["values"].items():
        exact = name in ("weight", "after")
        yield FORMULAS[name], f"{value:.9f}" if exact else figure_of(value)
        if name == "gradient":
            yield "  measured: (L(w + h) - L(w - h)) / 2h", figure_of(update["slope"])
    yield "w, after the optimizer of torch", f"{update['after_by_torch']:.9f}"
    if first := update.get("first_step"):
        yield "were it the first step of a run (t = 1): step", figure_of(first[0])
        yield "  and without bias correction", figure_of(first[1])
    for name, values in zip(SPECTRA, update.get("singular_values", ()), strict=False):
        ends = f"{figure_of(min(values))} {figure_of(max(values))}"
        yield f"singular values of {name}: smallest, largest", ends


def walk_through(found: Found) -> str:
    """The whole step for a terminal."""
    lines = {name: aligned(table) for name, table in step_tables(found).items()}
    gradient, after = found["logit_gradient"], found["after"]
    net, optimizer = (found[key].rpartition(".")[2] for key in ("net", "optimizer"))
    read, follows = map(shown_token, found["tokens"][gradient["place"] :][:2])
    parts = {
        f"One step of {found['run']}, after step {found['step']:,}: {net}, {optimizer}": [
            line for note in found["notes"] for line in wrapped(note)
        ],
        'First, by the same code, five made-up words after "The cat sat"; "on" follows': [
            *lines["example"],
            f"  loss = -ln 0.20 = {found['worked_example']['loss']:.2f}",
        ],
        "1 Tokens: each but the first is predicted from those before it": wrapped(
            " ".join(map(shown_token, found["tokens"]))
        ),
        "2 Forward: from tokens to logits": lines["stages"],
        "3 Predictions: the probability p of the next token": [
            *lines["predictions"],
            f"  loss = mean of -ln p = {found['loss']:.4f} nats; "
            f"perplexity = e^loss = {found['perplexity']:.2f}",
        ],
        f"4 Gradient at the logits, where the loss is largest: {follows} after {read}": [
            *lines["gradient"],
            f"  over all {found['vocab_size']:,} tokens, p - onehot adds up to {gradient['sum']:.1e}",
        ],
        "5 Gradient norms, each of which is the slope along the gradient": [
            *lines["norms"],
            f"  all {figure_of(found['gradient_norm'])}",
        ],
        "6 Update: of each group of the optimizer, the weight with the largest gradient": [
            f"  {line}"
            for update in found["updates"]
            for line in (update_title(update), *aligned(update_rows(update)))
        ],
        "7 After the step: the loss of the same tokens": [
            f"  {after['loss_before']:.6f} -> {after['loss_after']:.6f}, which is "
            f"{after['loss_after'] - after['loss_before']:+.6f}",
            f"  gradient · movement, summed over all weights, foretold {after['foretold']:+.6f}",
        ],
        "8 By hand and by torch (as a share of numbers above 1)": [
            *lines["differences"],
            f"  of all {found['largest_difference']:.1e}",
        ],
    }
    return "\n\n".join("\n".join((title, *lines)) for title, lines in parts.items())


def bars(names: list[str], values: list[float], title: str, colors: list[str] | str) -> Any:
    """A plot of one bar for each name; names may repeat."""
    import plotly.graph_objects as plotly

    figure, places, names = plotly.Figure(), [*range(len(names))], [*map(page.label, names)]
    hover = "%{hovertext}: %{y:.4g}<extra></extra>"
    figure.add_bar(x=places, y=values, marker_color=colors, hovertext=names, hovertemplate=hover)
    page.style_figure(figure, 340)
    figure.update_layout(margin={"t": 20, "b": 90})
    figure.update_xaxes(tickvals=places, ticktext=names, tickangle=-45)
    figure.update_yaxes(title=title, zeroline=True, zerolinecolor=INK)
    return page.plot_html(figure)


def spectrum_plot(update: Found) -> Any:
    """Singular values of Muon's matrix, before and after, from the largest of the first down."""
    import plotly.graph_objects as plotly

    figure = plotly.Figure()
    for name, values, color in zip(SPECTRA, update["singular_values"], (ORANGE, BLUE), strict=True):
        figure.add_scatter(y=values, name=name, mode="lines", line={"color": color, "width": 2})
    page.style_figure(figure, 300)
    above = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    figure.update_layout(legend=above, margin={"t": 40})
    figure.update_xaxes(title="direction, the strongest first")
    figure.update_yaxes(title="singular value", rangemode="tozero")
    return page.plot_html(figure)


def attention_data(found: Found) -> dict[str, Any] | None:
    """Scores and weights of every head, for the script of the page; None where none are known."""
    stages = [stage for stage in found["stages"] if "values" in stage]
    if not stages:
        return None
    known = {one["name"]: np.round(one["values"], DECIMALS).tolist() for one in stages}
    blocks = [*dict.fromkeys(name.partition(" ")[0] for name in known)]
    scores, weights = ([known[f"{b} {of}"] for b in blocks] for of in ("scores", "attention"))
    read = map(shown_token, found["tokens"][: len(scores[0][0])])
    tokens = [page.label(f"{n} {token}") for n, token in enumerate(read)]
    return {"blocks": blocks, "scores": scores, "weights": weights, "tokens": tokens}


def grouped(stages: TextTable, by_hand: bool) -> dict[str, TextTable]:
    """Part of the net -> rows of its stages."""
    groups: dict[str, TextTable] = {}
    for name, *cells in stages:
        block, _, inside = name.partition(" ")
        part = "after the blocks" if name == "logits" else "before the blocks"
        if not by_hand:
            part = "what its modules put out"
        elif block.startswith("blocks."):
            part, name = block, inside
        groups.setdefault(part, []).append((name, *cells))
    return groups


def write_story(found: Found, run: Path) -> Path:
    """Write RUN/explain.html. Raises DiskError."""
    name, tables = run.resolve().name, step_tables(found)
    norms, gradient = found["gradient_norms"], found["logit_gradient"]["rows"]
    slopes = [row[3] for row in gradient]
    colors = [GREEN if slope < 0 else ORANGE for slope in slopes]
    tokens, losses = [*map(shown_token, found["tokens"])], [p["loss"] for p in found["predictions"]]
    layers, lengths = [row["layer"] for row in norms], [row["norm"] for row in norms]
    parts = {
        "found": found,
        "name": name,
        "tables": tables,
        "tokens": tokens,
        "stages": grouped(tables["stages"][1:], found["by_hand"]),
        "attention": attention_data(found),
        "losses": bars(tokens[1:], losses, "-ln p (nats)", ORANGE),
        "slopes": bars([shown_token(row[0]) for row in gradient], slopes, "p - onehot", colors),
        "norms": bars(layers, lengths, "norm", BLUE),
        "updates": {update_title(one): update_rows(one) for one in found["updates"]},
        "spectra": {
            one["parameter"]: spectrum_plot(one)
            for one in found["updates"]
            if "singular_values" in one
        },
    }
    target = run / "explain.html"
    write_text(target, page.render("explain", f"{name}: one training step", parts))
    return target
