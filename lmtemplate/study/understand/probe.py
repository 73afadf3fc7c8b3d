"""A run -> its model looked into: tables, sentences, and probe.html."""

import dataclasses
import json as json_text
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lmtemplate.run_dir import write_text
from lmtemplate.study.diagnose.artifacts import open_model
from lmtemplate.study.show.compare import as_text
from lmtemplate.study.show.page import label, number, plot_html, render, style_figure
from lmtemplate.study.show.plots import SERIES
from lmtemplate.study.understand.knowledge import Knowledge
from lmtemplate.study.understand.probing import Probed, look_at_model

TableRow = tuple[str, list[str]]  # name, cells
Table = tuple[list[str], list[TableRow]]  # head, rows

LINE_WIDTH = 100  # characters of a line in the terminal
CLEAR_BLUES = [[0, "rgba(47,134,209,0)"], [1, "rgba(47,134,209,1)"]]  # for any background
BLUES = [[0, "#e4eef8"], [1, "#0b4a8f"]]  # under text, whose color plotly then chooses


# Row of a table: its name, the attribute of LayerFigures or PartFigures, the format.
LAYER_ROWS = (
    ("output, root mean square", "rms", ".2f"),
    ("output, largest value", "largest", ".1f"),
    ("added, as a share of the input", "added", ".1%"),
    ("attention entropy, of uniform", "attention_uniformity", ".1%"),
    ("largest attention score", "largest_score", ".1f"),
    ("dead ReLU units", "dead_units", ".1%"),
)
PART_ROWS = (
    ("weights, root mean square", "weights", ".3f"),
    ("gradient, norm", "gradient", ".3g"),
    ("gradient, root mean square", "gradient_rms", ".2g"),
)


def tables_of(found: Probed) -> dict[str, Table]:
    """Title -> table; only what the net shows."""

    def row(name: str, values: Iterable[float | None], form: str) -> TableRow:
        return name, [number(value, form) for value in values]

    def rows(figures: Sequence[Any], kind: Iterable[tuple[str, str, str]]) -> list[TableRow]:
        return [row(name, [getattr(one, key) for one in figures], form) for name, key, form in kind]

    layers, parts = found.layers, found.parts
    names = [part.name for part in parts]
    changes = [
        row(f"steps {one.first_step:,} to {one.last_step:,}", map(one.ratios.get, names), ".2g")
        for one in found.updates
    ]
    knows, head = list[TableRow](), list[str]()
    if known := found.knowledge:
        depths = known.depths
        head = [*(depth.name for depth in depths), "majority"]
        knows = [
            row("logit lens: loss, nats", [*(one.loss for one in depths), None], ".3f"),
            row("logit lens: accuracy", [*(one.accuracy for one in depths), None], ".1%"),
        ]
        for name, commonest in known.baselines.items():
            right = [*(one.probes[name] for one in depths), commonest]
            knows.append(row(f"linear probe: {name}", right, ".1%"))
    tables = {
        "Layers": ([one.name for one in layers], rows(layers, LAYER_ROWS)),
        "Weights, and the gradient of one batch": (names, rows(parts, PART_ROWS)),
        "Change of the weights, as a share of them": (names, changes),
        "What each depth knows": (head, knows),
    }
    return {title: table for title, table in tables.items() if all(table)}


def sentences_of(found: Probed) -> Iterator[str]:
    """What needs more words than a table has."""
    losses = found.by_position
    places = sorted({1, len(losses)} | {2**n for n in range(20) if 2**n < len(losses)})
    shown = ", ".join(f"{place:,}: {losses[place - 1]:.2f}" for place in places)
    yield f"Loss by tokens of context: {shown} nats."
    if known := found.knowledge:
        best = {name: max(known.depths, key=lambda d: d.probes[name]) for name in known.baselines}
        where = (f"“{name}” after {depth.name}" for name, depth in best.items())
        yield f"Linear probes find most of {', '.join(where)}."
    ordered = sorted(found.documents, key=lambda one: one.loss)
    if len(ordered) > 1:
        first, last = (f"{ordered[n].loss:.2f} nats “{ordered[n].beginning} ...”" for n in (0, -1))
        yield f"Of {len(ordered):,} validation documents, the easiest is {first}, the hardest {last}."
    if copies := found.memorisation:
        own, other = (
            f"{one.longest} tokens, {one.characters} characters “{' '.join(one.text.split())}” "
            f"(median of the {one.texts} texts: {one.median:g} tokens)"
            for one in (copies.samples, copies.chance)
        )
        yield (
            f"The longest copy of training text in {copies.samples.tokens:,} sampled tokens has "
            f"{own}. By chance, as much validation text, never trained on, shares {other}."
        )
    yield found.advice
    known_scales = ((step, one.simple) for step, one in found.noise.items() if one.simple)
    scales = ", ".join(f"{s * len(losses):,.0f} at step {step:,}" for step, s in known_scales)
    if scales:
        yield f"Noise scale over the run, in tokens: {scales}."


