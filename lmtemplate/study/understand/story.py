"""The numbers of one training step -> RUN/explain.html, a page to scroll through like a story."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmtemplate.run_dir import write_text
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import INK, SERIES
from lmtemplate.study.understand import tell
from lmtemplate.study.understand.tell import Found, TextRows

BLUE, ORANGE, GREEN = SERIES[:3]
DIGITS = 4  # of a number in a picture


def bars(names: list[str], values: list[float], title: str, colors: list[str] | str) -> Any:
    """A figure of one bar for each name; names may repeat."""
    import plotly.graph_objects as plotly

    figure = plotly.Figure()
    figure.add_bar(x=[*range(len(names))], y=values, marker_color=colors, hovertext=names)
    figure.update_traces(hovertemplate="%{hovertext}: %{y:.4g}<extra></extra>")
    page.style_figure(figure, 340)
    figure.update_layout(margin={"t": 20, "b": 90})
    figure.update_xaxes(tickvals=[*range(len(names))], ticktext=names, tickangle=-45)
    figure.update_yaxes(title=title, zeroline=True, zerolinecolor=INK)
    return page.plot_html(figure)


def spectrum_plot(update: Found) -> Any:
    """Singular values of Muon's matrix, before and after, from the largest of the first down."""
    import plotly.graph_objects as plotly

    figure = plotly.Figure()
    pairs = zip(("ahead / its norm", "O"), update["singular_values"], (ORANGE, BLUE), strict=True)
    for name, values, color in pairs:
        figure.add_scatter(y=values, name=name, mode="lines", line={"color": color, "width": 2})
    page.style_figure(figure, 300)
    above = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    figure.update_layout(legend=above, margin={"t": 40})
    figure.update_xaxes(title="direction, the strongest first")
    figure.update_yaxes(title="singular value", rangemode="tozero")
    return page.plot_html(figure)


def shown_token(text: str) -> str:
    """A token in which spaces and line ends can be seen."""
    return text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")


def minus(rows: Iterable[tuple[str, ...]]) -> TextRows:
    """TextRows of numbers behind a name, with a sign at which no browser ends a line."""
    return [(name, *(cell.replace("-", "−") for cell in cells)) for name, *cells in rows]


def attention_data(found: Found) -> dict[str, Any] | None:
    """Scores and weights of every head, for the script of the page; None where none are known."""
    known = [stage for stage in found["stages"] if "values" in stage]
    if not known:
        return None

    def rounded(values: Any) -> Any:
        inner = isinstance(values, list)
        return [rounded(v) for v in values] if inner else float(f"{values:.{DIGITS}g}")

    scores = [rounded(one["values"]) for one in known if one["name"].endswith("scores")]
    weights = [rounded(one["values"]) for one in known if one["name"].endswith("attention")]
    names = [one["name"].removesuffix(" scores") for one in known if one["name"].endswith("scores")]
    tokens = [f"{n} {shown_token(t)}" for n, t in enumerate(found["tokens"][: len(scores[0][0])])]
    return {"blocks": names, "scores": scores, "weights": weights, "tokens": tokens}


def grouped_stages(found: Found) -> dict[str, TextRows]:
    """Part of the net -> rows of its stages."""
    groups: dict[str, TextRows] = {}
    for name, formula, *cells in tell.stage_rows(found):
        block, _, rest = name.partition(" ")
        other = "after the blocks" if name == "logits" else "before the blocks"
        other = other if found["by_hand"] else "what its modules put out"
        part = block if rest and block.startswith("blocks.") else other
        ((_, *numbers),) = minus([("", *cells)])
        groups.setdefault(part, []).append((rest if part == block else name, formula, *numbers))
    return groups


def write_story(found: Found, run: Path) -> Path:
    """Write the page. Raises DiskError."""
    gradient, norms, after = found["logit_gradient"], found["gradient_norms"], found["after"]
    losses, place = [row["loss"] for row in found["predictions"]], gradient["place"]
    tokens = [*map(shown_token, found["tokens"])]
    example, rows = (
        minus(tell.gradient_rows(one, shown_token)) for one in (found["worked_example"], gradient)
    )
    slopes = [row[3] for row in gradient["rows"]]
    colors = [GREEN if slope < 0 else ORANGE for slope in slopes]
    parts = {
        "found": found,
        "name": run.resolve().name,
        "count": len(losses),
        "tokens": tokens,
        "example": [row[:4] for row in example],
        "stages": grouped_stages(found),
        "attention": attention_data(found),
        "predictions": tell.prediction_rows(found, shown_token),
        "losses": bars(tokens[1:], losses, "-ln p (nats)", ORANGE),
        "read": tokens[place : place + 2],
        "gradient": rows,
        "slopes": bars([row[0] for row in rows], slopes, "p - onehot", colors),
        "norms": bars(
            [row["layer"] for row in norms], [row["norm"] for row in norms], "norm", BLUE
        ),
        "norm_rows": tell.norm_rows(found),
        "updates": [
            {
                "title": tell.update_title(update),
                "rows": minus(tell.update_rows(update)),
                "name": update["parameter"],
                "spectrum": spectrum_plot(update) if "singular_values" in update else "",
            }
            for update in found["updates"]
        ],
        "change": after["loss_after"] - after["loss_before"],
        "differences": minus((part, f"{how:.1e}") for part, how in found["differences"].items()),
    }
    target = run / "explain.html"
    write_text(target, page.render("explain", f"{parts['name']}: one training step", parts))
    return target
