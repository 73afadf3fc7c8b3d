"""Nothing -> docs/course/quiz.png, curves of six broken runs; docs/course/rates.png, three rates."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lmtemplate.record import Floats, Record
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.show.plots import COLORS, INK, SERIES, save
from tests.study.records import FACTS, START, UNIGRAM, cosine, power_law, record, stopping

FOLDER = Path(__file__).parent
CURVATURE = 20.0  # of the bowl in rates.png: beyond the rate 2 / 20 nothing settles


def quiz() -> dict[str, tuple[Record, Facts]]:
    """Letter -> what a broken run has logged, and what else is known of it."""
    rows = np.arange(100)
    noise = 0.03 * np.random.default_rng(1).standard_normal(100)
    parted = START + (0.6 - START) * rows / 100 + noise
    turned = np.append(np.linspace(3.6, 2.6, 5), np.linspace(2.65, 3.4, 5))
    crashed = np.where(rows < 60, power_law(), 3.3 + noise)
    humped = power_law() + 2.5 * np.exp(-(((rows - 3) / 3) ** 2))
    risen = np.append(power_law(30), np.linspace(1.8, 5.5, 70)) + 5 * noise
    return {
        "A": (record(START - 0.02 * rows / 100 + 0.3 * noise), FACTS),
        "B": (record(parted, val=turned), FACTS),
        "C": (record(crashed), FACTS),
        "D": (record(stopping(UNIGRAM)), FACTS),
        "E": (record(humped, rate=cosine(warmup=0)), replace(FACTS, warmup_steps=0)),
        "F": (record(risen, rate=np.full(100, 3e-2)), FACTS),
    }


def draw_quiz() -> Figure:
    figure = Figure(figsize=(9, 5), dpi=80, layout="constrained")
    for axes, (letter, (found, _)) in zip(figure.subplots(2, 3).flat, quiz().items(), strict=True):
        axes.plot(found.steps, found.train_loss, color=COLORS["train loss"], label="training loss")
        there = ~np.isnan(found.val_loss)
        if there.any():
            red = COLORS["validation loss"]
            axes.plot(
                found.steps[there], found.val_loss[there], "o-", color=red, label="validation"
            )
        axes.axhline(START, color=INK, linestyle=":", label="ln V, guessing")
        axes.axhline(UNIGRAM, color=INK, linestyle="--", label="token frequencies")
        axes.set(title=letter, ylim=(0, 6), xlabel="step", ylabel="nats per token")
    figure.axes[1].legend(fontsize=7)
    return figure


def descent(rate: float, steps: int = 12) -> Floats:
    """(steps + 1,) distances from the bottom of a bowl: each step keeps 1 - rate * curvature."""
    return (1 - rate * CURVATURE) ** np.arange(steps + 1)


def draw_rates() -> Figure:
    figure = Figure(figsize=(7, 3), dpi=80, layout="constrained")
    axes = figure.subplots()
    for rate, color in zip((0.005, 0.03, 0.05, 0.1, 0.102), SERIES, strict=False):
        axes.plot(descent(rate), ".-", color=color, label=f"rate {rate:g}")
    axes.set(xlabel="step", ylabel="distance from the bottom", title="a bowl of curvature 20")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else FOLDER
    save(draw_quiz(), folder / "quiz.png")
    save(draw_rates(), folder / "rates.png")
