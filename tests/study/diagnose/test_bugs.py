"""What is said of bugs, and which of two that show at once is named first."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.study.diagnose.bugs import bugs
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.verdict import judge
from tests.study.records import FACTS, START, UNIGRAM, power_law, record, trend

SOUND = replace(
    FACTS,
    checkpoint_step=500,
    val_measured=1.7,
    train_measured=1.52,
    shift=1,
    shift_loss=1.7,
    ahead=1e-7,
    is_random=False,
    is_probability=False,
    tensors=9,
    still_tensors=(),
    train_unigram_loss=UNIGRAM,
)
LOGGED = {
    "data__targets_next": 1.0,
    "data__targets_ignored": 0.0,
    "data__sequences_repeated": 0.0,
    "data__longest_run": 0.1,
    "data__unigram_loss": UNIGRAM + 0.02 * np.sin(np.arange(100)),
    "optim__update": 0.004,
}


@pytest.mark.parametrize("seed", range(5))
def test_a_sound_run_has_no_bug(seed: int) -> None:
    found = trend(power_law(seed=seed), val=np.array([2.0, 1.7]), **LOGGED)
    assert bugs(found, SOUND) == []
    assert bugs(trend(power_law(seed=seed)), Facts()) == []


@pytest.mark.parametrize(
    ("logged", "known", "name", "says"),
    [
        ({"data__targets_next": 0.03}, {}, "wrong_targets", "only 3% of the targets"),
        ({}, {"shift": 2, "shift_loss": 1.2}, "wrong_targets", "the token after the next one"),
        ({"data__sequences_repeated": 0.9}, {}, "repeated_data", "90% of the sequences"),
        ({"data__unigram_loss": np.full(100, UNIGRAM)}, {}, "repeated_data", "1 different texts"),
        ({"data__longest_run": 0.6}, {}, "padding", "60% of a sequence is one token"),
        ({"optim__update": 0.0}, {}, "standstill", "no weight moves in 100% of the run"),
        ({}, {"still_tensors": ("x",) * 9}, "standstill", "9 of 9 tensors"),
        ({}, {"is_random": True}, "reload_differs", "in eval mode"),
        ({}, {"train_measured": 4.0}, "other_tokens", "4.00 on the training text"),
        (
            {"data__unigram_loss": UNIGRAM + np.append(np.linspace(-0.3, -0.29, 50), LOGGED["data__unigram_loss"][50:] - UNIGRAM + 0.3)},
            {},
            "training_text_changes",
            "in one part of the run",
        ),
    ],
)  # fmt: skip
def test_each_bug_is_told_from_what_was_logged_or_measured(
    logged: dict[str, object], known: dict[str, object], name: str, says: str
) -> None:
    found = trend(power_law(), val=np.array([2.0, 1.7]), **{**LOGGED, **logged})
    first, *_ = bugs(found, replace(SOUND, **known))  # type: ignore[arg-type]
    assert (first.name, first.fault) == (name, True)
    assert says in first.says


def test_few_sequences_that_the_config_asks_for_are_no_fault() -> None:
    same = {"data__sequences_repeated": 0.9, "data__unigram_loss": np.full(100, 1.0)}
    facts = replace(SOUND, settings={"data.max_train_blocks": 2})
    assert bugs(trend(power_law(), **{**LOGGED, **same}), facts) == []


def test_a_loss_below_all_counting_is_believed_only_if_the_net_was_probed() -> None:
    low = record(np.linspace(START, 0.05, 100), val=np.array([0.2, 0.04]))
    assert judge(low, FACTS).findings[0].name == "too_good"
    assert judge(low, Facts()).findings[0].name == "too_good"
    assert judge(low, replace(FACTS, ahead=0.0)).healthy


@pytest.mark.parametrize(
    ("update", "name"), [(1e-5, "learning_rate_too_low"), (0.01, "not_learning")]
)
def test_steps_of_a_usual_size_clear_a_low_learning_rate(update: float, name: str) -> None:
    found = judge(record(np.linspace(START, 4.0, 100), optim__update=update), FACTS)
    assert found.findings[0].name == name


@pytest.mark.parametrize(
    ("update", "name"), [(0.2, "learning_rate_too_high"), (0.01, "not_learning")]
)
def test_steps_of_a_usual_size_clear_a_high_learning_rate(update: float, name: str) -> None:
    found = judge(record(np.linspace(START, 9.0, 100), optim__update=update), FACTS)
    assert found.findings[0].name == name


def test_a_log_of_the_later_part_of_a_run_is_not_said_to_learn_nothing() -> None:
    late = record(3.3 + 0.03 * np.random.default_rng(0).standard_normal(60), initial=None)
    late = replace(late, steps=late.steps + 4500)
    assert judge(late, Facts()).healthy


@pytest.mark.parametrize("seed", range(10))
def test_fine_tuning_that_begins_low_and_noisy_is_not_accused(seed: int) -> None:
    noise = 0.2 * np.random.default_rng(seed).standard_normal(100)
    assert judge(
        record(2.2 - 0.3 * np.linspace(0, 1, 100) ** 0.5 + noise, initial=None), Facts()
    ).healthy


@pytest.mark.parametrize("dropout", ["x", [], ["x"], {}, None, [1], "1e999", 10**400])
def test_a_dropout_of_another_type_says_nothing(dropout: object) -> None:
    facts = replace(SOUND, settings={"model.net.init_args.dropout": dropout})
    assert [*bugs(trend(power_law(), facts), facts)] == []


FALL = np.linspace(0, 1, 25) ** 2  # ever faster, as in a long warm-up


@pytest.mark.parametrize(
    ("rows", "step", "measured", "fault"),
    [
        (np.array([8.28, 7.88]), 10, 7.51, None),  # a run that stopped after 10 steps
        (np.array([8.28, 7.88]), 10, 6.0, None),  # too short to judge
        (8.3 - 6 * FALL, 125, 2.3 - 0.45, None),  # the last row is a mean of 2.8 to 1.85
        (8.3 - 6 * FALL, 125, 1.2, "training_differs"),
        (6.5 - FALL, 1, 8.3, None),  # the first row is a mean of 8.3 to 5
        (6.5 - FALL, 60, 8.3, "other_tokens"),
    ],
)
def test_a_loss_that_falls_within_a_row_is_no_other_training(
    rows: np.ndarray, step: int, measured: float, fault: str | None
) -> None:
    measures = {"checkpoint_step": step, "train_measured": measured, "val_measured": measured}
    facts = replace(SOUND, shift_loss=measured, ahead=0.0, vocab_size=4096, **measures)  # type: ignore[arg-type]
    found = bugs(trend(rows, facts, initial=8.3), facts)
    assert [one.name for one in found] == ([fault] if fault else [])
