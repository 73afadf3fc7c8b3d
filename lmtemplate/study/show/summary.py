"""A run's record and summary.json -> the figures that a person asks for first."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate.record import Record, read_record
from lmtemplate.run_dir import duration, read_json
from lmtemplate.study.show.plots import epoch_averages, in_terminal

WIDTH = 100
INDENT = " " * 11


def _loss_lines(record: Record) -> list[str]:
    losses, steps = record.train_loss, record.steps
    first, last, rows = losses[0], losses[-1], len(record)
    lines = [
        f"Total steps: {rows:,} log points, {steps[-1]:,} optimizer steps",
        f"Initial loss: {first:.4f} (mean of steps 1 to {steps[0]:,})",
        f"Final loss: {last:.4f}",
        f"Loss reduction: {first - last:.4f}",
        f"Reduction percentage: {1 - last / first:.1%}",
        f"Loss decrease per step: {(first - last) / rows:.6f} by log points, "
        f"{(first - last) / max(1, steps[-1] - steps[0]):.6f} by optimizer steps",
    ]
    if record.initial_val_loss is not None:
        lines.insert(1, f"Before step 1: {record.initial_val_loss:.4f} (validation)")
    if len(record.validations[0]):
        gap = record.validations[1][-1] - last
        lines.append(
            f"Gap: {gap:.4f} (last validation - final training; above 0.5, mind overfitting)"
        )
    passes = epoch_averages(record)
    shown = ", ".join(f"{of.loss:.3f}" + ("" if of.complete else " (unfinished)") for of in passes)
    return [*lines, f"Average loss per epoch: {shown}"] if len(passes) <= 12 else lines


def _rate_lines(record: Record) -> list[str]:
    rates = record.learning_rate[~np.isnan(record.learning_rate)]
    if not len(rates):
        return []
    lines = [
        "",
        "Learning Rate:",
        f"  Initial: {rates[0]:.6f}, peak: {rates.max():.6f}",
        f"  Final: {rates[-1]:.6f}",
    ]
    if rates[0]:
        lines.append(
            f"  Decay factor: {rates[-1] / rates[0]:.6f} of the first, "
            f"{rates[-1] / rates.max():.6f} of the peak"
        )
    return lines


def _best_lines(record: Record) -> list[str]:
    steps, losses = record.validations
    lowest = int(record.train_loss.argmin())
    lines = ["", "Best checkpoint:"]
    if len(steps):
        best = int(losses.argmin())
        row = int(np.searchsorted(record.steps, steps[best]))
        bits = record.values.get("val/bits_per_byte")
        in_bits = "" if bits is None else f", {bits[row]:.4f} bits per byte"
        lines.append(f"  Step: {steps[best]:,} (by validation loss)")
        with np.errstate(over="ignore"):  # a run that diverged
            perplexity = np.exp(losses[best])
        lines.append(f"  Loss: {losses[best]:.4f}{in_bits}, perplexity {perplexity:.2f}")
    lines.append(
        f"  Lowest training loss: {record.train_loss[lowest]:.4f} at step "
        f"{record.steps[lowest]:,} (noise and memory lower it, too: not what is kept)"
    )
    return lines


def training_summary(record: Record) -> str:
    """The quantities of a training summary, and beside those that mislead, the honest ones."""
    if not len(record):
        return "=== Training Summary ===\nnothing was logged yet"
    lines = [*_loss_lines(record), *_rate_lines(record), *_best_lines(record)]
    return "\n".join(["=== Training Summary ===", *lines])


def before_and_after(record: Record) -> str:
    """What the untrained and the trained model make of the same prompt; empty without samples."""
    written = {step: texts for step, texts in record.samples.items() if texts}
    if len(written) < 2:
        return ""
    first, last = min(written), max(written)
    prompt = next((p for p in reversed(written[last]) if p in written[first]), None)
    if prompt is None:
        return ""

    def quoted(title: str, step: int) -> str:
        text = " ".join(f"{prompt}{written[step][prompt]}".split())
        return textwrap.fill(text, WIDTH, initial_indent=f"  {title:<8} ", subsequent_indent=INDENT)

    name = f'"{prompt}"' if prompt else "the start of a document"
    return "\n".join([f"{name}, continued", quoted("before", first), quoted("after", last)])


def costs(summary: dict[str, Any]) -> str:
    """Time and compute of a run, from its summary.json."""
    rows = []
    if summary.get("seconds"):
        rows.append(f"time     {duration(summary['seconds'])}, over all starts")
    if summary.get("flops") and summary.get("flops_6nd"):
        rows.append(
            f"cost     {summary['flops']:.3g} FLOPs by the model's own count "
            f"({summary['flops_6nd']:.3g} by 6ND), {summary['tokens']:,} tokens"
        )
    if summary.get("seconds") and summary.get("devices"):
        hours = summary["seconds"] * summary["devices"] / 3600
        rows.append(f"         {hours:.3g} device-hours: times your price per hour is the money")
    return "\n".join(f"  {row}" for row in rows)


def summary(run: Path) -> None:
    """Print a run's losses, rates and costs, with loss and learning rate drawn.

    Args:
        run: run directory.
    """
    record = read_record(run)
    parts = [
        in_terminal(record) if len(record) else "",
        training_summary(record),
        before_and_after(record),
        costs(read_json(run / "summary.json") or {}),
    ]
    print("\n\n".join(part for part in parts if part))
