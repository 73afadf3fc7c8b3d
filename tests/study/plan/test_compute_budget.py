"""Any of parameters, tokens and FLOPs gives the others, as worked out by hand."""

import math

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.models.gpt import GPT
from lmtemplate.study.plan import compute_budget
from lmtemplate.study.plan.compute_budget import known_gpu, measure, short, solve, training_flops
from lmtemplate.study.plan.scaling_laws import net_sizes


def test_7b_parameters_on_1t_tokens_take_42e21_flops() -> None:
    assert training_flops(7e9, 1e12) == pytest.approx(42 * 10**21)


def test_gpt_3_took_the_3_14e23_flops_of_its_paper() -> None:
    assert training_flops(174.6e9, 300e9) == pytest.approx(3.14e23, rel=2e-3)  # table D.1


def test_llama_405b_in_54_days_on_16384_gpus_is_half_the_peak_of_an_h100() -> None:
    each = training_flops(405e9, 15.6e12) / 16384 / (54 * 24 * 3600)
    assert round(each / 1e12) == 496
    assert each / known_gpu("h100")[0] == pytest.approx(0.50, abs=0.005)


def test_llama_7b_took_about_what_an_mfu_of_04_says() -> None:
    hours = training_flops(6.7e9, 1e12) / (0.4 * known_gpu("a100")[0]) / 3600
    assert hours == pytest.approx(82_432, rel=0.15)  # Touvron et al. 2023, table 15


def test_a_gpu_is_known_by_its_driver_s_long_name() -> None:
    assert known_gpu("NVIDIA H100 80GB HBM3")[0] == 989e12
    with pytest.raises(ConfigError, match=r"'h101' is not known; .* h100, h800,"):
        known_gpu("h101")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1e9, 3e10, None), (1e9, 3e10)),
        ((1e9, None, 1.8e20), (1e9, 3e10)),
        ((None, 3e10, 1.8e20), (1e9, 3e10)),
        ((7e9, None, None), (7e9, 1.4e11)),  # Hoffmann et al. 2022: 20 tokens per parameter
        ((None, 2e10, None), (1e9, 2e10)),
        ((None, None, 1.2e20), (1e9, 2e10)),
        ((None, None, 5.88e23), (7e10, 1.4e12)),  # Chinchilla
    ],
)
def test_what_is_given_determines_the_rest(
    given: tuple[float | None, float | None, float | None], expected: tuple[float, float]
) -> None:
    assert solve(*given) == pytest.approx(expected)


def test_all_three_contradict_each_other_and_nothing_is_not_enough() -> None:
    with pytest.raises(ConfigError, match="drop one of the three"):
        solve(1e9, 2e10, 1e20)
    with pytest.raises(ConfigError, match="a plan needs one of"):
        solve(None, None, None)


@pytest.mark.parametrize(
    ("parameters", "tokens", "flops", "expected"),
    [
        (None, None, 1e18, (2e5, 4e6)),  # less than the FLOPs allow
        (None, None, None, (2e5, 4e6)),
        (1e9, None, None, (1e9, 4e6)),
        (None, 1e8, None, (5e6, 1e8)),  # as asked, however small the text
    ],
)
def test_a_small_text_is_read_four_times(
    parameters: float | None,
    tokens: float | None,
    flops: float | None,
    expected: tuple[float, float],
) -> None:
    assert solve(parameters, tokens, flops, text_tokens=1e6) == pytest.approx(expected)


def test_up_to_four_epochs_a_text_changes_nothing() -> None:
    assert solve(None, None, 1.2e20, text_tokens=6e9) == solve(None, None, 1.2e20)  # 2e10 tokens


def test_a_net_is_not_below_the_smallest_and_still_keeps_to_the_flops() -> None:
    assert solve(None, None, None, text_tokens=1e6, smallest=5e5) == (5e5, 4e6)
    assert solve(None, None, 6e9, smallest=1e6) == pytest.approx((1e6, 1e3))


def test_the_measured_speed_is_6nd_by_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compute_budget, "measure_step", lambda *_, **__: 0.5)
    sizes = net_sizes(2e5, 512)
    speed, how = measure(sizes, 512, 16, 3)
    assert "measuring this machine: 5 steps of a net of " in capsys.readouterr().err
    count = GPT(512, 16, **sizes).parameter_count()
    assert speed == pytest.approx(6 * count * 3 * 16 / 0.5)
    assert how.startswith("measured on")


@pytest.mark.parametrize(("cores", "is_told"), [(0.9, True), (1.1, False)])
def test_a_machine_that_others_use_is_told(
    monkeypatch: pytest.MonkeyPatch, cores: float, is_told: bool
) -> None:
    monkeypatch.setattr(compute_budget, "measure_step", lambda *_, **__: 0.5)
    monkeypatch.setattr("os.getloadavg", lambda: (8.0, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: int(8 * cores))
    _, how = measure(net_sizes(2e5, 512), 512, 16, 3)
    assert ("while 8.0 jobs wanted its cores" in how) == is_told


def test_this_machine_can_be_measured() -> None:
    assert 0 < measure(net_sizes(2e5, 512), 512, 16, 1)[0] < math.inf


@pytest.mark.parametrize(
    ("number", "text"),
    [(7e9, "7B"), (999.9e6, "1B"), (1.4e12, "1.4T"), (622_656, "623k"), (12, "12"), (0.5, "0.5")],
)
def test_counts_are_short(number: float, text: str) -> None:
    assert short(number) == text
