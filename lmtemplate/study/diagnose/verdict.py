"""A run's record and what else is known of it -> a verdict: faults and notes with evidence."""

from dataclasses import dataclass, field

from lmtemplate.record import Record
from lmtemplate.study.diagnose.data import DATA, far_start, memorising, nonfinite, overfitting
from lmtemplate.study.diagnose.early_warning import turning_bad
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase
from lmtemplate.study.diagnose.learning_rate import Rule, crashed, early_hump, oscillating, rising
from lmtemplate.study.diagnose.notes import NOTES
from lmtemplate.study.diagnose.phases import phases_of
from lmtemplate.study.diagnose.stalls import crawling, resting, standstill, too_small
from lmtemplate.study.diagnose.thresholds import ROWS
from lmtemplate.study.diagnose.trend import Trend, trend_of

__all__ = ["Facts", "Finding", "Phase", "Verdict", "judge", "turning_bad"]

# Each explains the whole curve, so the first one that holds is the answer.
COURSE: tuple[Rule, ...] = (
    crashed,
    early_hump,
    rising,
    resting,
    standstill,
    oscillating,
    crawling,
    too_small,
)


@dataclass(frozen=True)
class Verdict:
    """What was found, faults first; healthy if there is no fault."""

    findings: tuple[Finding, ...]
    phases: tuple[Phase, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        return not any(finding.fault for finding in self.findings)


def _course(trend: Trend, facts: Facts, turned: bool) -> Finding | None:
    """What the training loss shows.

    Args:
        trend: long enough to be judged.
        facts: what is known.
        turned: whether validation has; what it does afterwards is no sign of the learning rate.
    """
    rules = (rule for rule in COURSE if not (turned and rule is oscillating))
    return next(filter(None, (rule(trend, facts) for rule in rules)), None)


def judge(record: Record, facts: Facts) -> Verdict:
    """Look at a run with every rule. Of the faults, the first is what matters most."""
    trend = trend_of(record, facts)
    found = [nonfinite(record), far_start(record, facts)]
    if trend is not None:
        enough = trend.rows >= ROWS
        turned = overfitting(trend, facts) if enough else None
        found += [rule(trend, facts) for rule in DATA]
        found += [turned, memorising(trend, facts)]
        found.append(_course(trend, facts, turned is not None) if enough else None)
        found += [rule(trend, facts) for rule in NOTES]
    there = [finding for finding in found if finding is not None]
    if any(finding.fault for finding in there):  # whose advice comes before any about the pace
        there = [finding for finding in there if finding.name not in ("too_slow", "plateau")]
    verdict = Verdict(tuple(sorted(there, key=lambda finding: not finding.fault)))
    if trend is None or not verdict.healthy or trend.rows < ROWS:
        return verdict
    return Verdict(verdict.findings, phases_of(trend))
