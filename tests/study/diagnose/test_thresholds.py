"""Drawn curves on both sides of each threshold: one has the finding, the other has not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.early_warning import early_fault
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.trend import row_noise
from lmtemplate.study.diagnose.verdict import judge
from tests.study.records import BIGRAM, FACTS, START, UNIGRAM, name, power_law, record, trend

WAY = START - UNIGRAM  # from guessing to token frequencies
SMOOTH = power_law(noise=0.0)
COLD = replace(FACTS, warmup_steps=0)
TOO_HIGH, TOO_LOW = "learning_rate_too_high", "learning_rate_too_low"


def names(loss: Floats, facts: Facts = FACTS, **others: Any) -> set[str]:
    """Names of all findings and phases."""
    verdict = judge(record(loss, **others), facts)
    return {of.name for of in (*verdict.findings, *verdict.phases)}


def warned(loss: Floats, every: int = 5) -> set[str | None]:
    """Name of what is said while the run goes on, after its last row."""
    steps = every * np.arange(1, len(loss) + 1)
    return {name(early_fault(steps, loss, START, FACTS))}


def flat(level: float, rows: int = 100) -> Floats:
    return np.full(rows, level)


def steps(*levels: float) -> Floats:
    """(100,) stretches of equal length, each at one level; the last is as long as is left."""
    return np.repeat(levels, 100 // len(levels))


def changed(loss: Floats, rows: Any, value: Any) -> Floats:
    """A copy with other values at these rows."""
    copy = loss.copy()
    copy[rows] = value
    return copy


def with_noise(size: float) -> Floats:
    return 2.0 + size * np.random.default_rng(0).standard_normal(100)


def jump_in_noise(deviations: float) -> set[str]:
    """Row 50 stands so many standard deviations of the noise above the five rows before it."""
    loss = with_noise(0.15)
    height = deviations * trend(loss).noise
    return names(changed(loss, 50, np.median(loss[45:50]) + height))


def rise_in_noise(deviations: float) -> set[str]:
    """The loss ends so many standard deviations above its best; its rows alternate."""
    noise = 0.1 * (-1.0) ** np.arange(100)
    rise = deviations * trend(2.0 + noise).noise - 0.1  # the running median alternates as well
    return names(2.0 + noise + np.interp(np.arange(100), [50, 80], [0, rise]))


def one_peak(share: float) -> set[str]:
    """One validation stands above the others by a share of the fall of the training loss."""
    fall = START - trend(SMOOTH).smooth.min()
    return names(SMOOTH, val=changed(flat(2.0, 10), 5, 2.0 + share * fall))


def turned(rise: float, fall: float) -> set[str]:
    """Validation rises by so much from its best, and training falls by so much after it."""
    loss = changed(flat(2.0), slice(60, None), 2.0 - fall)
    return names(loss, val=np.append([4, 3, 2.0], flat(2.0 + rise, 7)))


def decayed(share: float) -> set[str]:
    """The loss falls faster in the last fifth, where the learning rate is this share of its peak."""
    dipped = SMOOTH - np.interp(np.arange(100), [80, 99], [0, 0.5])
    return names(dipped, rate=changed(flat(1e-3), slice(80, None), share * 1e-3))


def of_unigram(above: float, facts: Facts = FACTS, rate: float = 1e-3) -> set[str]:
    """A loss that stays so far above the unigram loss from the first row on."""
    return names(flat(UNIGRAM + above), facts, rate=flat(rate))


def humped(facts: Facts, rate: Floats) -> set[str]:
    return names(changed(SMOOTH, slice(3), START + 1), facts, rate=rate)


def lost(before: Floats, after: float, rows: int = 20) -> set[str | None]:
    return warned(np.append(before, flat(after, rows)))


def logged(**values: Any) -> set[str]:
    """A healthy run of which this was logged."""
    return names(SMOOTH, **values)


def measured(step: int = 500, **known: Any) -> set[str]:
    """A healthy run whose checkpoint was looked at; validation ends at 1.7."""
    facts = {"val_measured": 1.7, "train_measured": 1.55, "shift": 1, "shift_loss": 1.7, **known}
    return names(SMOOTH, replace(FACTS, checkpoint_step=step, **facts), val=[3.0, 1.7])


def unigram(x: float) -> set[str]:
    facts = replace(FACTS, train_unigram_loss=UNIGRAM)
    return names(SMOOTH, facts, data__unigram_loss=UNIGRAM + x + 1e-4 * np.arange(100))


def of_steps(loss: Floats, size: float) -> set[str]:
    return names(loss, optim__update=size)


def clipped(norm: float, share: float) -> set[str]:
    """A run that learns, with gradients of this norm, of which this share is clipped at 1."""
    facts = replace(FACTS, settings={"trainer.gradient_clip_val": 1.0})
    return names(SMOOTH, facts, optim__grad_norm=norm, optim__clipped_share=share)


def reread(fall: float) -> set[str]:
    epoch = np.arange(1, 101) / 50
    return names(changed(flat(2.0), slice(50, None), 2.0 - fall), data__epoch=epoch)


def begun(first: int) -> set[str]:
    """A log without a first validation whose steps begin there."""
    part = record(flat(3.3), initial=None, every=1)
    return {of.name for of in judge(replace(part, steps=part.steps + first - 1), Facts()).findings}


def noisy_and_unmoved(share: float) -> set[str]:
    """A loss of unknown start that does not move, and whose noise is this share of its start."""
    noise = np.random.default_rng(0).standard_normal(100)
    return names(3.3 + share * 3.3 / row_noise(noise) * noise, Facts(), initial=None)


Draw = Callable[[Any], set[Any]]
ALTERNATING = 2.0 + 0.1 * (-1.0) ** np.arange(30)
EARLY_RISE = {"initial": START + 2}  # so that no row is above the start

# threshold, figure -> names, a name, a figure without it, a figure with it
CASES: list[tuple[str, Draw, str, Any, Any]] = [
    ("ROWS", lambda rows: names(np.linspace(3, 5, rows)), TOO_HIGH, 19, 20),
    ("ROWS", lambda rows: names(np.linspace(START, 2, rows)), "too_slow", 19, 20),
    ("OFF_START", lambda x: names(SMOOTH, initial=START + x), "initial_loss", 0.46, 0.54),
    ("OFF_START", lambda x: names(SMOOTH, initial=START - x), "trained_before", 0.46, 0.54),
    ("OFF_START", lambda x: names(flat(START - x), initial=START - x), TOO_LOW, 0.54, 0.46),
    ("HUMP", lambda x: names(changed(SMOOTH, 0, START + x)), TOO_HIGH, 0.28, 0.32),
    ("HUMP", lambda x: names(changed(flat(2.0), slice(5, 7), 2.0 + x)), TOO_HIGH, 0.28, 0.32),
    ("HUMP", lambda x: names(changed(flat(START - x), 50, 9)), "spike_recovered", 0.28, 0.32),
    ("HUMP", lambda x: warned(flat(START + x, 2)), TOO_HIGH, 0.28, 0.32),
    (
        "HUMP_SHARE",
        lambda r: names(changed(flat(2.0), [r, r + 1], 3), **EARLY_RISE),
        TOO_HIGH,
        10,
        8,
    ),
    ("EARLY", lambda row: names(changed(SMOOTH, row, START + 1)), TOO_HIGH, 25, 24),
    (
        "EARLY",
        lambda row: names(changed(flat(2.0), slice(row, None), 3.0)),
        "spike_not_recovered",
        24,
        25,
    ),
    (
        "NO_WARMUP",
        lambda x: humped(Facts(), changed(flat(1e-3), 0, x * 1e-3)),
        "missing_warmup",
        0.46,
        0.54,
    ),
    ("HIGHEST_RATE Adam", lambda rate: humped(COLD, flat(rate)), TOO_HIGH, 0.46, 0.54),
    (
        "HIGHEST_RATE Muon",
        lambda rate: humped(replace(COLD, optimizer="MuonAdamW"), flat(rate)),
        TOO_HIGH,
        0.92,
        1.08,
    ),
    ("ROWS_BEFORE", lambda row: names(changed(flat(2.0), row, 3)), "spike_recovered", 4, 5),
    ("JUMP", lambda x: names(changed(flat(2.0), 50, 2.0 + x)), "spike_recovered", 0.38, 0.42),
    ("JUMP", lambda x: lost(flat(2.0, 30), 2.0 + x), "spike_not_recovered", 0.38, 0.42),
    ("JUMP_NOISE", jump_in_noise, "spike_recovered", 5.6, 6.4),
    ("JUMP_NOISE", lambda x: lost(ALTERNATING, 2.0 + 0.1 * x), "spike_not_recovered", 5.6, 6.4),
    ("JUMP", lambda x: names(changed(SMOOTH, 50, SMOOTH[49] + x)), "noise", 0.42, 0.38),
    (
        "RECOVERED",
        lambda x: names(changed(changed(flat(2.0), slice(50, 53), 3), slice(53, None), 2.0 + x)),
        "spike_not_recovered",
        0.14,
        0.16,
    ),
    (
        "ROWS_AFTER",
        lambda row: names(changed(flat(2.0), slice(row, None), 3)),
        "spike_not_recovered",
        98,
        97,
    ),
    (
        "RISE",
        lambda x: names(np.interp(np.arange(100), [50, 80], [2.0, 2.0 + x])),
        TOO_HIGH,
        0.19,
        0.21,
    ),
    ("RISE", lambda x: names(flat(START + x)), TOO_HIGH, 0.19, 0.21),
    (
        "RISE",
        lambda x: names(steps(UNIGRAM, UNIGRAM - x), COLD, rate=flat(0.1)),
        "missing_warmup",
        0.19,
        0.21,
    ),
    ("RISE_NOISE", rise_in_noise, TOO_HIGH, 2.8, 3.2),
    ("PEAK", lambda x: names(SMOOTH, val=2.0 + x * (np.arange(20) % 2)), TOO_HIGH, 0.038, 0.042),
    ("PEAKS", one_peak, TOO_HIGH, 0.075, 0.085),
    (
        "UNMOVED",
        lambda x: names(flat(START * (1 - x)), Facts(vocab_size=64)),
        TOO_LOW,
        0.063,
        0.057,
    ),
    ("UNMOVED_UNKNOWN", lambda x: names(flat(START * (1 - x)), Facts()), TOO_LOW, 0.021, 0.019),
    ("NEAR_UNIGRAM", of_unigram, "wrong_targets", 0.055, 0.045),
    ("NEAR_UNIGRAM", of_unigram, TOO_HIGH, 0.045, 0.055),
    ("NEAR_UNIGRAM", of_unigram, "wrong_targets", -0.055, -0.045),
    (
        "NEAR_UNIGRAM",
        lambda x: of_unigram(x, replace(FACTS, bigram_loss=None)),
        TOO_LOW,
        0.045,
        0.055,
    ),
    ("UP_TO_UNIGRAM", lambda x: of_unigram(-x, rate=0.1), TOO_HIGH, 0.16, 0.14),
    (
        "FAST",
        lambda x: names(steps(START - x * WAY, 1.5), rate=flat(0.1)),
        TOO_HIGH,
        0.57,
        0.63,
    ),
    (
        "FLAT",
        lambda x: names(changed(flat(UNIGRAM), slice(55), UNIGRAM + x * WAY)),
        "wrong_targets",
        0.105,
        0.095,
    ),
    ("STEPS_FLAT", lambda rows: names(flat(UNIGRAM, rows)), "wrong_targets", 39, 40),
    ("STEPS_FLAT", lambda step: warned(flat(START, 60), step // 60), TOO_LOW, 180, 240),
    (
        "ABOVE_BIGRAM",
        lambda x: names(flat(BIGRAM + x), replace(FACTS, tokens=2_000_000)),
        "model_too_small",
        0.095,
        0.105,
    ),
    (
        "INFORMATIVE",
        lambda x: of_unigram(0.0, replace(FACTS, bigram_loss=UNIGRAM - x)),
        "wrong_targets",
        0.28,
        0.32,
    ),
    ("ADAM_RATE", lambda rate: of_unigram(0.0, rate=rate), TOO_HIGH, 0.046, 0.054),
    (
        "PLATEAU",
        lambda x: names(changed(flat(1.5), slice(70), 1.5 + x * (START - 1.5))),
        "plateau",
        0.0105,
        0.0095,
    ),
    (
        "TOO_SLOW",
        lambda x: names(changed(flat(1.5), slice(70), 1.5 + x * (START - 1.5))),
        "too_slow",
        0.19,
        0.21,
    ),
    ("TURN", lambda x: turned(x, 1.0), "overfitting", 0.048, 0.052),
    ("TURN", lambda x: turned(1.0, x), "overfitting", 0.048, 0.052),
    (
        "VALIDATIONS",
        lambda n: names(np.linspace(START, 1, 100), val=changed(flat(3.0, n), 0, 2.0)),
        "overfitting",
        3,
        4,
    ),
    ("GAP", lambda x: names(flat(2.0), val=flat(2.0 + x, 5)), "gap", 0.48, 0.52),
    ("SHARED", lambda x: names(SMOOTH, replace(FACTS, overlap_share=x)), "overlap", 0.095, 0.105),
    (
        "REPEATED",
        lambda x: names(SMOOTH, replace(FACTS, repeated_share=x)),
        "repeated_data",
        0.19,
        0.21,
    ),
    (
        "COPIED_TOKENS",
        lambda n: names(SMOOTH, replace(FACTS, copied_tokens=n, copied_text="a" * 200)),
        "memorising",
        31,
        32,
    ),
    (
        "COPIED_BYTES",
        lambda n: names(SMOOTH, replace(FACTS, copied_tokens=100, copied_text="a" * n)),
        "memorising",
        119,
        120,
    ),
    ("BY_HEART", lambda x: names(flat(x), val=flat(3.0, 3)), "memorising", 0.105, 0.095),
    ("FOREIGN", lambda x: names(flat(0.05), val=flat(0.1 + x, 3)), "memorising", 0.95, 1.05),
    (
        "MANY_TOKENS",
        lambda x: names(SMOOTH, replace(FACTS, tokens=int(x * 10_000))),
        "overtrained",
        95,
        105,
    ),
    (
        "MANY_TOKENS",
        lambda x: names(flat(BIGRAM + 0.3), replace(FACTS, tokens=int(x * 10_000))),
        "model_too_small",
        95,
        105,
    ),
    ("FOLLOWING", lambda x: logged(data__targets_next=x), "wrong_targets", 0.91, 0.89),
    ("WITHOUT_LOSS", lambda x: logged(data__targets_ignored=x), "padding", 0.49, 0.51),
    ("ONE_TOKEN", lambda x: logged(data__longest_run=x), "padding", 0.44, 0.46),
    ("REPEATED", lambda x: logged(data__sequences_repeated=x), "repeated_data", 0.19, 0.21),
    ("OTHER_TOKENS", unigram, "other_tokens", 0.14, 0.16),
    ("STILL", lambda x: logged(optim__update=x), "standstill", 1.1e-7, 0.9e-7),
    (
        "STANDING",
        lambda n: names(SMOOTH, rate=changed(flat(1e-3), slice(100 - n, None), 0.0)),
        "standstill",
        20,
        21,
    ),
    ("AHEAD", lambda x: measured(ahead=x), "reads_ahead", 0.9e-3, 1.1e-3),
    ("SHIFTED", lambda x: measured(shift=2, shift_loss=1.7 - x), "wrong_targets", 0.09, 0.11),
    ("DIFFERS", lambda x: measured(val_measured=1.7 + x), "reload_differs", 0.09, 0.11),
    ("ERRORS", lambda x: measured(val_measured=2.7, val_error=x), "reload_differs", 0.26, 0.24),
    (
        "TRAINING_DIFFERS",
        lambda x: measured(495, train_measured=SMOOTH[-1] - x, val_measured=SMOOTH[-1] - x),
        "training_differs",
        0.29,
        0.31,
    ),
    (
        "FIRST_MOVES",
        lambda step: measured(step, tensors=3, still_tensors=("head",)),
        "parameters_not_trained",
        9,
        10,
    ),
    ("FAR_BELOW", lambda x: names(SMOOTH, val=flat(x * BIGRAM, 3)), "too_good", 0.11, 0.09),
    ("MOVES", lambda x: of_steps(flat(START), x), "not_learning", 0.9e-3, 1.1e-3),
    ("LONG_STEPS", lambda x: of_steps(np.linspace(START, 9, 100), x), "not_learning", 0.031, 0.029),
    ("WORSE", lambda x: names(SMOOTH, val=flat(START + x, 3)), "validation_lost", 0.09, 0.11),
    ("FEW_WORSE", lambda x: names(SMOOTH, val=flat(START + x, 1)), "validation_lost", 0.29, 0.31),
    (
        "ONE_PASS",
        lambda x: names(
            np.linspace(START, 1, 100),
            replace(FACTS, passes=x),
            val=np.array([3, 2, 2.2, 2.4, 2.6]),
        ),
        "overfitting",
        0.99,
        1.01,
    ),
    ("CLIPPED", lambda x: clipped(x, 1.0), "clipped", 29, 31),
    ("CLIPPED_STEPS", lambda share: clipped(1000, share), "clipped", 0.89, 0.91),
    ("REREAD", reread, "rereading", 0.049, 0.051),
    ("LATE", begun, TOO_LOW, 4, 3),
    ("UNTRAINED_NOISE", noisy_and_unmoved, TOO_LOW, 0.011, 0.009),
    ("ROWS_ABOVE", lambda rows: warned(flat(START + 1, rows)), TOO_HIGH, 1, 2),
    (
        "ROWS_ABOVE_AFTER",
        lambda rows: lost(flat(2.0, 9), START + 1, rows),
        "spike_not_recovered",
        4,
        5,
    ),
    ("ROWS_LOST", lambda rows: lost(flat(2.0, 30), 3.0, rows), "spike_not_recovered", 19, 20),
    ("ROWS_STUCK", lambda rows: warned(flat(START, rows), every=10), TOO_LOW, 39, 40),
    ("UNMOVED_YET", lambda x: warned(flat(START * (1 - x), 60)), TOO_LOW, 0.021, 0.019),
    ("END_OF_DECAY", decayed, "dip at the end of the decay", 0.32, 0.28),
]


@pytest.mark.parametrize(
    ("draw", "expected", "without", "with_it"),
    [case[1:] for case in CASES],
    ids=[f"{case[0]}-{case[2]}" for case in CASES],
)
def test_a_finding_appears_where_its_threshold_is_crossed(
    draw: Draw, expected: str, without: Any, with_it: Any
) -> None:
    assert expected not in draw(without)
    assert expected in draw(with_it)


def test_what_was_learned_by_heart_is_no_other_training() -> None:
    """As quickstart's run of 3.7 passes: 3.40 recorded, 3.06 of the checkpoint, 4.13 validated."""
    gap = measured(train_measured=SMOOTH[-1] - 0.34, val_measured=SMOOTH[-1] + 0.73)
    assert "training_differs" not in gap


def test_what_was_read_a_moment_ago_is_known_within_the_first_pass() -> None:
    """As 150 steps of quickstart: 4.68 recorded of unread text, 4.16 of it now, 4.57 validated."""
    early = measured(train_measured=SMOOTH[-1] - 0.52, val_measured=SMOOTH[-1] - 0.11)
    assert "training_differs" not in early
