"""Every schedule against its formula, written out step by step."""

import math
from collections.abc import Callable

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.schedules import (
    Constant,
    Schedule,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
)

TOTAL = 40


def cosine(step: int, warmup: int, floor: float) -> float:
    angle = math.pi * (step - warmup) / (TOTAL - warmup)
    return floor + (1 - floor) * (1 + math.cos(angle)) / 2


def linear(step: int, warmup: int, floor: float) -> float:
    return 1 - (1 - floor) * (step - warmup) / (TOTAL - warmup)


def stable(step: int, warmup: int, floor: float) -> float:
    falling = (TOTAL - warmup) * 0.2
    begins = TOTAL - falling
    return 1.0 if step < begins else 1 - (1 - floor) * (step - begins) / falling


def constant(step: int, warmup: int, floor: float) -> float:
    return 1.0


def build_constant(warmup_steps: int, floor_ratio: float) -> Schedule:
    return Constant(warmup_steps)


Build = Callable[..., Schedule]
Formula = Callable[[int, int, float], float]

SHAPES = [
    (WarmupCosine, cosine),
    (WarmupLinear, linear),
    (WarmupStableDecay, stable),
    (build_constant, constant),
]
every_shape = pytest.mark.parametrize(
    ("build", "formula"), SHAPES, ids=["cosine", "linear", "stable", "constant"]
)
every_warmup = pytest.mark.parametrize("warmup", [0, 1, 10])
every_floor = pytest.mark.parametrize("floor", [0.0, 0.1])


@every_shape
@every_warmup
@every_floor
def test_a_schedule_equals_its_formula(
    build: Build, formula: Formula, warmup: int, floor: float
) -> None:
    schedule = build(warmup_steps=warmup, floor_ratio=floor)
    for step in reversed(range(TOTAL)):  # a schedule knows no history
        expected = (step + 1) / warmup if step < warmup else formula(step, warmup, floor)
        assert schedule.factor(step, TOTAL) == pytest.approx(expected, abs=1e-12), step


@every_shape
@every_floor
def test_the_floor_is_reached_at_the_end_and_kept(
    build: Build, formula: Formula, floor: float
) -> None:
    schedule = build(warmup_steps=5, floor_ratio=floor)
    end = 1.0 if isinstance(schedule, Constant) else floor
    for step in (TOTAL, TOTAL + 1, 10 * TOTAL):
        assert schedule.factor(step, TOTAL) == pytest.approx(end, abs=1e-12)


@every_shape
def test_a_run_may_be_all_warmup(build: Build, formula: Formula) -> None:
    schedule = build(warmup_steps=TOTAL, floor_ratio=0.0)
    assert [schedule.factor(step, TOTAL) for step in (0, TOTAL - 1)] == [1 / TOTAL, 1]
    assert schedule.factor(TOTAL, TOTAL) == 1  # a run that was made shorter, not a division by zero


@pytest.mark.parametrize("decay_ratio", [0.1, 0.5, 1.0])
def test_the_stable_part_is_as_long_as_asked(decay_ratio: float) -> None:
    schedule = WarmupStableDecay(warmup_steps=20, decay_ratio=decay_ratio)
    full = [step for step in range(120) if schedule.factor(step, 120) > 1 - 1e-12]
    assert full == list(range(19, 120 - round(100 * decay_ratio) + 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: WarmupCosine(warmup_steps=-1), "warmup_steps=-1 has to be 0 or more"),
        (lambda: Constant(warmup_steps=-1), "warmup_steps=-1"),
        (lambda: WarmupLinear(floor_ratio=1.5), "floor_ratio=1.5 between 0 and 1"),
        (lambda: WarmupLinear(floor_ratio=-0.1), "floor_ratio=-0.1"),
        (lambda: WarmupStableDecay(decay_ratio=0.0), "decay_ratio=0.0"),
        (lambda: WarmupStableDecay(decay_ratio=1.1), "decay_ratio=1.1"),
    ],
)
def test_impossible_settings_are_refused(wrong: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wrong()
