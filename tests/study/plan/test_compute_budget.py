"""What is asked for, on a machine: known by its name, by its speed, or measured."""

from pathlib import Path

import pytest

from lmtemplate.errors import ConfigError, DataError
from lmtemplate.study.plan import compute_budget as balance
from lmtemplate.study.plan.compute_budget import (
    Asked,
    Corpus,
    check_numbers,
    chosen_machine,
    measure,
    read_corpus,
    settle,
)
from lmtemplate.study.plan.proposal import Proposal, propose
from lmtemplate.study.plan.scaling_laws import Budget, Machine

TEXT = Corpus(Path("data/x"), vocab_size=512, tokens=1_000_000, longest=50)
NET = propose(Budget(3e4, 6e5, "", ""), 512)


def unmeasured(price: float | None = None) -> Machine:
    return chosen_machine(None, None, balance.MFU, 1, price)


def test_a_corpus_says_its_vocabulary_and_tokens(corpus: Path) -> None:
    read = read_corpus(corpus)
    assert read.vocab_size == 257  # bytes and end-of-text
    assert read.tokens == (corpus / "train_000000.bin").stat().st_size // 2 - 512
    assert read.longest == (corpus / "val_000000.bin").stat().st_size // 2 - 512 - 1


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lmtemplate prepare"):
        read_corpus(tmp_path)


def test_one_limit_on_the_flops_is_enough() -> None:
    with pytest.raises(ConfigError, match="--hours and --money all limit the FLOPs; keep one"):
        Asked({"hours": 1, "money": 2})


def test_a_corpus_states_its_vocabulary_itself() -> None:
    with pytest.raises(ConfigError, match="leave --vocab_size out"):
        Asked({"hours": 1}, vocab_size=100, corpus=TEXT)


def test_a_block_has_to_fit_into_the_corpus() -> None:
    with pytest.raises(ConfigError, match="50 at most"):
        Asked({"hours": 1}, block_size=51, corpus=TEXT)
    settled = settle(Asked({}, corpus=TEXT), Machine(1e12, ""))
    assert settled.proposal.block_size == 50


def test_a_gpu_s_speed_is_its_peak_times_mfu() -> None:
    assert chosen_machine("a100", None, 0.5, 1, None).speed == 156e12


def test_speed_and_gpu_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="keep one"):
        chosen_machine("a100", 1e12, balance.MFU, 1, None)


def test_mfu_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="name the GPU"):
        chosen_machine(None, None, 0.3, 1, None)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_numbers_are_above_zero_and_finite(value: float) -> None:
    with pytest.raises(ConfigError, match="--hours"):
        check_numbers({"hours": value}, 0.4)


@pytest.mark.parametrize("mfu", [0.0, 1.1, 40.0])
def test_mfu_is_a_share(mfu: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        check_numbers({}, mfu)


def test_hours_buy_the_best_net_that_they_pay_for() -> None:
    settled = settle(Asked({"hours": 10}), Machine(1e14, "", devices=2))
    assert settled.budget.flops == pytest.approx(10 * 3600 * 2 * 1e14)
    assert settled.budget.tokens / settled.budget.parameters == pytest.approx(20)


def test_money_buys_as_much_whatever_the_devices() -> None:
    asked = Asked({"money": 100})
    budgets = [settle(asked, Machine(1e14, "", n, price_per_hour=2)).budget for n in (1, 64)]
    assert budgets[0] == budgets[1]
    assert budgets[0].flops == pytest.approx(50 * 3600 * 1e14)


def test_the_speed_measured_is_6nd_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "measure_step", lambda *_, **__: 0.5)
    machine = measure(NET, Machine(0, "", devices=4, price_per_hour=3))
    tokens = NET.batch_size * NET.block_size
    assert machine.speed == pytest.approx(6 * NET.shape.parameters * tokens / 0.5)
    assert machine.how.startswith("measured on")
    assert (machine.devices, machine.price_per_hour) == (4, 3)


def test_a_large_net_is_measured_on_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure_step(net: object, *_: object, batch_size: int, **__: object) -> float:
        seen.append((net.parameter_count(), batch_size))  # type: ignore[attr-defined]
        return 1.0

    monkeypatch.setattr(balance, "measure_step", measure_step)
    monkeypatch.setattr(balance.torch.accelerator, "current_accelerator", lambda **_: None)
    monkeypatch.setattr(balance, "CPU_TRIAL", (1e6, 1e10))
    measure(propose(Budget(7e9, 140e9, "", ""), 32768), Machine(0, ""))
    ((parameters, batch_size),) = seen
    assert parameters == pytest.approx(1e6, rel=0.15)
    assert batch_size == 1


def test_this_machine_can_be_measured() -> None:
    small = propose(Budget(2e4, 6e4, "", ""), 256, block_size=16)
    assert measure(small, unmeasured()).speed > 0


def test_the_net_follows_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(proposal: Proposal, machine: Machine) -> Machine:  # smaller nets are slower
        return Machine(min(1e13, 1e5 * proposal.shape.parameters), "measured")

    monkeypatch.setattr(balance, "measure", fake)
    settled = settle(Asked({"hours": 1}), unmeasured())
    assert settled.budget.flops == pytest.approx(3600 * settled.machine.speed)
    assert settled.machine.speed == pytest.approx(1e5 * settled.budget.parameters, rel=0.15)
