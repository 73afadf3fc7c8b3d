"""A run -> its model looked into: tables, sentences, and probe.html."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lmtemplate.run_dir import to_json, write_text
from lmtemplate.study.diagnose.artifacts import open_model
from lmtemplate.study.progress import progress_shown
from lmtemplate.study.show.page import label, plot_html, render, style_figure
from lmtemplate.study.show.plots import SERIES
from lmtemplate.study.understand.probing import look_at_model
from lmtemplate.study.understand.tables import Found, TextTable, as_lines, as_table

CLEAR_BLUES = [[0, "rgba(47,134,209,0)"], [1, "rgba(47,134,209,1)"]]  # for any background
BLUES = [[0, "#e4eef8"], [1, "#0b4a8f"]]  # under text, whose color plotly then chooses


def probe_tables(found: Found) -> dict[str, TextTable]:
    """Title -> table; only what the net, the run and the corpus show."""
    changes = [
        {"steps": f"{one['first_step']:,} to {one['last_step']:,}", **one["ratios"]}
        for one in found["updates"]
    ]
    rows = {
        "Layers": found["layers"],
        "Weights, and the gradient of one batch": found["parts"],
        "Change of the weights, as a share of them": changes,
        "What each depth knows": found["knowledge"].get("depths"),
        "Loss by source of the text": found["sources"],
        "Longest copies of training text, in tokens": found["memorisation"],
        "Gradient noise scale, in sequences": found["noise"],
    }
    return {title: as_table(of) for title, of in rows.items() if of}


def sentences_of(found: Found) -> Iterator[str]:
    """What needs more words than a table has."""
    yield f"Step {found['step']:,}; the largest logit is {found['largest_logit']:.2f}."
    losses = found["by_position"]
    places = sorted({1, len(losses)} | {2**n for n in range(20) if 2**n < len(losses)})
    shown = ", ".join(f"{place:,}: {losses[place - 1]:.2f}" for place in places)
    yield f"Loss by tokens of context: {shown} nats."
    ordered = sorted(found["documents"], key=lambda one: one["loss"])
    if len(ordered) > 1:
        first, last = (f"{one['loss']:.2f} nats, {named(one)}" for one in (ordered[0], ordered[-1]))
        yield f"Of {len(ordered):,} validation documents, the easiest is {first}, the hardest {last}."
    yield found["advice"]


def named(document: Mapping[str, Any]) -> str:
    """Its source, where that is known, and its first words."""
    return f"{document['source']} “{document['beginning']} ...”".strip()


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


def lens_figure(known: Found) -> Any:
    """The likeliest next token after each token, at each depth; color: its probability."""
    import plotly.graph_objects as go

    guesses = known["guesses"]
    figure = go.Figure()
    figure.add_heatmap(
        x=[f"{n} {label(word)}" for n, word in enumerate(known["words"], start=1)],
        y=[depth["after"] for depth in known["depths"][: len(guesses)]],
        z=[[share for _, share in row] for row in guesses],
        text=[[label(text) for text, _ in row] for row in guesses],
        texttemplate="%{text}",
        textfont_size=10,
        zmin=0,
        zmax=1,
        colorscale=BLUES,
        hovertemplate="after %{x}, %{y} says %{text}: %{z:.1%}<extra></extra>",
        showscale=False,
    )
    style_figure(figure, 150 + 40 * len(guesses))
    return figure


def curves_figure(found: Found) -> Any:
    """Loss by position and by document; change of the weights over the run."""
    from plotly.subplots import make_subplots

    titles = "loss by tokens of context", "loss by validation document", "change of weights a step"
    figure = make_subplots(rows=3, subplot_titles=titles, vertical_spacing=0.1)
    documents, updates = found["documents"], found["updates"]
    plain = {"showlegend": False, "col": 1}
    figure.add_scatter(x0=1, y=found["by_position"], line_color=SERIES[0], row=1, **plain)
    figure.add_bar(
        x0=1,
        y=[one["loss"] for one in documents],
        customdata=[[label(named(one)), one["tokens"]] for one in documents],
        hovertemplate="%{customdata[0]}<br>%{y:.3f} nats, %{customdata[1]:,} tokens",
        marker_color=SERIES[0],
        row=2,
        **plain,
    )
    for index, name in enumerate(part["name"] for part in found["parts"]):
        known = [one for one in updates if one["ratios"].get(name)]
        figure.add_scatter(
            x=[one["last_step"] for one in known],
            y=[one["ratios"][name] / (one["last_step"] - one["first_step"]) for one in known],
            name=name,
            line_color=SERIES[index % len(SERIES)],
            mode="lines+markers",
            row=3,
            col=1,
        )
    style_figure(figure, 1000)
    log = {"type": "log", "exponentformat": "power", "nticks": 4}
    figure.update_layout(xaxis=log, xaxis3=log, yaxis3=log, margin_b=130)
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
    with progress_shown(unless=json):
        found, maps, words = look_at_model(run, open_model(run, checkpoint, allow or ()))
    page, tables, sentences = run / "probe.html", probe_tables(found), [*sentences_of(found)]
    sentences += [f"Not shown: {reason}." for reason in found["unseen"]]
    title = f"{run.resolve().name}: inside of the model"
    parts = {
        "tables": tables,
        "sentences": sentences,
        "attention": plot_html(attention_figure(maps, words)) if maps else "",
        "lens": plot_html(lens_figure(found["knowledge"])) if found["knowledge"] else "",
        "curves": plot_html(curves_figure(found)),
    }
    write_text(page, render("probe", title, parts))
    if json:
        print(to_json(found))
    else:
        print(as_lines(title, sentences, tables), f"\npage: {page}", sep="\n")
