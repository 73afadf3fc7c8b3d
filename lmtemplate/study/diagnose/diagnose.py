"""Run directory, or TensorBoard files of any program -> the faults that were seen, and what to try."""

import dataclasses
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtemplate import metric_names
from lmtemplate.errors import ConfigError, DataError
from lmtemplate.record import Record
from lmtemplate.run_dir import to_json
from lmtemplate.study.diagnose import vitals
from lmtemplate.study.diagnose.artifacts import open_artifacts
from lmtemplate.study.diagnose.events import read_events
from lmtemplate.study.diagnose.evidence import facts_of
from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.sanity_checks import SanityCheck, baselines, check_all, known_words
from lmtemplate.study.diagnose.verdict import Verdict, judge
from lmtemplate.study.long_record import read_any_record

WIDTH = 100
MARKS = {True: "✓", False: "✗", None: "?"}
MEASURES = {
    "uniform": "guessing evenly (ln V)",
    "unigram": "token frequencies",
    "bigram": "token pairs",
}


@dataclass(frozen=True)
class Examination:
    """All that a run was found to show."""

    record: Record
    facts: Facts
    verdict: Verdict
    checks: tuple[SanityCheck, ...]  # the four questions
    missing: tuple[str, ...] = ()  # what could not be examined, and why


def _unseen(missing: Sequence[str]) -> str:
    """For the headline: that the model could not be loaded, and what helps where it is one flag."""
    reason = next((reason for reason in missing if reason.startswith("without the model")), "")
    says, flag = "the model was not checked", re.search(r"add --allow \w+", reason)
    return f"{says}: {flag[0]}" if flag else reason and says


def examine(
    run: Path, deep: bool = True, checkpoint: str = "best", allow: Sequence[str] = ()
) -> Examination:
    """Look at a run directory with everything there is: see `diagnose`, where quick is not deep.

    Raises CheckpointError without a record.
    """
    record = read_any_record(run)
    artifacts = open_artifacts(run, deep=deep, checkpoint=checkpoint, allow=allow)
    try:
        facts = facts_of(artifacts)
        known = known_words(artifacts.corpus) if artifacts.corpus else None
    except DataError as error:  # a shard or the tokenizer was damaged after the run
        missing = (*artifacts.missing, f"without the corpus: {error}")
        artifacts = dataclasses.replace(artifacts, corpus=None, missing=missing)
        facts, known = facts_of(artifacts), None
    missing = artifacts.missing
    if not (run / "summary.json").is_file():
        missing = ("what is still to come: this run has not ended", *missing)
    if not deep:
        missing = (*missing, "the weights: whether they read ahead, reload, copy (a quick look)")
    if len(record) and vitals.UPDATE not in record.values:
        missing = (*missing, "batches and steps: nothing was logged of them (watch: null)")
    verdict = dataclasses.replace(judge(record, facts), unseen=_unseen(missing))
    return Examination(record, facts, verdict, check_all(record, facts, known), missing)


def examine_events(
    folder: Path,
    train_loss: str = metric_names.TRAIN_LOSS,
    val_loss: str | None = metric_names.VAL_LOSS,
    lr: str | None = metric_names.LEARNING_RATE,
) -> Examination:
    """The same for TensorBoard files, which show only the curves. Raises ConfigError."""
    record, facts = read_events(folder, train_loss, val_loss, lr), Facts()
    missing = ("everything but the curves: batches, steps, text and weights",)
    return Examination(record, facts, judge(record, facts), check_all(record, facts, None), missing)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _finding_text(finding: Finding) -> str:
    kind = "" if finding.fault else "note, "
    advice = f" Try: {finding.advice}" if finding.advice else ""
    return _wrapped(f"{kind}{finding.name.replace('_', ' ')}: {finding.says}{advice}")


def verdict_sentences(verdict: Verdict) -> list[str]:
    """The verdict alone: a headline; faults with what to try; phases; notes."""
    faults = [_finding_text(found) for found in verdict.findings if found.fault]
    notes = [_finding_text(found) for found in verdict.findings if not found.fault]
    spans = (
        f"steps {p.first_step:,} to {p.last_step:,}, {p.name}: {p.says}" for p in verdict.phases
    )
    return [f"verdict: {verdict.headline}", *faults, *map(_wrapped, spans), *notes]


def sentences(examination: Examination) -> str:
    """All that was found, in lines for a person to read."""
    losses = baselines(examination.record, examination.facts)
    known = [f"{MEASURES[name]} {losses[name]:.2f}" for name in MEASURES if losses[name]]
    best = losses["validation"]
    checks = (f"{check.name} {MARKS[check.passed]} {check.says}" for check in examination.checks)
    lines = [*verdict_sentences(examination.verdict), "checks", *map(_wrapped, checks)]
    if best is not None and known:
        lines.append(_wrapped(f"best validation loss {best:.2f} nats; {', '.join(known)}"))
    lines += [_wrapped(f"not checked: {reason}") for reason in examination.missing]
    return "\n".join(lines)


def few_words(examination: Examination) -> str:
    """The verdict for a table: the first fault and how many more there are, or none."""
    faults = [found for found in examination.verdict.findings if found.fault]
    if not faults:
        return examination.verdict.headline
    more = f" (+{len(faults) - 1})" if len(faults) > 1 else ""
    return faults[0].name.replace("_", " ") + more


def as_json(examination: Examination) -> str:
    """All that was found, as one object of strict JSON."""
    content = {
        "healthy": examination.verdict.healthy,
        **dataclasses.asdict(examination.verdict),
        "checks": [dataclasses.asdict(check) for check in examination.checks],
        "baselines": baselines(examination.record, examination.facts),
        "facts": dataclasses.asdict(examination.facts),
        "missing": examination.missing,
    }
    return to_json(content, default=lambda of: of.item())


def diagnose(
    run: Path | None = None,
    events: Path | None = None,
    train_loss: str = metric_names.TRAIN_LOSS,
    val_loss: str | None = metric_names.VAL_LOSS,
    lr: str | None = metric_names.LEARNING_RATE,
    json: bool = False,
    quick: bool = False,
    checkpoint: str = "best",
    allow: list[str] | None = None,
) -> None:
    """Say what is wrong with a run; the exit code is 0 if no fault was seen, and 1 if one was.

    Args:
        run: run directory.
        events: folder with TensorBoard files of any run, to examine instead.
        train_loss: with --events, tag of the training loss.
        val_loss: with --events, tag of the validation loss; null for a run without.
        lr: with --events, tag of the learning rate; null for a run without.
        json: print one JSON object and nothing else.
        quick: do not load the weights, so no sample is searched for copied text.
        checkpoint: best, latest, or the path of a checkpoint.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    if run is not None and events is None:
        examination = examine(run, not quick, checkpoint, allow or ())
    elif events is not None and run is None:
        examination = examine_events(events, train_loss, val_loss, lr)
    else:
        raise ConfigError("lmtemplate diagnose needs a run directory, or --events DIR, not both")
    print(as_json(examination) if json else sentences(examination))
    if not examination.verdict.healthy:
        sys.exit(1)
