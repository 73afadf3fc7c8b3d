"""Any of parameters, tokens, FLOPs, hours and money gives the others, as by hand."""

import math

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.study.plan.scaling_laws import (
    Machine,
    estimated_loss,
    gpu_peak,
    power,
    rate,
    short,
    solve,
    span,
    training_flops,
)


def test_7b_parameters_on_1t_tokens_take_42e21_flops() -> None:
    assert training_flops(7e9, 1e12) == pytest.approx(42 * 10**21)


def test_7b_parameters_get_140b_tokens() -> None:
    assert solve(7e9, None, None).tokens == pytest.approx(140e9)


def test_llama_405b_in_54_days_on_16384_gpus_is_496_tflops_and_half_an_h100() -> None:
    total = 6 * 405e9 * 15.6e12
    each = total / 16384 / (54 * 24 * 3600)
    assert round(each / 1e12) == 496
    machine = Machine(496e12, "", devices=16384)
    assert machine.hours(total) == pytest.approx(54 * 24, rel=1e-3)
    assert each / gpu_peak("h100") == pytest.approx(0.50, abs=0.005)


def test_llama_7b_took_about_what_an_mfu_of_04_says() -> None:
    hours = Machine(0.4 * gpu_peak("a100"), "").hours(training_flops(6.7e9, 1e12))
    assert hours == pytest.approx(82_432, rel=0.15)  # Touvron et al. 2023, table 15


def test_the_loss_fit_gives_the_figures_known_for_gopher_and_chinchilla() -> None:
    assert estimated_loss(280e9, 300e9) == pytest.approx(1.993, abs=1e-3)
    assert estimated_loss(70e9, 1.4e12) == pytest.approx(1.936, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1e9, 3e10, None), (1e9, 3e10)),
        ((1e9, None, 1.8e20), (1e9, 3e10)),
        ((None, 3e10, 1.8e20), (1e9, 3e10)),
        ((1e9, None, None), (1e9, 2e10)),
        ((None, 2e10, None), (1e9, 2e10)),
        ((None, None, 1.2e20), (1e9, 2e10)),
    ],
)
def test_what_is_given_determines_the_rest(
    given: tuple[float | None, float | None, float | None], expected: tuple[float, float]
) -> None:
    budget = solve(*given)
    assert (budget.parameters, budget.tokens) == pytest.approx(expected)
    assert budget.flops == pytest.approx(6 * expected[0] * expected[1])


def test_the_ratio_can_be_another() -> None:
    budget = solve(None, None, 6 * 1e6 * 1e8, ratio=100)
    assert (budget.parameters, budget.tokens) == pytest.approx((1e6, 1e8))


def test_all_three_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="drop one of the three"):
        solve(1e9, 2e10, 1e20)


def test_nothing_is_not_enough() -> None:
    with pytest.raises(ConfigError, match="nothing to plan from"):
        solve(None, None, None)


def test_a_small_text_is_read_four_times_by_a_smaller_net() -> None:
    unlimited = solve(None, None, 1e18)
    limited = solve(None, None, 1e18, fresh=1e6)
    assert limited.tokens == 4e6
    assert limited.parameters == 4e6 / 20 < unlimited.parameters
    assert limited.flops < 1e18


def test_up_to_four_passes_nothing_changes() -> None:
    assert solve(None, None, 1.2e20, fresh=6e9) == solve(None, None, 1.2e20)  # of 2e10 tokens


def test_a_text_alone_is_enough_to_plan_from() -> None:
    budget = solve(None, None, None, fresh=1e6)
    assert (budget.parameters, budget.tokens) == pytest.approx((2e5, 4e6))


def test_a_chosen_net_reads_a_small_text_four_times_too() -> None:
    assert solve(1e9, None, None, fresh=1e6).tokens == 4e6


def test_a_large_text_changes_nothing() -> None:
    assert solve(None, None, 1e18, fresh=1e15) == solve(None, None, 1e18)
    assert solve(1e9, None, None, fresh=1e15) == solve(1e9, None, None)


def test_chosen_tokens_are_kept_however_small_the_text() -> None:
    assert solve(None, 1e8, None, fresh=1e3).tokens == 1e8


def test_a_net_that_follows_from_its_tokens_is_not_below_the_smallest() -> None:
    budget = solve(None, None, None, fresh=1e6, smallest=5e5)
    assert (budget.parameters, budget.tokens) == (5e5, 4e6)


def test_the_smallest_net_still_keeps_to_the_flops() -> None:
    budget = solve(None, None, 6e9, smallest=1e6)
    assert budget.parameters == 1e6
    assert budget.flops == pytest.approx(6e9)


def test_hours_and_money_return_the_flops_they_came_from() -> None:
    machine = Machine(1e14, "", devices=8, price_per_hour=2.5)
    assert machine.flops_for_hours(machine.hours(1e21)) == pytest.approx(1e21)
    money = machine.money(1e21)
    assert money is not None
    assert machine.flops_for_money(money) == pytest.approx(1e21)
    assert money == pytest.approx(1e21 / 1e14 / 3600 * 2.5)  # whatever the number of devices


def test_money_needs_a_price() -> None:
    with pytest.raises(ConfigError, match="--price_per_hour"):
        Machine(1e14, "").flops_for_money(10)
    assert Machine(1e14, "").money(1e21) is None


def test_a_gpu_that_nobody_knows_is_answered_with_close_names() -> None:
    with pytest.raises(ConfigError, match=r"'h101' is not in the table; close: h100"):
        gpu_peak("h101")
    with pytest.raises(ConfigError, match=r"there are: .*a100"):
        gpu_peak("???")


def test_a_driver_s_long_name_is_known_too() -> None:
    assert gpu_peak("NVIDIA H100 80GB HBM3") == 989e12


@pytest.mark.parametrize(
    ("number", "text"),
    [(7e9, "7B"), (999.9e6, "1B"), (1.4e12, "1.4T"), (622_656, "623k"), (12, "12"), (0.5, "0.5")],
)
def test_counts_are_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(4.2e22, "4.2e22"), (6e12, "6e12"), (3.15e23, "3.15e23"), (1e30, "1e30")]
)
def test_flops_are_powers_of_ten(number: float, text: str) -> None:
    assert power(number) == text


def test_speeds_have_their_unit() -> None:
    assert (rate(4.96e14), rate(4.3e10)) == ("496 TFLOP/s", "43 GFLOP/s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (9.231, "9.23 s"),
        (600, "10 min"),
        (3 * 3600, "3 hours"),
        (5 * 86400, "5 days"),
        (70e9, "2,218 years"),
    ],
)
def test_times_are_said_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_the_best_split_of_flops_is_the_geometric_one() -> None:
    assert solve(None, None, 5.88e23).parameters == pytest.approx(math.sqrt(5.88e23 / 120))
