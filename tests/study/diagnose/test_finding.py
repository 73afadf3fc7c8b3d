"""The words of a verdict: a name tells a fault from a note, and brings its advice."""

import pytest

from lmtemplate.study.diagnose.finding import FAULTS, NOTES, conclude


def test_a_fault_makes_a_run_unhealthy_and_a_note_does_not() -> None:
    fault, note = conclude("overfitting", "val rises", 100, 200), conclude("gap", "0.6 nats", 0, 9)
    assert (fault.fault, fault.steps) == (True, (100, 200))
    assert "stop earlier" in fault.advice
    assert not note.fault
    with pytest.raises(KeyError):
        conclude("misfortune", "", 0, 1)


def test_every_fault_has_advice_in_one_sentence_and_no_name_is_both() -> None:
    assert not FAULTS.keys() & NOTES.keys()
    for advice in (*FAULTS.values(), *filter(None, NOTES.values())):
        assert advice.endswith((".", ")."))
        assert advice[0].islower()  # it stands behind "Try: "
