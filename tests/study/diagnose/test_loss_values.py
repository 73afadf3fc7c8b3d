"""NaN, a first loss beside ln V, rows that rise -> what is said of them."""

import numpy as np
import pytest

from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.loss_values import noise, nonfinite, unusual_start
from tests.study.records import FACTS, power_law, record, trend


def test_nan_is_named_with_its_step_and_the_last_finite_loss() -> None:
    finding = nonfinite(record(np.array([4.0, 3.0]), nonfinite=(505,)))
    assert finding is not None
    assert finding.says == "the loss was NaN or inf at step 505; the last finite one was 3.00 nats."
    assert nonfinite(record(power_law())) is None


def test_a_run_that_begins_with_nan_has_no_last_finite_loss() -> None:
    finding = nonfinite(record(np.array([]), nonfinite=(5,)))
    assert finding is not None
    assert "last finite" not in finding.says


def test_without_a_vocabulary_or_a_first_loss_the_start_is_not_judged() -> None:
    assert unusual_start(record(power_law(), initial=None), FACTS) is None
    assert unusual_start(record(power_law(), initial=20.0), Facts()) is None
    assert unusual_start(record(power_law(), initial=1.0), Facts()) is None


def test_a_rise_that_is_only_noise_is_normal() -> None:
    finding = noise(trend(np.array([3.0, 2.8, 2.9, 2.7, 2.8, 2.6])), Facts())
    assert finding is not None
    assert not finding.fault
    assert "2 of 5" in finding.says


@pytest.mark.parametrize("loss", [[3.0, 2.0, 1.0], [3.0, 3.1, 3.2]])
def test_a_loss_that_only_falls_or_only_rises_is_not_called_noise(loss: list[float]) -> None:
    assert noise(trend(np.array(loss)), Facts()) is None
