"""A run's record -> training_curve.png, loss_by_epoch.png, and the same curves as text."""

import os
import textwrap
from collections.abc import Iterable
from contextlib import redirect_stderr, suppress
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmtemplate import metric_names
from lmtemplate.errors import CheckpointError, DiskError
from lmtemplate.record import Floats, Ints, Record, from_lines, is_recorded
from lmtemplate.run_dir import folder_of, refuse_links
from lmtemplate.study.long_record import read_any_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Ints, Floats]  # steps, values
# The palette of all pictures and pages; the lines are legible on white and on near-black.
COLORS = {"train loss": "#1f77b4", "validation loss": "#d62728", "learning rate": "#2ca02c"}
SERIES = ("#2f86d1", "#d9651f", "#159a72", "#c26aa3", "#a8841a", "#8a74d6", "#7f8c8d")  # runs
ON_A_MAP = ("#111111", "#1f5fd6", "#a01ab8", "#9a4a00")  # lines on a map from green to red
INK, GRID = "#767676", "rgba(128, 128, 128, 0.25)"  # text and grid lines

MOST_POINTS = 2000  # a line has two for each pixel across: the lowest and the highest
LARGEST_DRAWN = 1e15  # drawn in a terminal: uniplot's axes need room between their numbers
MOST_MARKERS = 60  # more markers would hide the line


def epoch_averages(record: Record) -> list[tuple[int, float, bool]]:
    """Each pass over the data: its number from 0, mean training loss, whether it was completed.

    A row is weighted by the number of steps since the row before, and belongs to the pass that its
    last sequence is in. A pass without a row has no average. Only the last can be incomplete.
    """
    if not len(record):
        return []
    steps = np.diff(record.steps, prepend=0)
    epochs, which = np.unique(record.epochs, return_inverse=True)
    losses = np.bincount(which, steps * record.train_loss) / np.bincount(which, steps)
    made = np.nanmax(record.values.get(metric_names.EPOCH, record.epochs))  # passes, as 3.72
    complete = (epochs < epochs[-1]) | (epochs + 1 <= made)
    return list(zip(epochs.tolist(), losses.tolist(), complete.tolist(), strict=True))


def thin(steps: Ints, values: Floats) -> Curve:
    """At most about MOST_POINTS points of a curve: its ends, and the extremes of each stretch."""
    size = -(-2 * len(values) // MOST_POINTS)
    if size <= 2:
        return steps, values
    stretches = np.pad(values, (0, -len(values) % size), constant_values=np.nan).reshape(-1, size)
    starts = np.arange(0, len(values), size)
    lowest, highest = (np.nan_to_num(s, nan=np.inf).argmin(1) for s in (stretches, -stretches))
    kept = np.unique(np.concatenate([[0, len(values) - 1], starts + lowest, starts + highest]))
    return steps[kept], values[kept]


def curves_of(record: Record) -> dict[str, Curve]:
    """Name -> thinned curve, of all that was logged."""
    initial = np.nan if record.initial_val_loss is None else record.initial_val_loss
    early = record.values.get(metric_names.EARLY_VAL_LOSS, np.full(len(record), np.nan))
    losses = np.insert(np.where(np.isnan(record.val_loss), early, record.val_loss), 0, initial)
    there = ~np.isnan(losses)
    rates = np.where(record.learning_rate > 0, record.learning_rate, np.nan)  # 0: on no log axis
    curves = {
        "train loss": (record.steps, record.train_loss),
        "validation loss": (np.insert(record.steps, 0, 0)[there], losses[there]),
        "learning rate": (record.steps, rates),
    }
    return {name: thin(*curve) for name, curve in curves.items() if not np.isnan(curve[1]).all()}


def decades(rates: Floats) -> tuple[float, float]:
    """Ends of a log axis: the powers of ten around the rates, and a small margin."""
    low, high = np.log10(np.maximum([np.nanmin(rates), np.nanmax(rates)], 1e-300))
    return 10 ** (np.floor(low) - 0.1), 10 ** (np.ceil(high) + 0.1)


def notes(record: Record) -> list[str]:
    """What the curves cannot show."""
    left_out = {
        "rate 0, not on a log axis": record.steps[record.learning_rate == 0].tolist(),
        "loss not finite, not drawn": record.nonfinite_steps,
    }
    return [
        f"{what}: first at step {steps[0]:,}, {len(steps):,} in all"
        for what, steps in left_out.items()
        if steps
    ]


def _new_figure(name: str) -> "Figure":
    from matplotlib import rcdefaults
    from matplotlib.figure import Figure

    rcdefaults()  # a matplotlibrc in the working directory can have programs run
    figure = Figure(figsize=(8, 6), dpi=125)  # 1000 x 750 pixels
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    figure.suptitle(textwrap.fill(name, 70), parse_math=False)  # a name's $ is a $
    return figure


def _finish(axes: "Axes", x_label: str, y_label: str, said: list[str]) -> None:
    """Label axes, and write what the curves do not show above them."""
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=x_label, ylabel=y_label)
    axes.tick_params(labelbottom=True)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    if axes.get_lines():
        axes.legend()
    axes.set_title("\n".join(said), fontsize="small", loc="left", color="0.3")


