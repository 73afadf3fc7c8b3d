"""A run -> one HTML file that explains it: verdict, curves, samples, costs, settings, machine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmtemplate.errors import ConfigError
from lmtemplate.run_dir import write_text
from lmtemplate.study.diagnose.diagnose import MARKS, Examination, examine
from lmtemplate.study.show.page import (
    NONE,
    RunFiles,
    curve_figure,
    escape,
    figures_of,
    number,
    page,
    plot,
    read_run,
    span,
    table,
)
from lmtemplate.study.show.plots import notes

PARTS = (0.0, 0.8, 0.98, 1.0)  # of the improvement: the first 80 %, what lies between, the last 2 %


def verdict_section(examination: Examination) -> Iterator[str]:
    """Faults with what to try, notes, the phases of the curve, the checks, what was left out."""
    verdict, word = examination.verdict, "not healthy"
    if verdict.healthy:
        word = "healthy" if len(examination.record) else "nothing was logged yet"
    yield f"<h2>Verdict: {word}</h2>\n<ul>"
    for finding in verdict.findings:
        kind = "fault" if finding.fault else "note"
        advice = f" Try: {finding.advice}" if finding.advice else ""
        name = escape(finding.name.replace("_", " "))
        yield f"<li><b>{kind}: {name}.</b> {escape(finding.says + advice)}</li>"
    for phase in verdict.phases:
        steps = f"steps {phase.first_step:,} to {phase.last_step:,}"
        yield f"<li><b>{escape(phase.name)}</b>, {steps}: {escape(phase.says)}</li>"
    yield from (f"<li>not examined: {escape(reason)}</li>" for reason in examination.missing)
    yield "</ul>"
    checks = [(check.name, MARKS[check.passed], check.says) for check in examination.checks]
    yield table(checks, kind="checks")


def steps_at(run: RunFiles) -> list[float] | None:
    """The steps at which PARTS of the improvement of the validation loss were reached.

    Between two validations that set a new best, the loss is taken to fall in a straight line. None
    where it was not measured before step 1, or never fell.
    """
    steps, losses = run.record.validations
    initial = run.record.initial_val_loss
    reached, gains = [0.0], [0.0]
    for step, loss in zip(steps, losses, strict=True):
        if initial is not None and initial - loss > gains[-1]:
            reached.append(float(step))
            gains.append(initial - loss)
    if len(gains) == 1:
        return None
    return [float(np.interp(part * gains[-1], gains, reached)) for part in PARTS]


def cost_section(run: RunFiles, price_per_hour: float | None) -> Iterator[str]:
    """What each part of the improvement cost, in steps, tokens, time, share of the run, money."""
    bounds = steps_at(run)
    if bounds is None:
        yield "<p>The validation loss was not measured before step 1, or never fell below that.</p>"
        return
    edges = np.array([*bounds, run.record.steps[-1]], dtype=np.float64)
    steps, shares = np.diff(edges), np.diff(edges) / edges[-1]
    tokens = np.diff(run.counted("data/tokens", edges))
    seconds = np.diff(run.counted("speed/seconds", edges))
    columns = {
        "part": ["first 80 %", "next 18 %", "last 2 %", "after the best"],
        "steps": [number(value) for value in steps],
        "tokens": [number(value) for value in tokens],
        "time": [span(value) for value in seconds],
        "share": [f"{value:.1%}" for value in shares],
    }
    if price_per_hour is not None:
        columns["money"] = [number(value / 3600 * price_per_hour, ".4g") for value in seconds]
    initial, best = run.record.initial_val_loss, run.record.validations[1].min()
    yield (
        f"<p>From {initial:.4f} to {best:.4f} nats. The last 2 % of that took "
        f"{steps[2] / steps[0]:.2g} times the steps of the first 80 %.</p>"
    )
    yield table(zip(*columns.values(), strict=True), list(columns))
    yield (
        "<p class=note>Read off straight lines between validations. A curve that flattens bends "
        "below them: the first part then costs at most this, the last at least.</p>"
    )


def folded(title: str, content: str, is_open: bool = False) -> str:
    """Content under a title that opens at a click, without JavaScript."""
    return f"<details{' open' * is_open}><summary>{escape(title)}</summary>{content}</details>"


def sample_section(run: RunFiles) -> Iterator[str]:
    """For each prompt, what the model wrote at each step, untrained first."""
    samples = run.record.samples
    prompts = list(dict.fromkeys(prompt for texts in samples.values() for prompt in texts))
    if not prompts:
        yield "<p>None were written.</p>"
    for index, prompt in enumerate(prompts):
        rows = [
            (f"step {step:,}" if step else "untrained", prompt + texts[prompt])
            for step, texts in sorted(samples.items())
            if prompt in texts
        ]
        title = f"“{prompt}”" if prompt else "the beginning of a document"
        yield folded(title, table(rows, kind="prose"), is_open=index == 0)


def figure_rows(run: RunFiles) -> Iterator[tuple[str, str]]:
    """The numbers of the run, in the order in which one asks for them."""
    summary, manifest = run.summary, run.manifest
    yield from figures_of(run).items()
    parameters, tokens = summary.get("parameters"), run.last("data/tokens")
    yield "parameters", number(parameters)
    if parameters and tokens:
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
    yield "command", " ".join(manifest.get("command", [NONE]))


def file_section(path: Path, contents: str) -> str:
    """A file of the run as it stands there, folded."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = "not there"
    return folded(f"{path.name}: {contents}", f"<pre>{escape(text)}</pre>")


def build(run: Path, examination: Examination, price_per_hour: float | None = None) -> str:
    """The page. Raises CheckpointError where there is no record."""
    files = read_run(run)
    stopped = files.summary.get("stop_message") or "not finished"
    started = files.manifest.get("started", "")
    faults = [found.steps for found in examination.verdict.findings if found.fault]
    body = [
        f"<h1>{escape(files.name)}</h1>",
        f"<p class=note>{escape(started)} {escape(stopped)}</p>",
        *verdict_section(examination),
        "<h2>Curves</h2>",
        "<p class=note>Shaded: the steps that a fault speaks of.</p>" if faults else "",
        *(f"<p class=note>{escape(note)}.</p>" for note in notes(files.record)),
        plot(curve_figure(files, faults)),
        "<h2>Numbers</h2>",
        table(figure_rows(files), kind="prose"),
        "<h2>What the improvement cost</h2>",
        *cost_section(files, price_per_hour),
        "<h2>Samples</h2>",
        *sample_section(files),
        "<h2>Settings and circumstances</h2>",
        file_section(run / "config.yaml", "every setting"),
        file_section(run / "manifest.json", "command, code, versions, machine, seed, data"),
        file_section(run / "summary.json", "what came of it"),
    ]
    return page(f"{files.name}: report", "\n".join(body))


def write_report(
    run: Path,
    examination: Examination,
    output: Path | None = None,
    price_per_hour: float | None = None,
) -> Path:
    """Write the page, by default into the run directory. Raises CheckpointError, DiskError."""
    target = output or run / "report.html"
    write_text(target, build(run, examination, price_per_hour))
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
        price_per_hour: of the machine, in any currency; adds money to what the improvement cost.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    if price_per_hour is not None and price_per_hour < 0:
        raise ConfigError(f"--price_per_hour {price_per_hour} is negative; give what an hour costs")
    examination = examine(run, allow=allow or ())
    print(f"report: {write_report(run, examination, output, price_per_hour)}")
