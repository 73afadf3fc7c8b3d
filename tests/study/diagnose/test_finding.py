"""What is known of a run, before anything is."""

import dataclasses

import pytest

from lmtemplate.study.diagnose.finding import Facts, Finding


def test_nothing_is_known_at_first() -> None:
    assert set(dataclasses.asdict(Facts()).values()) == {None}


def test_a_finding_does_not_change() -> None:
    finding = Finding("overfitting", True, "says", "advice", (1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        finding.name = "other"  # type: ignore[misc]