def draw_curves(record: Record, name: str) -> "Figure":
    """Losses over steps, and below them the learning rate on a log axis."""
    figure, curves = _new_figure(name), curves_of(record)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[5, 3])
    rates.set_yscale("log")
    for what, (steps, values) in curves.items():
        axes = rates if what == "learning rate" else losses
        marker = "o" if len(steps) <= MOST_MARKERS else ""
        axes.plot(steps, values, color=COLORS[what], label=what, marker=marker, markersize=4)
    if "learning rate" in curves:
        rates.set_ylim(decades(curves["learning rate"][1]))
    _finish(losses, "training steps", "loss (nats per token)", [])
    _finish(rates, "training steps", "learning rate (log)", notes(record))
    return figure


def draw_epochs(record: Record, name: str) -> "Figure":
    """The average loss of each pass over the data; the point of an incomplete one is hollow."""
    figure = _new_figure(name)
    axes, said = figure.subplots(), list[str]()
    epochs, losses, complete = zip(*epoch_averages(record), strict=True)
    color, size = COLORS["train loss"], 8 if len(epochs) <= MOST_MARKERS else 3
    axes.plot(epochs, losses, "o-", color=color, markersize=size, label="average train loss")
    if metric_names.EPOCH not in record.values:
        said += ["the passes over the data were not logged"]
    elif not complete[-1]:
        share = np.nanmax(record.values[metric_names.EPOCH]) - epochs[-1]
        what = f"epoch {epochs[-1]}, incomplete ({share:.3g} of it)"
        axes.plot(epochs[-1], losses[-1], "wo", markeredgecolor=color, markersize=size, label=what)
        if epochs[-1] == 0:
            said += [f"this run is shorter than one pass over the data: {share:.3g} of it"]
    if len(epochs) <= epochs[-1]:
        said += ["a pass that lies between two logging points has no average"]
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    _finish(axes, "epoch number (0 is the first)", "average loss (nats per token)", said)
    return figure


def save(figure: "Figure", path: Path) -> None:
    """Replace a PNG file in one step: the old one stays where drawing fails. Raises DiskError."""
    content = BytesIO()  # a process that is ended while it draws leaves no file
    with redirect_stderr(StringIO()):  # warnings about glyphs that a font lacks
        figure.savefig(content, format="png", dpi="figure")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two processes may draw one run
    try:
        with temporary.open("xb") as file:  # a link of that name could lead anywhere
            file.write(content.getvalue())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot write {path}: {error.strerror or error}") from error


