"""The numbers of one training step -> RUN/explain.html, a page to scroll through like a story."""

from pathlib import Path
from typing import Any

from lmtemplate.run_dir import write_text
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import INK, SERIES
from lmtemplate.study.understand import tell
from lmtemplate.study.understand.tell import Found, figure_of

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


def minus(*cells: str) -> tuple[str, ...]:
    """Numbers with a sign at which no browser ends a line."""
    return tuple(cell.replace("-", "−") for cell in cells)


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


def grouped_stages(found: Found) -> dict[str, list[tuple[str, ...]]]:
    """Part of the net -> rows of its stages."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for stage in found["stages"]:
        first, _, rest = stage["name"].partition(" ")
        is_block = bool(rest) and first.startswith("blocks.")
        numbers = minus(
            " × ".join(map(str, stage["shape"])),
            f"{figure_of(stage['mean'])} ± {figure_of(stage['deviation'])}",
            tell.numbers(stage["last"]),
            f"{stage['difference']:.0e}" if "difference" in stage else "",
        )
        row = (rest if is_block else stage["name"], stage["formula"], *numbers)
        other = "after the blocks" if stage["name"] == "logits" else "before the blocks"
        groups.setdefault(first if is_block else other, []).append(row)
    return groups


def prediction_cells(found: Found) -> list[tuple[str, ...]]:
    rows = []
    for token, row in zip(found["tokens"][:-1], found["predictions"], strict=True):
        top = ", ".join(f"{shown_token(word)} {share:.1%}" for word, share in row["top"])
        numbers = minus(figure_of(row["probability"]), f"{row['loss']:.3f}")
        rows.append((shown_token(token), shown_token(row["next"]), *numbers, top))
    return rows


def gradient_cells(gradient: Found) -> list[tuple[str, ...]]:
    return [
        (
            shown_token(token),
            *minus(figure_of(p), f"{onehot:.0f}", f"{difference:+.4f}", figure_of(share)),
        )
        for token, p, onehot, difference, share in gradient["rows"]
    ]


def write_story(found: Found, run: Path) -> Path:
    """Write the page. Raises DiskError."""
    gradient, norms = found["logit_gradient"], found["gradient_norms"]
    slopes = [row[3] for row in gradient["rows"]]
    losses, names = [row["loss"] for row in found["predictions"]], found["tokens"][1:]
    after = found["after"]
    parts = {
        "found": found,
        "name": run.resolve().name,
        "count": len(losses),
        "tokens": [shown_token(token) for token in found["tokens"]],
        "example": [row[:4] for row in gradient_cells(found["worked_example"])],
        "stages": grouped_stages(found),
        "attention": attention_data(found),
        "predictions": prediction_cells(found),
        "losses": bars([*map(shown_token, names)], losses, "-ln p (nats)", ORANGE),
        "read": [
            shown_token(t) for t in found["tokens"][gradient["place"] : gradient["place"] + 2]
        ],
        "gradient": gradient_cells(gradient),
        "slopes": bars(
            [shown_token(row[0]) for row in gradient["rows"]],
            slopes,
            "p - onehot",
            [GREEN if slope < 0 else ORANGE for slope in slopes],
        ),
        "norms": bars(
            [row["layer"] for row in norms], [row["norm"] for row in norms], "norm", BLUE
        ),
        "norm_rows": [minus(*row) for row in tell.norm_rows(found)],
        "updates": [
            {
                "title": tell.title_of(update),
                "settings": tell.settings_of(update),
                "rows": [(what, *minus(value)) for what, value in tell.update_rows(update)],
                "spectrum": spectrum_plot(update) if "singular_values" in update else "",
            }
            for update in found["updates"]
        ],
        "change": after["loss_after"] - after["loss_before"],
        "differences": [
            (part, *minus(f"{value:.1e}")) for part, value in found["differences"].items()
        ],
    }
    target = run / "explain.html"
    write_text(target, page.render("explain", f"{parts['name']}: one training step", parts))
    return target
