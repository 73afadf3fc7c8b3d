"""The verdicts on the documents' claims, against arithmetic of their own."""

import json

import pytest

from lmtemplate.study.plan.claims import (
    Claim,
    Verdict,
    all_claims,
    claims_as_json,
    claims_as_text,
    judge,
)

CLAIMS = {claim.says: claim for claim in all_claims()}


def claim(words: str) -> Claim:
    (found,) = [claim for says, claim in CLAIMS.items() if words in says]
    return found


@pytest.mark.parametrize(
    ("claimed", "ours", "verdict"),
    [
        (100, 102, "right"),
        (100, 98, "right"),
        (100, 115, "rounded"),
        (115, 100, "rounded"),
        (100, 125, "wrong"),
        (125, 100, "wrong"),
    ],
)
def test_a_verdict_is_a_matter_of_the_factor(claimed: float, ours: float, verdict: Verdict) -> None:
    assert judge(claimed, ours) == verdict


def test_7b_on_1t_is_right() -> None:
    found = claim("42 x 10^21")
    assert (found.verdict, found.ours) == ("right", "4.2e22 FLOPs")


def test_140b_tokens_for_7b_is_right() -> None:
    found = claim("140B")
    assert (found.verdict, found.ours) == ("right", f"{20 * 7}B tokens")


def test_7b_on_1t_does_not_cost_millions() -> None:
    found = claim("millions of dollars")
    dollars = int(found.ours.replace("$", "").replace(",", ""))
    assert found.verdict == "wrong"
    assert dollars == pytest.approx(2 * 4.2e22 / (0.4 * 312e12 * 3600), abs=1)
    # at any price below 24 dollars an hour, LLaMA 7B's own 82,432 hours stay below two millions
    assert 82_432 * 24 < 2e6


def test_54_days_for_llama_need_more_than_its_paper_measured() -> None:
    found = claim("405B")
    at_paper_speed = 6 * 405e9 * 15.6e12 / (16384 * 400e12) / 86400
    assert (found.verdict, found.ours) == ("wrong", f"{at_paper_speed:.0f} days")
    assert "496 TFLOP/s per GPU, MFU 0.50" in found.why


def test_gpt_3_s_hours_are_possible_on_v100s() -> None:
    found = claim("3.6M GPU hours")
    needed = 6 * 175e9 * 300e9 / (3.6e6 * 3600)
    assert found.verdict == "rounded"
    assert f"{needed / 1e12:.1f} TFLOP/s, MFU {needed / 125e12:.2f}" in found.why
    gpu_years = 355  # Li 2020
    assert found.ours == f"{gpu_years * 365.25 * 24 / 1e6:.1f}M hours"


def test_gpt_3_s_price_is_that_of_fewer_hours() -> None:
    found = claim("$4.6M")
    assert found.verdict == "right"
    assert "$5.4M" in found.why
    assert f"${4.6e6 / 3.6e6:.2f} an hour" in found.why
    assert found.ours == f"${355 * 365.25 * 24 * 1.5 / 1e6:.1f}M"


def test_nobody_can_check_gpt_4() -> None:
    assert claim("GPT-4").verdict == "unknown"


def test_gpt_3_was_undertrained() -> None:
    found = claim("undertrained")
    assert (found.verdict, found.ours) == ("right", f"{300 / 175:.1f} tokens per parameter")


def refitted_loss(parameters: float, tokens: float) -> float:
    """Besiroglu et al. 2024: the same data, fitted by others."""
    return 1.8172 + 482.01 / parameters**0.3478 + 2085.43 / tokens**0.3658


def test_70b_on_more_tokens_is_the_better_net_by_another_fit_as_well() -> None:
    found = claim("70B parameters on 1.4T")
    assert (found.verdict, found.ours) == ("right", "loss 1.94 against 2.00")
    equal = 175 * 300 / 70
    loss = 1.69 + 406.4 * 70e9**-0.34 + 410.7 * (equal * 1e9) ** -0.28
    assert f"70B on {equal:.0f}B tokens come to {loss:.2f}" in found.why
    assert refitted_loss(70e9, 1.4e12) < refitted_loss(175e9, 300e9)
    assert refitted_loss(70e9, 750e9) < refitted_loss(175e9, 300e9)


def test_their_compute_is_of_the_same_order_but_not_the_same() -> None:
    found = claim("same compute")
    assert found.verdict == "wrong"
    assert found.ours == f"{70 * 1400 / (175 * 300):.2f} times as much"


def test_each_tenfold_of_data_helps_less() -> None:
    found = claim("90M more")
    assert found.verdict == "right"
    assert f"{10**-0.28:.0%}" in found.ours


def test_beyond_100m_there_is_as_much_to_gain_again() -> None:
    found = claim("beyond 100M")
    gain = 410.7 * (1e8**-0.28 - 3e11**-0.28)
    assert (found.verdict, found.ours) == ("wrong", f"{gain:.1f} nats")


@pytest.mark.parametrize(
    ("words", "flops", "speed", "least"),
    [
        ("1M parameters, 1M tokens: days on a CPU", 6e12, 1.2e11, 2 * 86400),
        ("1M parameters, 1M tokens: hours on a GPU", 6e12, 65e10, 2 * 3600),
        ("100M parameters, 100M tokens: weeks on a CPU", 6e16, 1.2e11, 14 * 86400),
        ("100M parameters, 100M tokens: days on a GPU", 6e16, 13e12, 2 * 86400),
    ],
)
def test_small_models_take_less_than_half_the_least_time_claimed(
    words: str, flops: float, speed: float, least: float
) -> None:
    (found,) = [claim for says, claim in CLAIMS.items() if says == words]
    number, unit = found.ours.split()
    seconds = float(number) * {"s": 1, "min": 60, "hours": 3600, "days": 86400}[unit]
    assert found.verdict == "wrong"
    assert seconds == pytest.approx(flops / speed, rel=0.01)
    assert seconds < least / 2


def test_quickstart_alone_refutes_days_on_a_cpu() -> None:
    """1.8M parameters x 635k tokens took 57 s on two cores (its lab note)."""
    flops, seconds = 6 * 1_835_136 * 620 * 1024, 57
    assert flops > 6e12
    assert 6e12 / (flops / seconds) == pytest.approx(50, rel=0.1)


def test_a_second_for_each_of_70_billion_is_2200_years() -> None:
    found = claim("70 billion")
    assert (found.verdict, found.ours) == ("right", f"{70e9 / 60 / 60 / 24 / 365.25:,.0f} years")


def test_text_and_json_hold_every_claim() -> None:
    text, listed = claims_as_text(), json.loads(claims_as_json())
    assert len(listed) == len(all_claims()) == len(CLAIMS)
    for entry in listed:
        assert f"{entry['verdict']:<8} {entry['says']}\n" in text
    assert max(map(len, text.splitlines())) <= 100
