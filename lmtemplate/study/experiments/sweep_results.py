"""The trials of a sweep -> a table, sweep.html, and best.yaml, a config that runs."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.cli_classes import to_yaml
from lmtemplate.errors import CheckpointError
from lmtemplate.run_dir import write_text
from lmtemplate.study.experiments.arms import SEED_KEY
from lmtemplate.study.experiments.space import Range, Space, importances, main_effects
from lmtemplate.study.experiments.trials import Trial
from lmtemplate.study.run_files import duration, read_checked
from lmtemplate.study.show import page
from lmtemplate.study.show.compare import verdict_of
from lmtemplate.study.show.plots import SERIES

PALE = "#b4b4b4"  # of the worst trial's line
FEWEST_TRIALS = 4  # complete trials, for importances to mean anything


@dataclass(frozen=True)
class TrialRow:
    """A trial in the table; None where nothing is known."""

    number: int
    settings: dict[str, str]
    state: str
    val_loss: float | None
    bits_per_byte: float | None
    step: int | None  # of the best validation
    seconds: float | None
    verdict: str
    run: str


@dataclass(frozen=True)
class Results:
    """The table, best first; the shares of the keys; and why there are none."""

    rows: list[TrialRow]
    importance: dict[str, float]
    notes: list[str]
    folder: Path
    allowed: Sequence[str] = ()

    def as_json(self) -> dict[str, Any]:
        rows = [asdict(row) for row in self.rows]
        best = rows[0] if rows and rows[0]["val_loss"] is not None else None
        return {"best": best, "trials": rows, "importance": self.importance, "notes": self.notes}

    def cells(self) -> list[list[str]]:
        """Heading and rows of the table."""
        keys = list(self.rows[0].settings) if self.rows else []
        head = ["trial", *keys, "val/loss", "bits per byte", "at step", "time", "verdict"]
        return [head] + [
            [
                str(row.number),
                *row.settings.values(),
                page.number(row.val_loss, ".4f"),
                page.number(row.bits_per_byte, ".4f"),
                page.number(row.step),
                page.number(row.seconds, duration),
                row.verdict if row.state == "complete" else f"{row.state}: {row.verdict}",
            ]
            for row in self.rows
        ]

    def text(self) -> str:
        """For a terminal."""
        lines = page.table_lines(self.cells())
        shares = ", ".join(f"{key} {share:.0%}" for key, share in self.importance.items())
        lines += [f"what matters (share of the variance): {shares}"] if shares else []
        lines += [f"note: {note}" for note in self.notes]
        if self.as_json()["best"]:
            words = ["lmtemplate", "fit", "--config", str(self.folder / "best.yaml")]
            words += [word for package in self.allowed for word in ("--allow", package)]
            lines.append(f"best config: {shlex.join(words)}")
        return "\n".join([*lines, f"page: {self.folder / 'sweep.html'}"])


def row_of(folder: Path, trial: Trial, allowed: Sequence[str]) -> TrialRow:
    """What a trial's run directory says of it."""
    path = folder / f"trial-{trial.number:03d}"
    loss = bits = step = seconds = None
    verdict = page.NONE
    try:
        run = page.read_run(path)
        steps, losses = run.record.validations
        if len(losses):
            place = losses.argmin()
            loss, step = float(losses[place]), int(steps[place])
            bits = dict(zip(*run.logged(page.BITS), strict=True)).get(step)
        seconds = run.summary.get("seconds")
        verdict = verdict_of(run, allowed)
    except CheckpointError:
        verdict = f"see {folder / 'logs' / path.name}.txt"
    bits, state = None if bits is None else float(bits), trial.state or "unfinished"
    known = loss, bits, step, seconds, verdict, str(path)
    return TrialRow(trial.number, trial.settings, state, *known)


def write_best_config(folder: Path, best: TrialRow) -> None:
    """The best trial's config, as a run of its own in a folder that is new."""
    settings = read_checked(Path(best.run) / "config.yaml", {})
    settings.update(run_dir=str(folder / "best"), report=True)
    write_text(folder / "best.yaml", f"# trial {best.number}\n{to_yaml(settings)}")