def text_plot(
    curves: Iterable[tuple[Ints | Floats, Floats]], marks: str, width: int, **options: object
) -> str:
    """Curves over steps from 0 on, each with its own mark: the first a line, the others points."""
    from uniplot import plot_to_string  # plotext is compiled, and draws on one global figure

    drawable = ((x, np.clip(y, -LARGEST_DRAWN, LARGEST_DRAWN)) for x, y in curves)
    xs, ys = zip(*drawable, strict=True)
    options = {"x_min": 0, "x_max": 1.001 * max(steps[-1] for steps in xs), **options}
    options |= {"lines": [True, False][: len(xs)], "force_ascii_characters": list(marks)}
    options |= {"width": width - 11, "line_length_hard_cap": width}  # labels have 8 characters
    options |= {"x_gridlines": [], "y_gridlines": [], "character_set": "ascii", "color": False}
    boxes = str.maketrans("┌┐└┘─│", "++++-|")  # a log file may be ASCII only
    return plot_to_string(xs=xs, ys=ys, **options).translate(boxes)


def rate_in_terminal(steps: Ints, rates: Floats, width: int = 72, height: int = 6) -> str:
    """(N,) steps and their learning rates on a linear axis from 0, in ASCII."""
    highest = min(float(np.nanmax(rates)), LARGEST_DRAWN)
    highest = highest if highest > 1e-50 else 1.0
    return text_plot([thin(steps, rates)], "#", width, height=height, y_min=0, y_max=highest)


def data_in_terminal(record: Record, width: int = 72, height: int = 6) -> str:
    """Validation loss against the tokens read, on a log axis, in ASCII; "" if not logged."""
    steps, losses = curves_of(record).get(
        "validation loss", (record.steps[:0], record.train_loss[:0])
    )
    tokens = record.values.get(metric_names.TOKENS, np.zeros(len(record)))
    tokens = tokens[np.searchsorted(record.steps, steps[steps > 0])]
    if len(tokens) < 2 or not (tokens > 0).all():
        return ""
    amounts, losses = np.log10(tokens), losses[steps > 0]
    first, last = (f"{tokens[i]:,.0f} tokens: {losses[i]:.3f}" for i in (0, -1))
    ends = {"x_min": amounts.min(), "x_max": amounts.max()}
    plot = text_plot([(amounts, losses)], "o", width, height=height, **ends)
    return f"validation loss against data, log axis (10^x tokens): {first} -> {last}\n{plot}"


def in_terminal(record: Record, width: int = 72, height: int = 12) -> str:
    """Losses and the learning rate over steps, in ASCII; `width` is 30 at least."""

    def span(values: Floats) -> str:
        return " -> ".join(f"{value:.4g}" for value in values[[0, -1]][: len(values)])

    curves = curves_of(record)
    rate = curves.pop("learning rate", None)
    says = [f"{name} {span(values)}" for name, (_, values) in curves.items()]
    parts = [f"{record.steps[-1]:,} steps: * {', o '.join(says)}"]
    parts += [text_plot(curves.values(), "*o", width, height=height)]
    if rate is not None:
        parts += [f"learning rate {span(record.learning_rate)}, highest {np.nanmax(rate[1]):.4g}"]
        parts += [rate_in_terminal(record.steps, record.learning_rate, width, max(3, height // 2))]
    parts += notes(record)
    return "\n".join(part if "\n" in part else textwrap.fill(part, width) for part in parts)


def plot(run: Path, quiet: bool = False) -> None:
    """Draw a run's record: training_curve.png and loss_by_epoch.png in its checkpoints folder.

    Args:
        run: run directory.
        quiet: for use beside a training: low priority, no output, no error where it is too early.
    """
    if quiet and hasattr(os, "nice"):
        os.nice(19)
    if not run.is_dir():
        raise CheckpointError(f"no run {run}; a run directory is what `lmtemplate fit` has made")
    refuse_links(run)
    record, folder = read_any_record(run) if is_recorded(run) else from_lines([]), folder_of(run)
    if len(record) < 2:
        if quiet:
            return
        raise CheckpointError(f"{folder} has no record of two points or more; train first")
    for file, draw in (("training_curve.png", draw_curves), ("loss_by_epoch.png", draw_epochs)):
        save(draw(record, run.resolve().name), folder / file)
        if not quiet:
            print(folder / file)
