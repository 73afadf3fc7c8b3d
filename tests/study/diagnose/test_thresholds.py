"""All thresholds stand in one place, with their reason, and each is used."""

import re
from pathlib import Path

from lmtemplate.study.diagnose import thresholds

SOURCE = Path(thresholds.__file__)
NAMES = [name for name in vars(thresholds) if name.isupper()]
RULES = ("unsteady", "stalled", "trouble", "notes", "live", "phases", "verdict")


def test_every_threshold_decides_something() -> None:
    used = "".join(SOURCE.with_name(f"{room}.py").read_text() for room in RULES)
    code = used[used.index("def ") :]
    assert [name for name in NAMES if not re.search(rf"\b{name}\b", code)] == []


def test_every_line_says_why() -> None:
    lines = [line for line in SOURCE.read_text().splitlines() if re.match(r"[A-Z_, ]+ = ", line)]
    assert lines
    assert [line for line in lines if "  # " not in line] == []


def test_shares_are_shares() -> None:
    shares = ("EARLY", "NO_WARMUP", "PEAKS", "UNMOVED", "FAST", "FLAT", "SHARED", "REPEATED")
    assert all(0 < getattr(thresholds, name) < 1 for name in shares)
