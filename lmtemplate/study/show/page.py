"""A run's files, plotly figures, a template -> one HTML page that opens without a network."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate import metric_names
from lmtemplate.record import Floats, Ints, Record
from lmtemplate.study.long_record import read_any_record
from lmtemplate.study.run_files import duration, read_manifest, read_settings, read_summary
from lmtemplate.study.show.plots import COLORS, GRID, INK, Curve, curves_of, thin

BITS = metric_names.VAL_BITS_PER_BYTE
NONE = "–"  # stands in a table where nothing is known
TEMPLATES = Path(__file__).with_name("templates")
PANELS = ("loss (nats/token)", "learning rate", "gradient norm", "tokens/s")  # from above


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds; empty where a file is missing, as while a run goes on."""

    folder: Path
    record: Record
    summary: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # "data.path" -> value

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def logged(self, name: str) -> Curve:
        """Steps and values of a logged name; empty where there are none."""
        values = self.record.values.get(name, np.full(len(self.record), np.nan))
        known = np.isfinite(values)
        return self.record.steps[known], values[known]

    def counted(self, name: str, steps: Ints | Floats) -> Floats:
        """A logged count, as "data/tokens", at these steps, by straight lines; NaN if unknown."""
        rows, counts = self.logged(name)
        if not len(rows):
            return np.full(len(steps), np.nan)
        return np.asarray(np.interp(steps, np.insert(rows, 0, 0), np.insert(counts, 0, 0.0)))

    def total(self, name: str) -> float:
        """The last value of a logged count; NaN if unknown."""
        return float(self.counted(name, np.array([np.inf]))[0])

    @property
    def flops_per_token(self) -> float | None:
        flops, tokens = self.summary.get("flops"), self.summary.get("tokens")
        return flops / tokens if flops and tokens else None


def read_run(run: Path, record: Record | None = None) -> RunFiles:
    """A run's files; `record`, if it was read before. Raises CheckpointError where there is none."""
    record = read_any_record(run) if record is None else record
    return RunFiles(run, record, read_summary(run), read_manifest(run), read_settings(run))


def number(value: float | None, form: str | Callable[[float], str] = ",.0f") -> str:
    """A value in Python's format, or as a function writes it; a dash if unknown."""
    if value is None or not math.isfinite(value):
        return NONE
    return format(value, form) if isinstance(form, str) else form(value)


def table_lines(rows: Sequence[Sequence[str]], side: str = "<") -> list[str]:
    """Lines of a table for a terminal; cells stand at the left (<) or at the right (>)."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([f"{c:{side}{w}}" for c, w in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]


def figures_of(run: RunFiles) -> dict[str, str]:
    """The result of a run, by name; dashes for what is not known."""
    steps, losses = run.record.validations
    loss, step = min(zip(losses, steps, strict=True), default=(None, None))
    bits = dict(zip(*run.logged(BITS), strict=True))
    tokens, seconds = run.total(metric_names.TOKENS), run.total(metric_names.TRAINING_SECONDS)
    speed = run.summary.get("tokens_per_second") or tokens / (seconds or np.nan)
    reason = run.summary.get("stop_reason") or "not finished"
    return {
        "best val loss": number(loss, ".4f"),
        "at step": number(step),
        "bits per byte there": number(bits.get(step), ".4f"),
        "steps": number(max(run.record.steps, default=None)),
        "tokens": number(tokens),
        "training time": number(seconds, duration),
        "tokens/s": number(speed),
        "stopped": reason.removeprefix("trainer."),
    }


def label(text: str) -> str:
    """A text on a figure: plotly reads some HTML, and a line break would show nothing."""
    return html.escape(text.replace("\n", "⏎"), quote=False)


def style_figure(figure: Any, height: int) -> None:
    """The look of all figures: no frame; a grid and text that suit a light and a dark page."""
    figure.update_layout(
        height=height,
        margin={"l": 55, "r": 10, "t": 60, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "family": "system-ui, sans-serif", "size": 13},
        hoverlabel={"bgcolor": "white", "font": {"color": "black"}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": "#0072B2"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)


def curve_figure(run: RunFiles, shaded: Iterable[tuple[int, int]] = ()) -> Any:
    """All PANELS over one x axis, which zooms them together; `shaded`: stretches to mark."""
    from plotly.subplots import make_subplots

    heights, gap = [0.43, 0.19, 0.19, 0.19], {"vertical_spacing": 0.05, "shared_xaxes": True}
    figure = make_subplots(rows=4, subplot_titles=PANELS, row_heights=heights, **gap)
    curves = curves_of(run.record)
    curves["gradient norm"] = thin(*run.logged(metric_names.GRAD_NORM))
    curves["tokens/s"] = thin(*run.logged(metric_names.TOKENS_PER_SECOND))
    for name, (steps, values) in curves.items():
        row = PANELS.index(name) + 1 if name in PANELS else 1
        thick = name == "validation loss"
        figure.add_scatter(
            x=steps,
            y=values,
            name=name.removesuffix(" loss"),
            showlegend=row == 1,
            mode="lines+markers" if thick else "lines",
            line={"color": COLORS.get(name, INK), "width": 3 if thick else 1.5},
            hovertemplate="%{y:.4g}",
            row=row,
            col=1,
        )
    figure.update_traces(xaxis="x4")  # one axis for all: the mouse shows the values of all panels
    figure.update_annotations(x=0, xanchor="left", font_size=13)
    for first, last in shaded:
        place = {"x0": first, "x1": last, "xref": "x4", "yref": "paper", "y0": 0, "y1": 1}
        line = {"color": COLORS["validation loss"], "width": 1}  # all there is of a single step
        figure.add_shape(layer="below", **place, line=line, fillcolor="rgba(214, 39, 40, 0.12)")
    style_figure(figure, 900)
    figure.update_yaxes(exponentformat="SI")
    # more ticks would write the digits between powers of 10 over each other
    log = {"type": "log", "exponentformat": "power", "nticks": 3}
    figure.update_layout(
        xaxis4={"title": "optimizer steps", "unifiedhovertitle_text": "step %{x:,}"},
        yaxis2=log,
        yaxis3=log,
        hovermode="x unified",
        hoversubplots="axis",
        legend={"x": 1, "xanchor": "right", "yref": "paper", "y": 1, "yanchor": "bottom"},
    )
    return figure


def plot_html(figure: Any) -> Any:
    """Markup of a plotly figure that zooms, pans and answers the mouse, for `render`."""
    from markupsafe import Markup

    tools = ["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]
    bar = {"displaylogo": False, "displayModeBar": True, "modeBarButtons": [tools]}
    settings = {"responsive": True, **bar}
    return Markup(figure.to_html(config=settings, full_html=False, include_plotlyjs=False))


def render(kind: str, title: str, parts: dict[str, Any]) -> str:
    """The page of templates/KIND.html.j2, with every text in its parts escaped but Markup."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    loader = FileSystemLoader(TEMPLATES)
    jinja = Environment(trim_blocks=True, undefined=StrictUndefined, autoescape=True, loader=loader)
    jinja.policies["json.dumps_kwargs"] = {}  # keys in our order, which is that of the curves
    page = jinja.get_template(f"{kind}.html.j2")
    return page.render(parts, title=title, plotly_js=get_plotlyjs())
