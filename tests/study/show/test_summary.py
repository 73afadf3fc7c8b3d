"""A record -> figures, each checked against the arithmetic that a script would do."""

import math
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.record import Line, Record, Writer, from_lines
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.verdict import judge
from lmtemplate.study.show.summary import before_and_after, costs, plan_and_result, training_summary
from tests.conftest import Command
from tests.study import records

BITS = "val/bits_per_byte"


def lines() -> list[Line]:
    """20 steps in 2 passes, from 4 to 2 nats, warm-up from a tenth of the peak."""
    made: list[Line] = [{"step": 0, "val/loss": 4.2, "samples": {"The": " qq"}}]
    for number, step in enumerate((5, 10, 15, 20)):
        rate = (0.001, 0.01, 0.01, 0.005)[number]
        loss = (4.0, 3.0, 1.9, 2.0)[number]
        passes = step / 10
        made.append({"step": step, "train/loss": loss, "optim/lr": rate, "data/epoch": passes})
    made.append({"step": 20, "val/loss": 2.6, BITS: 1.1})
    made.append({"step": 20, "samples": {"The": " end", "A": " b"}})
    return made


@pytest.fixture
def record() -> Record:
    return from_lines(lines())


def test_first_and_last_losses_and_rates_are_there(record: Record) -> None:
    text = training_summary(record)
    for line in (
        "Initial loss: 4.0000 (mean of steps 1 to 5)",
        "Final loss: 2.0000",
        "Loss reduction: 2.0000",
        "Reduction percentage: 50.0%",
        "  Initial: 0.001000, peak: 0.010000",
        "  Final: 0.005000",
    ):
        assert line in text.splitlines()


def test_log_points_and_steps_are_told_apart(record: Record) -> None:
    text = training_summary(record)
    assert "Total steps: 4 log points, 20 optimizer steps" in text
    each = f"{2 / 4:.6f} for each log point, {2 / 15:.6f} for each optimizer step"
    assert f"Loss decrease per step: {each}" in text


def test_the_rate_is_compared_with_its_peak_besides_its_first_value(record: Record) -> None:
    assert "Decay factor: 5.000000 of the first, 0.500000 of the peak" in training_summary(record)


def test_a_first_rate_of_zero_divides_nothing() -> None:
    points = [{"step": 1, "train/loss": 2.0, "optim/lr": 0.0}]
    assert "Decay factor" not in training_summary(from_lines(points))


def test_the_best_is_that_of_validation_and_the_lowest_training_loss_another(
    record: Record,
) -> None:
    text = training_summary(record)
    assert "Step: 20 (by validation loss)" in text
    assert f"Loss: 2.6000, 1.1000 bits per byte, perplexity {math.exp(2.6):.2f}" in text
    assert "Lowest training loss: 1.9000 at step 15" in text


def test_each_pass_has_its_average(record: Record) -> None:
    assert "Average loss per epoch: 3.500, 1.950" in training_summary(record)


def test_the_gap_is_that_of_the_verdict(record: Record) -> None:
    assert "Gap: 0.6000 (last validation - 2.0000, median of the last rows" in (
        training_summary(record)
    )
    losses = np.full(100, 2.0)
    losses[-1] = 2.4  # one unlucky batch
    noisy = records.record(losses, val=np.array([3.0, 2.9]))
    (said,) = [one.says for one in judge(noisy, Facts()).findings if one.name == "gap"]
    assert "0.90 nats above training" in said
    assert "Gap: 0.9000 (" in training_summary(noisy)


def test_an_empty_record_says_so() -> None:
    assert "nothing was logged yet" in training_summary(from_lines([]))


def test_one_prompt_is_shown_before_and_after(record: Record) -> None:
    assert before_and_after(record).splitlines() == [
        '"The", continued',
        "  before   The qq",
        "  after    The end",
    ]


def test_without_samples_there_is_no_before() -> None:
    assert before_and_after(from_lines([])) == ""


def test_costs_are_counted_in_both_ways() -> None:
    text = costs({"flops": 5e12, "flops_6nd": 6e12, "tokens": 1000, "seconds": 7200, "devices": 4})
    assert "5e+12 FLOPs by the model's own count (6e+12 by 6ND), 1,000 tokens" in text
    assert "2 h 0 min" in text
    assert "8 device-hours" in text
    assert "FLOPs" not in costs({"flops": 5e12, "flops_6nd": 6e12})  # as of a damaged summary


def test_the_verb_prints_a_run_s_figures_and_curves(command: Command, tmp_path: Path) -> None:
    writer = Writer(tmp_path, 0)
    for line in lines():
        values = {name: value for name, value in line.items() if name != "step"}
        writer.append(line["step"], values)
    result = command("summary", tmp_path)
    assert result.code == 0
    assert "=== Training Summary ===" in result.out
    assert "validation" in result.out.partition("===")[0]  # the legend of the drawing


def test_what_was_planned_stands_beside_what_was_measured() -> None:
    settings = {
        f"planned.init_args.{k}": v for k, v in (("tokens_per_second", 500.0), ("val_loss", 3.2))
    }
    summary = {"tokens": 60_000, "tokens_per_second": 400.0, "best": {"val_loss": 3.456}}
    text = plan_and_result(settings, summary)
    assert "500 tokens/s, 2 min 0 s of training; measured: 400 tokens/s, 2 min 30 s" in text
    assert "val/loss 3.20 by the law for web text" in text
    assert "measured: 3.46" in text
    assert plan_and_result({}, summary) == ""
