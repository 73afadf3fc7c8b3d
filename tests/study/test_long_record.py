"""Long records are read in part, and say the same."""

import math
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.record import LINES, Writer, from_lines, read_lines
from lmtemplate.run_dir import folder_of
from lmtemplate.study import long_record
from lmtemplate.study.long_record import read_any_record


@pytest.fixture
def long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """2,000 rows with validations, samples, and losses that are not finite; more than is parsed."""
    monkeypatch.setattr(long_record, "READ_WHOLE", 2**14)
    writer, draws = Writer(tmp_path, 0), np.random.default_rng(0)
    writer.append(0, {"val/loss": 4.2})
    for step in range(5, 10_005, 5):
        loss = math.nan if step == 5000 else float(draws.normal())
        rates = {"optim/lr": 1e-5 * (20_000 - step), "data/epoch": step / 300}
        writer.append(step, {**rates, "train/loss": loss} | ({"x": 1.5} if step % 50 == 0 else {}))
        if step % 1000 == 0:
            writer.append(step, {"val/loss": 3.0 + step})
            writer.append(step, {"samples": {"The": ' "train/loss": 3 end'}})
    return tmp_path


def test_of_a_long_record_every_loss_is_read_and_the_rest_is_close(long_run: Path) -> None:
    whole, brief = from_lines(read_lines(long_run)), read_any_record(long_run)
    for name in ("steps", "train_loss", "val_loss", "epochs"):
        np.testing.assert_array_equal(getattr(brief, name), getattr(whole, name))
    assert (brief.initial, brief.samples) == (whole.initial, whole.samples)
    assert brief.nonfinite_steps == whole.nonfinite_steps == (5000,)
    np.testing.assert_allclose(brief.learning_rate, whole.learning_rate, rtol=1e-12)
    np.testing.assert_allclose(brief.values["data/epoch"], whole.values["data/epoch"], rtol=1e-12)
    known = np.flatnonzero(~np.isnan(brief.values["x"]))
    assert 10 < len(known) < 100  # of 200
    assert set(known) < set(np.flatnonzero(whole.values["x"] == 1.5))


@pytest.mark.parametrize(
    ("step", "text"), [(9999999, '"a text"'), (9999999, "1e400"), (-(2**53) + 1, "1"), (1.5, "1")]
)
def test_a_long_record_with_a_stranger_s_line_is_read_line_by_line(
    step: float, text: str, long_run: Path
) -> None:
    whole = from_lines(read_lines(long_run))
    with (folder_of(long_run) / LINES).open("a") as file:
        file.writelines([f'{{"step": {step}, "train/loss": {text}, "x": 1.0}}\n'] * 50)
    np.testing.assert_array_equal(read_any_record(long_run).steps, whole.steps)
