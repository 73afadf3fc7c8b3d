"""Made-up logs and records of two trainers -> how much sooner one has the other's loss."""

import math

import pytest

from benchmarks.against_nanogpt import Nano, Ours, Round, as_ours, nano_seconds, summary

LOG = """\
number of parameters: 0.80M
step 0: train loss 4.2, val loss 4.2
iter 0: loss 4.2, time 900.00ms, mfu -100.00%
iter 1: loss 4.1, time 50.00ms, mfu -100.00%
iter 2: loss 4.0, time 40.00ms, mfu -100.00%
step 3: train loss 3.9, val loss 3.9
iter 3: loss 3.9, time 700.00ms, mfu 0.50%
"""


def test_nanogpts_training_time_leaves_out_its_evaluations_but_not_the_steps_after_them() -> None:
    assert nano_seconds(LOG) == pytest.approx(4 * 0.045)


def made_up(nano_loss: float, reached: float, faster: float) -> Round:
    """nanoGPT trains 100 s of 120; ours is validated at steps 50 and 100, after 1 / faster of it."""
    rows = [(50, 2.5, 49 / faster), (100, reached, 99 / faster)]
    ours = as_ours(rows, whole=240 / faster)
    equal = Ours(((1000, 1.5, 100.0),), 130.0)
    return Round(Nano(nano_loss, 100.0, 120.0), ours, equal)


def test_times_count_the_first_step_that_the_record_leaves_out() -> None:
    ours = made_up(1.9, 1.9, faster=10.0).ours
    assert ours.validations == ((50, 2.5, pytest.approx(5.0)), (100, 1.9, pytest.approx(10.0)))


def test_the_ratios_are_medians_over_seeds_of_time_to_the_first_validation_that_is_good_enough() -> (
    None
):
    rounds = [made_up(1.9, loss, faster) for loss, faster in ((1.9, 8.0), (1.89, 10.0), (1.8, 9.0))]
    assert summary(rounds, bits=1 / math.log(2)) == [
        "loss at equal time: 1.5000 (nanoGPT 1.9000); bits per byte: 2.1640 (nanoGPT 2.7411)",
        "time to loss: 9.0x",  # 100 s / (100 s / 9)
        "end to end: 4.5x",  # 120 s / (240 s / 9)
    ]


def test_an_earlier_validation_counts_if_it_is_good_enough() -> None:
    assert summary([made_up(2.6, 1.9, 10.0)], 1.0)[-2:] == [
        "time to loss: 20.0x",
        "end to end: 5.0x",
    ]


def test_a_seed_that_misses_the_loss_leaves_no_ratio() -> None:
    rounds = [made_up(1.9, 1.9, 8.0), made_up(1.9, 1.901, 8.0)]
    assert summary(rounds, 1.0)[-1] == "1 of 2 seeds did not reach nanoGPT's loss"
