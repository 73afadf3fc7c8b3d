"""The runs of a ladder and their law -> a table, JSON, and scaling.html with its curves."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.run_dir import write_text
from lmtemplate.study.experiments.law import Law, interval
from lmtemplate.study.show import page
from lmtemplate.study.show.plots import INK, SERIES

READING = (
    "rare, common: loss on the rarest tokens, a tenth of the text, and on the others; sure: mean "
    "probability of the likeliest token; copied: tokens of the longest verbatim copy",
    "one seed and one learning rate for all sizes; another width may need another rate",
    "far beyond the ladder the law is a guess: its intervals say how rough",
)


@dataclass(frozen=True)
class Point:
    """One run of the ladder, and what became of it."""

    run: str
    n_embd: int
    steps: int
    parameters: int
    tokens: int
    loss: float  # last validation, nats per token
    rare: float | None = None  # loss on the rarest tokens that make up a tenth of the text
    common: float | None = None  # and on the others
    sure: float | None = None  # mean probability of the likeliest token
    copied: int | None = None  # tokens of the longest verbatim copy in its samples


@dataclass(frozen=True)
class Scaling:
    """The runs, their law, and how well it predicted the largest."""

    points: list[Point]  # the largest last
    law: Law
    laws: list[Law]  # of resampled runs
    predicted: float

    @property
    def error(self) -> float:
        """Nats by which the prediction was too high."""
        return self.predicted - self.points[-1].loss

    def as_json(self) -> dict[str, Any]:
        last = self.points[-1]
        flops = 6.0 * last.parameters * last.tokens
        spread = [float(law.loss(last.parameters, last.tokens)) for law in self.laws]
        names = ("E", "A", "a", "B", "b")
        return {
            "points": [asdict(point) for point in self.points],
            "law": asdict(self.law),
            "intervals": {n: interval([getattr(law, n) for law in self.laws]) for n in names},
            "predicted": self.predicted,
            "predicted_interval": interval(spread),
            "measured": last.loss,
            "error": self.error,
            "best_split": {
                f"{factor * flops:.3g}": dict(
                    zip(("parameters", "tokens"), self.law.best_split(factor * flops), strict=True)
                )
                for factor in (1, 10, 100)
            },
        }

    def text(self) -> str:
        found, law = self.as_json(), self.law
        head = "n_embd steps parameters tokens val/loss law rare common sure copied"
        rows = [head.split()]
        for p in self.points:
            losses = (p.loss, float(law.loss(p.parameters, p.tokens)), p.rare, p.common, p.sure)
            sizes = (p.n_embd, p.steps, p.parameters, p.tokens)
            shown = [page.number(size) for size in sizes]
            shown += [page.number(loss, ".3f") for loss in losses]
            rows.append([*shown, page.number(p.copied)])
        lines = page.table_lines(rows, ">")
        terms = f"{law.E:.3g} + {law.A:.3g} / N^{law.a:.3f} + {law.B:.3g} / D^{law.b:.3f}"
        low, high = found["predicted_interval"]
        lines += [f"\nL(N, D) = {terms} nats per token (fitted to all runs but the last)"]
        for name, (start, end) in found["intervals"].items():
            lines.append(
                f"  {name}  {getattr(law, name):.4g}, from {start:.4g} to {end:.4g} (90 %)"
            )
        lines.append(
            f"the largest run: {self.predicted:.3f} predicted ({low:.3f} to {high:.3f}), "
            f"{self.points[-1].loss:.3f} measured: {abs(self.error):.3f} too "
            f"{'high' if self.error > 0 else 'low'}"
        )
        for flops, best in found["best_split"].items():
            shares = f"{best['parameters']:,.0f} parameters on {best['tokens']:,.0f} tokens"
            lines.append(f"  best for {flops} FLOPs: {shares}")
        return "\n".join([*lines, *(f"note: {note}" for note in READING)])


def with_axes(figure: Any, x: str, y: str) -> Any:
    page.style_figure(figure, 540)
    log = {"type": "log", "exponentformat": "power", "nticks": 4}
    return figure.update_layout(xaxis={"title": x, **log}, yaxis_title=y, margin_b=130)


def data_figure(found: Scaling) -> Any:
    """Loss against tokens: runs as points, the law as a line for each size of net, its interval."""
    import plotly.graph_objects as go

    figure = go.Figure()
    sizes = sorted({point.parameters for point in found.points})
    amounts = np.array([point.tokens for point in found.points], dtype=np.float64)
    line = np.geomspace(amounts.min() / 2, amounts.max() * 4, 60)
    for color, size in zip(SERIES, sizes, strict=False):
        runs = [point for point in found.points if point.parameters == size]
        name = f"{size / 1e6:.2g}M parameters"
        look = {"legendgroup": name, "name": name}
        law = found.law.loss(size, line)
        figure.add_scatter(x=line, y=law, mode="lines", line={"color": color}, **look)
        marks = {"x": [run.tokens for run in runs], "y": [run.loss for run in runs]}
        marker = {"color": color, "size": 9}
        figure.add_scatter(mode="markers", marker=marker, showlegend=False, **marks, **look)
    last = found.points[-1]
    band = interval([law.loss(last.parameters, line) for law in found.laws])
    edges = {"x": [*line, *line[::-1]], "y": [*band[0], *band[1][::-1]]}
    style = {"fill": "toself", "mode": "none", "fillcolor": f"{color}40", "hoverinfo": "skip"}
    figure.add_scatter(**edges, **style, name="90 % of resampled laws")
    star = {"symbol": "star", "size": 14, "color": INK}
    star_point = {"x": [last.tokens], "y": [found.predicted], "name": "predicted"}
    figure.add_scatter(mode="markers", marker=star, **star_point)
    return with_axes(figure, "tokens trained on", "val/loss (nats)")


def compute_figure(found: Scaling) -> Any:
    """Loss against parameters at equal compute (6 N D FLOPs), by the law, and the best split."""
    import plotly.graph_objects as go

    figure, last = go.Figure(), found.points[-1]
    largest = 6.0 * last.parameters * last.tokens
    for color, factor in zip(SERIES, (0.1, 1.0, 10.0, 100.0), strict=False):
        flops = factor * largest
        best, _ = found.law.best_split(flops)
        sizes = np.geomspace(best / 6, best * 6, 60)
        losses = found.law.loss(sizes, flops / (6 * sizes))
        name = f"{flops:.2g} FLOPs"
        figure.add_scatter(x=sizes, y=losses, mode="lines", line={"color": color}, name=name)
        lowest = {"x": [best], "y": [float(losses.min())], "name": f"best for {name}"}
        figure.add_scatter(
            mode="markers", marker={"color": color, "size": 9}, showlegend=False, **lowest
        )
    return with_axes(figure, "parameters", "val/loss (nats), by the law")


def write_page(folder: Path, found: Scaling) -> None:
    """scaling.html: the curves, and what the terminal says. Raises DiskError."""
    last = found.points[-1]
    tokens = last.tokens * np.array([0.25, 0.5, 1, 2, 4, 8])

    def gains_by(law: Law) -> Any:
        return law.loss(last.parameters, tokens) - law.loss(last.parameters, 2 * tokens)

    least, most = interval([gains_by(law) for law in found.laws])
    gains = zip(tokens, gains_by(found.law), least, most, strict=True)
    rows = [[f"{n:,.0f}", f"{gain:.4f} ({low:.4f} to {high:.4f})"] for n, gain, low, high in gains]
    parts = {
        "text": found.text(),
        "by_data": page.plot_html(data_figure(found)),
        "by_compute": page.plot_html(compute_figure(found)),
        "gains": rows,
    }
    title = f"Scaling {folder.resolve().name}"
    write_text(folder / "scaling.html", page.render("scaling", title, parts))
