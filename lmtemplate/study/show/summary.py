"""A run's record and summary.json -> the figures that one asks for first, in the terminal."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate import metric_names
from lmtemplate.record import Record
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.trend import trend_of
from lmtemplate.study.long_record import read_any_record
from lmtemplate.study.run_files import duration, read_settings, read_summary
from lmtemplate.study.show.plots import data_in_terminal, epoch_averages, in_terminal


def _loss_lines(record: Record) -> Iterator[str]:
    losses, steps, rows = record.train_loss, record.steps, len(record)
    first, last = losses[0], losses[-1]
    yield f"Total steps: {rows:,} log points, {steps[-1]:,} optimizer steps"
    if record.initial_val_loss is not None:
        yield f"Before step 1: {record.initial_val_loss:.4f} (validation)"
    yield f"Initial loss: {first:.4f} (mean of steps 1 to {steps[0]:,})"
    yield f"Final loss: {last:.4f}"
    yield f"Loss reduction: {first - last:.4f}"
    yield f"Reduction percentage: {1 - last / first:.1%}"
    by_step = (first - last) / max(1, steps[-1] - steps[0])
    yield (
        f"Loss decrease per step: {(first - last) / rows:.6f} for each log point, "
        f"{by_step:.6f} for each optimizer step"
    )
    trend = trend_of(record, Facts())
    if trend and trend.gap is not None:
        yield f"Gap: {trend.gap:.4f} (last validation - {trend.final:.4f}, median of the last rows)"
    passes = epoch_averages(record)
    if len(passes) <= 12:
        shown = (f"{loss:.3f}{'' if complete else ' (unfinished)'}" for _, loss, complete in passes)
        yield f"Average loss per epoch: {', '.join(shown)}"


def _rate_lines(record: Record) -> Iterator[str]:
    rates = record.learning_rate[~np.isnan(record.learning_rate)]
    if not len(rates):
        return
    first, last, peak = rates[0], rates[-1], rates.max()
    yield f"\nLearning Rate:\n  Initial: {first:.6f}, peak: {peak:.6f}\n  Final: {last:.6f}"
    if first:
        yield f"  Decay factor: {last / first:.6f} of the first, {last / peak:.6f} of the peak"


def _best_lines(record: Record) -> Iterator[str]:
    steps, losses = record.validations
    yield "\nBest checkpoint:"
    if len(steps):
        best = int(losses.argmin())
        bits = record.values.get(metric_names.VAL_BITS_PER_BYTE)
        row = np.searchsorted(record.steps, steps[best])
        in_bits = "" if bits is None else f", {bits[row]:.4f} bits per byte"
        with np.errstate(over="ignore"):  # a run that diverged
            perplexity = np.exp(losses[best])
        yield f"  Step: {steps[best]:,} (by validation loss)"
        yield f"  Loss: {losses[best]:.4f}{in_bits}, perplexity {perplexity:.2f}"
    lowest = record.train_loss.argmin()
    yield (
        f"  Lowest training loss: {record.train_loss[lowest]:.4f} at step "
        f"{record.steps[lowest]:,} (one log point; noise and overfitting lower it: it chooses no checkpoint)"
    )


def training_summary(record: Record) -> str:
    """Losses, learning rates and the best checkpoint: by log points and by optimizer steps."""
    lines = ["=== Training Summary ==="]
    if not len(record):
        return "\n".join([*lines, "nothing was logged yet"])
    return "\n".join([*lines, *_loss_lines(record), *_rate_lines(record), *_best_lines(record)])


def before_and_after(record: Record) -> str:
    """The continuations of one prompt by the untrained and the trained model, if there are two."""
    written = [texts for _, texts in sorted(record.samples.items()) if texts]
    common = [prompt for prompt in written[-1] if prompt in written[0]] if written[1:] else []
    if not common:
        return ""
    prompt = common[-1]
    lines = [f'"{prompt}", continued' if prompt else "the start of a document, continued"]
    for title, texts in (("  before   ", written[0]), ("  after    ", written[-1])):
        text = " ".join(f"{prompt}{texts[prompt]}".split())
        lines += textwrap.wrap(text, 100, initial_indent=title, subsequent_indent=" " * len(title))
    return "\n".join(lines)


def plan_and_result(settings: dict[str, Any], summary: dict[str, Any]) -> str:
    """What `plan` predicted, from config.yaml, beside what came of it; "" for a run without a plan."""
    planned = settings.get("planned.init_args.tokens_per_second")
    measured, tokens = summary.get("tokens_per_second"), summary.get("tokens")
    if not (planned and measured and tokens):
        return ""
    lines = [
        f"  planned  {planned:,.0f} tokens/s, {duration(tokens / planned)} of training; measured: "
        f"{measured:,.0f} tokens/s, {duration(tokens / measured)}"
    ]
    loss, best = settings.get("planned.init_args.val_loss"), summary.get("best") or {}
    if loss and best.get("val_loss"):
        law = "by the law for web text, with another vocabulary"
        lines.append(f"           val/loss {loss:.2f} {law}; measured: {best['val_loss']:.2f}")
    return "\n".join(lines)


def costs(summary: dict[str, Any]) -> str:
    """Time and compute of a run, from its summary.json."""
    rows, seconds, flops = [], summary.get("seconds"), summary.get("flops")
    if seconds:
        rows.append(f"  time     {duration(seconds)}, over all starts, with validation and saving")
    by_6nd, tokens = summary.get("flops_6nd"), summary.get("tokens")
    if flops and by_6nd and tokens:
        count = f"{flops:.3g} FLOPs by the model's own count ({by_6nd:.3g} by 6ND)"
        rows.append(f"  cost     {count}, {tokens:,} tokens")
    if seconds and summary.get("devices"):
        hours = seconds * summary["devices"] / 3600
        rows.append(f"           {hours:.3g} device-hours: times your price per hour is the money")
    return "\n".join(rows)


def summary(run: Path) -> None:
    """Print a run's losses, rates and costs, with loss and learning rate drawn.

    Args:
        run: run directory.
    """
    record, ended = read_any_record(run), read_summary(run)
    parts = [
        in_terminal(record) if len(record) else "",
        data_in_terminal(record),
        training_summary(record),
        before_and_after(record),
        "\n".join(filter(None, (costs(ended), plan_and_result(read_settings(run), ended)))),
    ]
    print("\n\n".join(part for part in parts if part))