def heights(values: Sequence[float], is_log: bool = False) -> list[float]:
    """Numbers as places from 0 to 1 along an axis."""
    places = np.log10(values) if is_log else np.asarray(values, dtype=np.float64)
    span = float(np.ptp(places)) or 1.0
    return [float(place) for place in (places - places.min()) / span]


def parallel_coordinates(space: Space, rows: Sequence[TrialRow]) -> Any:
    """A line for each trial through its settings to its loss, in the colour of its rank: blue to grey.

    Plotly's own figure of this name needs WebGL, which not every browser has.
    """
    import plotly.graph_objects as go
    from plotly.colors import sample_colorscale

    axes, texts = list[list[float]](), [[row.settings[key] for row in rows] for key in space]
    for of, shown in zip(space.values(), texts, strict=True):
        if isinstance(of, Range):
            axes.append(heights([float(text) for text in shown], of.is_log))
        else:
            axes.append(heights([float(of.index(text)) for text in shown]))
    axes.append(heights([row.val_loss or 0.0 for row in rows]))
    texts.append([page.number(row.val_loss, ".4f") for row in rows])
    texts = [[page.label(text) for text in shown] for shown in texts]
    names = [*(page.label(key.rpartition(".")[2]) for key in space), "val/loss"]
    figure, ranks = go.Figure(), np.linspace(0, 1, len(rows)).tolist()
    for index, color in enumerate(sample_colorscale([SERIES[0], PALE], ranks)):
        figure.add_scatter(
            x=list(range(len(axes))),
            y=[axis[index] for axis in axes],
            text=[f"{name} {text[index]}" for name, text in zip(names, texts, strict=True)],
            name=f"trial {rows[index].number}",
            mode="lines+markers",
            line={"color": color, "width": 2},
            hovertemplate="%{text}",
        )
    for place, (axis, shown) in enumerate(zip(axes, texts, strict=True)):
        for height, text in {*zip(axis, shown, strict=True)}:
            where = {"x": place, "y": height, "xanchor": "left", "xshift": 8}
            figure.add_annotation(text=text, showarrow=False, **where)
    page.style_figure(figure, 450)
    figure.update_xaxes(
        tickvals=list(range(len(axes))), ticktext=names, side="top", range=[-0.1, len(axes) - 0.7]
    )
    figure.update_yaxes(visible=False)
    return figure


def edge_notes(rows: Sequence[TrialRow]) -> list[str]:
    """Numbers whose best value is the lowest or highest of three or more; `rows`, best first."""
    notes = []
    for key, best in rows[0].settings.items() if rows else ():
        try:
            tried = sorted({float(row.settings[key]) for row in rows})
        except ValueError:
            continue
        if key != SEED_KEY and len(tried) > 2 and float(best) in (tried[0], tried[-1]):
            end, beyond = ("lowest", "below") if float(best) == tried[0] else ("highest", "above")
            notes.append(
                f"the best {key}, {best}, is the {end} that was tried: try some {beyond} it"
            )
    return notes


def finish(folder: Path, space: Space, trials: Sequence[Trial], allowed: Sequence[str]) -> Results:
    """Read what the trials left, and write best.yaml and sweep.html."""
    rows = [row_of(folder, trial, allowed) for trial in trials]
    rows.sort(key=lambda row: (row.state != "complete", row.val_loss is None, row.val_loss or 0))
    notes, shares = edge_notes([row for row in rows if row.state == "complete"]), {}
    complete = [trial for trial in trials if trial.state == "complete"]
    if len(complete) < FEWEST_TRIALS:
        notes.append(f"importances need {FEWEST_TRIALS} complete trials")
    elif len(space) > 1:
        listed = not any(isinstance(of, Range) and not of.points for of in space.values())
        shares = (main_effects if listed else importances)(space, trials)
    if SEED_KEY not in space:
        notes.append("one seed each: it may be noise; add --over seed_everything=1,2,3")
    results = Results(rows, shares, notes, folder, allowed)
    if complete:
        write_best_config(folder, rows[0])
    drawn = [row for row in rows if row.val_loss is not None]
    head, *table = results.cells()
    parts = {"head": head, "rows": table, "notes": [*notes], "importance": shares}
    figure = page.plot_html(parallel_coordinates(space, drawn)) if drawn else ""
    html = page.render("sweep", f"Sweep {folder.resolve().name}", {**parts, "figure": figure})
    write_text(folder / "sweep.html", html)
    return results
