"""A run's files, tables, plotly figures -> one HTML page that needs neither network nor server."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.record import Floats, Ints, Record, read_record
from lmtemplate.run_dir import duration, read_json
from lmtemplate.study.diagnose.artifacts import read_settings
from lmtemplate.study.show.plots import Curve, curves_of, thin

BITS = "val/bits_per_byte"
NONE = "–"  # what stands in a table where nothing is known
COLOURS = {
    "train loss": "#1f77b4",
    "validation loss": "#d62728",
    "learning rate": "#2ca02c",
    "gradient norm": "#8c8c8c",
    "tokens/s": "#8c8c8c",
}
INK, GRID = "#767676", "rgba(128, 128, 128, 0.25)"  # legible on white and on near-black
# The browser itself refuses to fetch anything: the page is complete, and tells nobody of the run.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
)
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .75rem; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } thead { border-bottom: 2px solid var(--line); }
th { font-weight: 600; } td { font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } .note { opacity: .75; font-size: .9rem; }
.prose td { min-width: 14rem; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; padding: .25rem 0; } tr > :first-child { padding-left: 0; }
@media (max-width: 40rem) { th, td { padding: .3rem; } }
"""


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds; empty where a file is missing, as in a run that still goes on."""

    folder: Path
    record: Record
    summary: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # "data.path" -> value

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def values(self, name: str) -> Floats:
        """(N,) values of a logged name; NaN where there are none."""
        return self.record.values.get(name, np.full(len(self.record), np.nan))

    def curve(self, name: str) -> Curve:
        """Steps and values of a logged name, thinned out to what can be drawn."""
        known = np.isfinite(self.values(name))
        return thin(self.record.steps[known], self.values(name)[known])

    def counted(self, name: str, steps: Ints | Floats) -> Floats:
        """What a logged count, as "data/tokens", had come to at some steps; NaN if unknown."""
        values = self.values(name)
        known = np.isfinite(values)
        if not known.any():
            return np.full(len(steps), np.nan)
        rows = np.concatenate([[0], self.record.steps[known]])
        return np.asarray(np.interp(steps, rows, np.concatenate([[0.0], values[known]])))

    def last(self, name: str) -> float | None:
        """The last value that was logged under a name."""
        _, values = self.curve(name)
        return float(values[-1]) if len(values) else None

    @property
    def flops_per_token(self) -> float | None:
        flops, tokens = self.summary.get("flops"), self.summary.get("tokens")
        return flops / tokens if flops and tokens else None


def read_run(run: Path) -> RunFiles:
    """Raises CheckpointError where there is no record."""
    record = read_record(run)
    summary, manifest = read_json(run / "summary.json"), read_json(run / "manifest.json")
    return RunFiles(run, record, summary or {}, manifest or {}, read_settings(run))


def number(value: float | None, form: str = ",.0f") -> str:
    return NONE if value is None or not np.isfinite(value) else format(value, form)


def span(seconds: float | None) -> str:
    return NONE if seconds is None or not np.isfinite(seconds) else duration(seconds)


def figures_of(run: RunFiles) -> dict[str, str]:
    """What came of a run, by name; dashes for what is not known."""
    steps, losses = run.record.validations
    best = int(np.argmin(losses)) if len(losses) else None
    bits = run.values(BITS)[~np.isnan(run.record.val_loss)]
    tokens, seconds = run.last("data/tokens"), run.last("speed/seconds")
    speed = run.summary.get("tokens_per_second")
    if speed is None and tokens and seconds:
        speed = tokens / seconds
    reason = run.summary.get("stop_reason") or "not finished"
    return {
        "best val loss": NONE if best is None else number(losses[best], ".4f"),
        "at step": NONE if best is None else f"{steps[best]:,}",
        "bits per byte there": NONE if best is None else number(bits[best], ".4f"),
        "steps": f"{run.record.steps[-1]:,}" if len(run.record) else NONE,
        "tokens": number(tokens),
        "training time": span(seconds),
        "tokens/s": number(speed),
        "stopped": reason.removeprefix("trainer."),
    }


def escape(text: object) -> str:
    return html.escape(str(text))


def breakable(name: object) -> str:
    """A setting's long name, which may go on in the next line after a dot or an underscore."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def table(rows: Iterable[Sequence[object]], head: Sequence[object] = (), kind: str = "") -> str:
    """Cells of plain text -> a table that scrolls sideways where it is too wide."""
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    top = f"<thead><tr>{cells}</tr></thead>" if head else ""
    body = "".join(
        f'<tr><th scope="row">{breakable(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
    return f'<div class="wide {kind}"><table>{top}<tbody>\n{body}</tbody></table></div>'


def style_figure(figure: Any, height: int) -> None:
    """The look of all figures: no frame, grid and text that suit a light and a dark page."""
    figure.update_layout(
        height=height,
        margin={"l": 55, "r": 10, "t": 40, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 13},
        hoverlabel={"bgcolor": "white", "font": {"color": "black"}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": "#0072B2"},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)


def panels_of(run: RunFiles) -> list[tuple[str, str, dict[str, Curve]]]:
    """(title, kind of axis, lines by name) of each plot, from top to bottom."""
    losses = curves_of(run.record)
    rate = {"learning rate": losses.pop("learning rate")} if "learning rate" in losses else {}
    return [
        ("loss (nats/token)", "linear", losses),
        ("learning rate", "log", rate),
        ("gradient norm", "log", {"gradient norm": run.curve("optim/grad_norm")}),
        ("tokens/s", "linear", {"tokens/s": run.curve("speed/tokens_per_second")}),
    ]


def y_axis(kind: str, lines: Iterable[Curve]) -> dict[str, Any]:
    """Plotly's settings: of a log axis that spans decades, these alone are labelled."""
    values = np.concatenate([np.empty(0), *(values for _, values in lines)])
    values = values[values > 0]
    if kind == "log" and len(values) and values.max() > 30 * values.min():
        return {"type": kind, "dtick": 1, "exponentformat": "power"}
    return {"type": kind, "exponentformat": "SI"}


def curve_figure(run: RunFiles, shaded: Iterable[tuple[int, int]] = ()) -> Any:
    """Loss, learning rate, gradient norm and speed over one x axis, which zooms all of them.

    Args:
        run: whose curves.
        shaded: first and last step of stretches to mark.
    """
    import plotly.graph_objects as go

    figure, panels, top = go.Figure(), panels_of(run), 1.0
    for index, (title, kind, lines) in enumerate(panels, start=1):
        bottom = max(0.0, top - (0.37 if index == 1 else 0.16))
        look = {**y_axis(kind, lines.values()), "domain": [bottom, top]}
        figure.update_layout({f"yaxis{index}": look})
        place = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(text=title, showarrow=False, **place)
        top = bottom - 0.05
        for name, (steps, values) in lines.items():
            figure.add_scatter(
                x=steps,
                y=values,
                name=name.removesuffix(" loss"),
                yaxis=f"y{index}",
                showlegend=index == 1,
                mode="lines+markers" if name == "validation loss" else "lines",
                line={"color": COLOURS[name], "width": 3 if name == "validation loss" else 1.5},
                hovertemplate="%{y:.4g}",
            )
    for first, last in shaded:
        place = {"x0": first, "x1": last, "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        figure.add_shape(fillcolor="#d62728", opacity=0.12, line_width=1, **place)
    style_figure(figure, 900)
    figure.update_layout(
        xaxis={"title": "optimizer steps", "anchor": f"y{len(panels)}"},
        xaxis_unifiedhovertitle_text="step %{x:,}",
        hovermode="x unified",
        hoversubplots="axis",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        margin_t=60,
    )
    return figure


def plot(figure: Any) -> str:
    """A plotly figure that zooms, pans and answers the mouse. The page brings plotly.js."""
    tools = ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]
    bar = {"displaylogo": False, "displayModeBar": True, "modeBarButtons": [tools]}
    settings = {"responsive": True, **bar}
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config=settings)
    return f"{drawn}<noscript>The curves need JavaScript, the rest does not.</noscript>"


def page(title: str, body: str) -> str:
    """The whole page: `body` is HTML, with every text of a user escaped; plotly.js comes once."""
    from plotly.offline import get_plotlyjs

    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n"
        f"<script>{get_plotlyjs()}</script>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
