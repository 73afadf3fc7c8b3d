"""A run -> one HTML file that explains it: verdict, curves, samples, costs, settings, machine."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmtemplate import metric_names
from lmtemplate.errors import ConfigError
from lmtemplate.record import Floats
from lmtemplate.run_dir import write_text
from lmtemplate.study.diagnose.diagnose import MARKS, Examination, examine
from lmtemplate.study.run_files import duration
from lmtemplate.study.show import page
from lmtemplate.study.show.page import NONE, RunFiles, number
from lmtemplate.study.show.plots import notes

BOUNDS = (0.0, 0.8, 0.98, 1.0)  # where each part of the improvement begins or ends
PARTS = ("first 80 %", "next 18 %", "last 2 %", "after the best")
FILES = {
    "config.yaml": "every setting",
    "manifest.json": "command, code, versions, machine, seed, data",
    "summary.json": "the result",
}


def steps_at(run: RunFiles) -> Floats | None:
    """The steps at which BOUNDS of the improvement of the validation loss were reached.

    Between two validations that set a new best, the loss is taken to fall in a straight line. None
    where it was not measured before step 1, or never fell.
    """
    initial, (steps, losses) = run.record.initial_val_loss, run.record.validations
    if initial is None or not (losses < initial).any():
        return None
    best = np.minimum.accumulate(np.insert(losses, 0, initial))
    gains, first = np.unique(initial - best, return_index=True)
    reached = np.insert(steps, 0, 0)[first]
    return np.asarray(np.interp(np.array(BOUNDS) * gains[-1], gains, reached))


def costs_of(run: RunFiles, price_per_hour: float | None) -> dict[str, Any] | None:
    """The cost of each part of the improvement: steps, tokens, time, share of the run, money."""
    bounds = steps_at(run)
    if bounds is None:
        return None
    edges = np.array([*bounds, run.record.steps[-1]], dtype=np.float64)
    steps, seconds = np.diff(edges), np.diff(run.counted(metric_names.TRAINING_SECONDS, edges))
    counts = edges.round(), run.counted(metric_names.TOKENS, edges).round()  # so that they add up
    columns: dict[str, Iterable[str]] = {
        "part": PARTS,
        "steps": map(number, np.diff(counts[0])),
        "tokens": map(number, np.diff(counts[1])),
        "time": (number(second, duration) for second in seconds),
        "share": (f"{share:.1%}" for share in steps / edges[-1]),
    }
    if price_per_hour is not None:
        columns["money"] = (number(second / 3600 * price_per_hour, ".4g") for second in seconds)
    return {
        "initial": number(run.record.initial_val_loss, ".4f"),
        "best": number(run.record.validations[1].min(), ".4f"),
        "ratio": f"{steps[2] / steps[0]:.2g}",
        "head": [*columns],
        "rows": [*zip(*columns.values(), strict=True)],
    }


def samples_of(run: RunFiles) -> dict[str, list[tuple[str, str]]]:
    """Prompt -> what the model wrote at each step, untrained first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for step, texts in sorted(run.record.samples.items()):
        for prompt, text in texts.items():
            row = f"step {step:,}" if step else "untrained", prompt + text
            found.setdefault(prompt, []).append(row)
    return found


def when(manifest: dict[str, Any]) -> str:
    """When a run began, and when it last went on."""
    if not (resumed := manifest.get("resumed")):
        return manifest.get("started") or ""
    times, last = len(resumed), resumed[-1]
    place = f"at step {number(last.get('step'))}, {last.get('started') or NONE}"
    return (
        f"{manifest.get('started') or NONE}; resumed {times} time{'s' * (times > 1)}, last {place};"
    )


def figure_rows(run: RunFiles) -> Iterator[tuple[str, str]]:
    """The numbers of a run, in the order in which one asks for them."""
    summary, manifest = run.summary, run.manifest
    yield from page.figures_of(run).items()
    parameters, tokens = summary.get("parameters"), run.total(metric_names.TOKENS)
    yield "parameters", number(parameters)
    if parameters and tokens > 0:
        yield "tokens per parameter", f"{tokens / parameters:.2f} (20 is Chinchilla's)"
    counts = {"by the model's own count": "flops", "by 6ND": "flops_6nd"}
    known = [f"{summary[key]:.3g} {by}" for by, key in counts.items() if summary.get(key)]
    yield "FLOPs", ", ".join(known) or NONE
    yield "passes over the data", number(summary.get("passes"), ".2f")
    yield "MFU", number(summary.get("mfu"), ".1%")
    hardware, git = manifest.get("hardware", {}), manifest.get("git", {})
    machine = [str(hardware[key]) for key in ("devices", "name") if key in hardware]
    yield "hardware", " × ".join(machine) or NONE
    yield "precision", str(hardware.get("precision", NONE))
    commit = git.get("commit") or NONE
    yield "git commit", f"{commit} with changes" if git.get("dirty") else commit
    starts = [manifest, *manifest.get("resumed", [])]
    words = [one["command"][1:] for one in starts if one.get("command")]  # 0: where Python found it
    yield "command", shlex.join(["lmtemplate", *words[-1]]) if words else NONE


def shown_text(path: Path) -> str:
    """A file of the run, of which `read_run` has refused what a link leads to elsewhere."""
    return path.read_text("utf-8", "replace") if path.is_file() else "not there"


def write_report(
    run: Path,
    examination: Examination,
    output: Path | None = None,
    price_per_hour: float | None = None,
) -> Path:
    """Write the page, by default into the run directory. Raises CheckpointError, DiskError."""
    files, verdict = page.read_run(run, examination.record), examination.verdict
    headline = verdict.headline if len(examination.record) else "nothing was logged yet"
    shaded = [found.steps for found in verdict.findings if found.fault]
    parts = {
        "run": files,
        "when": when(files.manifest),
        "verdict": headline,
        "found": examination,
        "checks": [(check.name, MARKS[check.passed], check.says) for check in examination.checks],
        "shaded": shaded,
        "notes": notes(files.record),
        "curves": page.plot_html(page.curve_figure(files, shaded)),
        "figures": list(figure_rows(files)),
        "costs": costs_of(files, price_per_hour),
        "samples": samples_of(files),
        "files": [(name, says, shown_text(run / name)) for name, says in FILES.items()],
    }
    target = output or run / "report.html"
    write_text(target, page.render("report", f"{files.name}: report", parts))
    return target


def report(
    run: Path,
    output: Path | None = None,
    price_per_hour: float | None = None,
    allow: list[str] | None = None,
) -> None:
    """Write all that a run can tell into one HTML file, which opens without a network.

    Args:
        run: run directory.
        output: the file to write; report.html in the run directory if left out.
        price_per_hour: of the machine, in any currency: the cost of the improvement in money.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    if price_per_hour is not None and not 0 <= price_per_hour < 1e150:
        raise ConfigError(f"--price_per_hour {price_per_hour} is no price; what does an hour cost?")
    examination = examine(run, allow=allow or ())
    print(f"report: {write_report(run, examination, output, price_per_hour)}")