def attention_figure(maps: Mapping[str, Tensor], words: Sequence[str]) -> Any:
    """One map (T, T) at a time, chosen from a list: a row is a token, which looks at columns."""
    import plotly.graph_objects as go

    figure, buttons = go.Figure(), list[dict[str, Any]]()
    for name, weights in maps.items():
        ticks = [f"{n} {label(word)}" for n, word in enumerate(words[: len(weights)], start=1)]
        figure.add_heatmap(
            x=ticks,
            y=ticks,
            z=weights.float().numpy(),
            zmin=0,
            zmax=1,
            colorscale=CLEAR_BLUES,
            visible=not buttons,
            hovertemplate="%{y} looks at %{x}: %{z:.1%}<extra></extra>",
            colorbar={"thickness": 12, "tickformat": ".0%"},
        )
        visible = [other == name for other in maps]
        buttons.append({"label": name, "method": "restyle", "args": [{"visible": visible}]})
    style_figure(figure, 640)
    look = {"bgcolor": "rgba(128,128,128,0.15)", "x": 0, "xanchor": "left", "y": 1.01}
    figure.update_layout(updatemenus=[{"buttons": buttons, **look, "yanchor": "bottom"}])
    figure.update_yaxes(autorange="reversed", tickfont_size=9)
    figure.update_xaxes(tickfont_size=9)
    return figure


def lens_figure(known: Knowledge) -> Any:
    """The likeliest next token after each token, at each depth; color: its probability."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.add_heatmap(
        x=[f"{n} {label(word)}" for n, word in enumerate(known.words, start=1)],
        y=[depth.name for depth in known.depths],
        z=[[share for _, share in row] for row in known.guesses],
        text=[[label(text) for text, _ in row] for row in known.guesses],
        texttemplate="%{text}",
        textfont_size=10,
        zmin=0,
        zmax=1,
        colorscale=BLUES,
        hovertemplate="after %{x}, %{y} says %{text}: %{z:.1%}<extra></extra>",
        showscale=False,
    )
    style_figure(figure, 150 + 40 * len(known.depths))
    return figure


def curves_figure(found: Probed) -> Any:
    """Loss by position and by document; change of the weights over the run."""
    from plotly.subplots import make_subplots

    titles = "loss by tokens of context", "loss by validation document", "change of weights a step"
    figure = make_subplots(rows=3, subplot_titles=titles, vertical_spacing=0.1)
    losses, documents, blue = found.by_position, found.documents, SERIES[0]
    figure.add_scatter(x0=1, y=losses, line_color=blue, showlegend=False, row=1, col=1)
    figure.add_bar(
        x0=1,
        y=[one.loss for one in documents],
        customdata=[[label(one.beginning), one.tokens] for one in documents],
        hovertemplate="%{customdata[0]}<br>%{y:.3f} nats, %{customdata[1]:,} tokens",
        marker_color=blue,
        showlegend=False,
        row=2,
        col=1,
    )
    for index, part in enumerate(found.parts):
        known = [one for one in found.updates if one.ratios.get(part.name)]
        figure.add_scatter(
            x=[one.last_step for one in known],
            y=[one.ratios[part.name] / (one.last_step - one.first_step) for one in known],
            name=part.name,
            line_color=SERIES[index % len(SERIES)],
            mode="lines+markers",
            row=3,
            col=1,
        )
    style_figure(figure, 1000)
    log = {"type": "log", "exponentformat": "power", "nticks": 4}
    figure.update_layout(xaxis=log, xaxis3=log, yaxis3=log, legend={"orientation": "h", "y": -0.05})
    return figure


def probe_model(
    run: Path, checkpoint: str = "best", json: bool = False, allow: list[str] | None = None
) -> None:
    """Look into a model: attention, activations, gradients, what each layer knows, what it copies.

    Numbers go to the terminal, pictures to RUN/probe.html.

    Args:
        run: run directory.
        checkpoint: best, latest, or the path of a checkpoint.
        json: print one JSON object and nothing else.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    found, maps, words = look_at_model(run, open_model(run, checkpoint, allow or ()))
    page, tables, sentences = run / "probe.html", tables_of(found), [*sentences_of(found)]
    parts = {
        "tables": tables,
        "sentences": sentences,
        "unseen": found.unseen,
        "attention": plot_html(attention_figure(maps, words)) if maps else "",
        "lens": plot_html(lens_figure(found.knowledge)) if found.knowledge else "",
        "curves": plot_html(curves_figure(found)),
    }
    write_text(page, render("probe", f"{run.resolve().name}: inside of the model", parts))
    if json:
        print(json_text.dumps(dataclasses.asdict(found), indent=2, allow_nan=False))
        return
    print(f"step {found.step:,}; largest logit {found.largest_logit:.2f}")
    for title, (head, rows) in tables.items():
        print(f"\n{title}\n{as_text(rows, head, LINE_WIDTH)}")
    print(*(f"\n{textwrap.fill(says, LINE_WIDTH)}" for says in sentences), sep="\n")
    print(*(f"not shown: {reason}" for reason in found.unseen), f"\npage: {page}", sep="\n")
