"""Run directory, or anybody's TensorBoard files -> healthy, or what is wrong and what to try."""

import dataclasses
import json as json_text
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtemplate.errors import ConfigError, DataError
from lmtemplate.record import RATE, TRAIN, VAL, Record, read_record
from lmtemplate.study.diagnose.artifacts import Sources, open_sources
from lmtemplate.study.diagnose.events import read_events
from lmtemplate.study.diagnose.evidence import facts_of
from lmtemplate.study.diagnose.sanity_checks import Check, baselines, check_all, known_words
from lmtemplate.study.diagnose.spikes import Spike, look
from lmtemplate.study.diagnose.verdict import Facts, Finding, Verdict, judge

WIDTH = 100
MARKS = {True: "✓", False: "✗", None: "?"}
MEASURES = {
    "uniform": "guessing evenly (ln V)",
    "unigram": "token frequencies",
    "bigram": "token pairs",
}


@dataclass(frozen=True)
class Examination:
    """All that a run was found to show.

    Attributes:
        record: what it logged.
        facts: what else is known of it.
        verdict: faults and notes.
        checks: the four questions.
        spikes: what the model read when its loss rose.
        missing: what could not be looked at, and why.
    """

    record: Record
    facts: Facts
    verdict: Verdict
    checks: tuple[Check, ...]
    spikes: tuple[Spike, ...] = ()
    missing: tuple[str, ...] = ()


def _spikes(sources: Sources, record: Record, verdict: Verdict) -> Iterator[Spike]:
    for finding in verdict.findings:
        if "spike" in finding.name:
            spike = look(sources, record, *finding.steps)
            if spike is not None:
                yield spike


def examine(
    run: Path, deep: bool = True, checkpoint: str = "best", allow: Sequence[str] = ()
) -> Examination:
    """Look at a run directory with everything there is. Raises CheckpointError without a record.

    Args:
        run: run directory.
        deep: load the weights: let them write, and ask them about spikes.
        checkpoint: best, latest, or the path of a checkpoint.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    record = read_record(run)
    sources = open_sources(run, deep=deep, checkpoint=checkpoint, allow=allow)
    try:
        facts = facts_of(sources)
        known = known_words(sources.corpus) if sources.corpus else None
    except DataError as error:  # a shard or the tokenizer went bad since
        missing = (*sources.missing, f"without the corpus: {error}")
        sources = dataclasses.replace(sources, corpus=None, missing=missing)
        facts, known = facts_of(sources), None
    verdict = judge(record, facts)
    missing = sources.missing
    if not (run / "summary.json").is_file():
        missing = ("what is still to come: this run has not ended", *missing)
    return Examination(
        record,
        facts,
        verdict,
        check_all(record, facts, known),
        tuple(_spikes(sources, record, verdict)),
        missing,
    )


def examine_events(
    folder: Path, train_loss: str = TRAIN, val_loss: str | None = VAL, lr: str | None = RATE
) -> Examination:
    """The same of TensorBoard files, which tell the curves alone. Raises ConfigError."""
    record, facts = read_events(folder, train_loss, val_loss, lr), Facts()
    return Examination(record, facts, judge(record, facts), check_all(record, facts, None))


def _wrapped(text: str, start: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent="    ")


def _finding_text(finding: Finding) -> str:
    kind = "" if finding.fault else "note, "
    advice = f" Try: {finding.advice}" if finding.advice else ""
    return _wrapped(f"{kind}{finding.name.replace('_', ' ')}: {finding.says}{advice}")


def verdict_sentences(verdict: Verdict) -> list[str]:
    """The verdict alone: a headline; faults with what to try; phases; notes."""
    faults = [finding for finding in verdict.findings if finding.fault]
    notes = [finding for finding in verdict.findings if not finding.fault]
    headline = "healthy" if verdict.healthy else f"not healthy: {len(faults)} fault"
    if verdict.healthy and any(note.name == "too_short" for note in notes):
        headline = "too short to judge, and no fault to see"
    return [
        f"verdict: {headline}{'s' if len(faults) > 1 else ''}",
        *map(_finding_text, faults),
        *(
            _wrapped(f"steps {p.first_step:,} to {p.last_step:,}, {p.name}: {p.says}")
            for p in verdict.phases
        ),
        *map(_finding_text, notes),
    ]


def _baseline_line(examination: Examination) -> str:
    losses = baselines(examination.record, examination.facts)
    known = [f"{MEASURES[name]} {losses[name]:.2f}" for name in MEASURES if losses[name]]
    best = losses["validation"]
    if best is None or not known:
        return ""
    return _wrapped(f"best validation loss {best:.2f} nats; {', '.join(known)}")


def sentences(examination: Examination) -> str:
    """All that was found, in lines for a person to read."""
    checks = (f"{check.name} {MARKS[check.passed]} {check.says}" for check in examination.checks)
    lines = [
        *verdict_sentences(examination.verdict),
        *(_wrapped(f"spike: {spike.says}") for spike in examination.spikes),
        "checks",
        *map(_wrapped, checks),
        _baseline_line(examination),
        *(_wrapped(f"not looked at: {reason}") for reason in examination.missing),
    ]
    return "\n".join(line for line in lines if line)


def as_json(examination: Examination) -> str:
    """All that was found, as one object of strict JSON."""
    verdict = examination.verdict
    content = {
        "healthy": verdict.healthy,
        "findings": [dataclasses.asdict(finding) for finding in verdict.findings],
        "phases": [dataclasses.asdict(phase) for phase in verdict.phases],
        "spikes": [dataclasses.asdict(spike) for spike in examination.spikes],
        "checks": [dataclasses.asdict(check) for check in examination.checks],
        "baselines": baselines(examination.record, examination.facts),
        "facts": dataclasses.asdict(examination.facts),
        "missing": list(examination.missing),
    }
    return json_text.dumps(content, indent=2, allow_nan=False, default=lambda of: of.item())


def diagnose(
    run: Path | None = None,
    events: Path | None = None,
    train_loss: str = TRAIN,
    val_loss: str | None = VAL,
    lr: str | None = RATE,
    json: bool = False,
    quick: bool = False,
    checkpoint: str = "best",
    allow: list[str] | None = None,
) -> None:
    """Say whether a run is healthy; the exit code is 0 if it is, and 1 if not.

    Args:
        run: run directory.
        events: folder with TensorBoard files of any run, to look at instead.
        train_loss: with --events, tag of the training loss.
        val_loss: with --events, tag of the validation loss; null for a run without.
        lr: with --events, tag of the learning rate; null for a run without.
        json: print one JSON object and nothing else.
        quick: leave the weights alone: no samples, no second look at spikes.
        checkpoint: best, latest, or the path of a checkpoint.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    if run is not None and events is None:
        examination = examine(run, not quick, checkpoint, allow or ())
    elif events is not None and run is None:
        examination = examine_events(events, train_loss, val_loss, lr)
    else:
        raise ConfigError("lmtemplate diagnose needs a run directory, or --events DIR, not both")
    if json:
        print(as_json(examination))
    else:
        print(sentences(examination))
    if not examination.verdict.healthy:
        sys.exit(1)
