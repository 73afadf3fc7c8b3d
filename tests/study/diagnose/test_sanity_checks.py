"""The four questions, each asked of runs whose answer is known."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtemplate.data.prepare import prepare
from lmtemplate.data.shards import read_index
from lmtemplate.record import Record
from lmtemplate.study.diagnose.artifacts import RunCorpus
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.sanity_checks import (
    baselines,
    check_all,
    known_words,
    loss_check,
    prediction_check,
    text_check,
    validation_check,
    word_share,
)

KNOWN = {"the", "cat", "sat", "on", "mat"}


def make_record(train: list[float], val: list[float | None] | None = None, **more: Any) -> Record:
    rows = len(train)
    losses = [math.nan if loss is None else loss for loss in val or [None] * rows]
    return Record(
        steps=np.arange(1, rows + 1),
        train_loss=np.array(train),
        val_loss=np.array(losses),
        learning_rate=np.full(rows, 0.1),
        epochs=np.zeros(rows, dtype=np.int64),
        **more,
    )


@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([3.0, 2.8, 2.9, 2.7, 2.8, 2.6], True),  # small rises are normal
        ([8.0, 6.0, 5.0, 4.0, 4.05], True),
        ([8.0, 6.0, 4.0, 6.0, 8.0], False),
        ([4.0, 4.0, 4.0], False),
        ([4.0, 5.0, 6.0], False),
        ([4.0], None),
    ],
)
def test_a_loss_decreases_if_little_of_it_is_lost_again(
    losses: list[float], falls: bool | None
) -> None:
    assert loss_check(make_record(losses)).passed is falls


def test_a_rise_within_a_fall_is_named_and_judged_only_in_a_run_that_is_long_enough() -> None:
    losses, lost = [7.83, 6.12, 6.33], "6.12: of its fall, 12% is lost again (more than 10%)"
    few, many = loss_check(make_record(losses)), loss_check(make_record([*np.repeat(losses, 10)]))
    assert few.passed is None
    assert few.says.endswith(f"{lost}, but 3 rows are too few to judge")
    assert many.passed is False
    assert many.says.endswith(lost)


def test_the_loss_before_step_one_is_where_validation_begins() -> None:
    record = make_record([5.0, 4.0], [None, 4.5], initial_val_loss=8.3)
    check = validation_check(record)
    assert check.passed
    assert check.says == "8.30 -> 4.50, best 4.50"
    assert validation_check(make_record([5.0, 4.0], [None, 4.5])).passed is None
    assert validation_check(make_record([3.0, 2.0, 1.0], [4.0, 3.0, 4.5])).passed is False


def run_with(accuracy: float, loss: float) -> Record:
    return make_record(
        [5.0, 4.0],
        [None, loss],
        values={"val/accuracy": np.array([math.nan, accuracy])},
        initial={"val/accuracy": 0.01},
    )


@pytest.mark.parametrize(
    ("accuracy", "loss", "passed", "words"),
    [
        (0.3, 3.9, True, "accuracy 1.0% -> 30.0%, loss 3.90 beats token pairs (4.50)"),
        (0.3, 5.0, True, "accuracy 1.0% -> 30.0%, loss 5.00 beats token frequencies (6.00)"),
        (0.3, 6.5, False, "does not beat token frequencies (6.00)"),
        (0.01, 3.9, False, "accuracy 1.0% -> 1.0%"),
    ],
)
def test_predictions_are_better_with_accuracy_and_below_what_counting_reaches(
    accuracy: float, loss: float, passed: bool, words: str
) -> None:
    check = prediction_check(run_with(accuracy, loss), Facts(unigram_loss=6.0, bigram_loss=4.5))
    assert check.passed is passed
    assert words in check.says


def test_predictions_without_figures_are_unknown() -> None:
    assert prediction_check(make_record([3.0, 2.0]), Facts()).passed is None


def test_the_share_of_words_leaves_out_the_prompt_and_the_word_that_was_cut() -> None:
    assert word_share({"The cat": " sat on zzz ma"}, KNOWN) == pytest.approx(2 / 3)
    assert word_share({"The ca": "t sat on it"}, KNOWN) == pytest.approx(1.0)  # "sat", "on"
    assert word_share({"": "12 ... 3"}, KNOWN) is None


@pytest.mark.parametrize(
    ("first", "last", "passed"),
    [
        ("xq zz pfft end", "the cat sat on the mat end", True),
        ("xq zz pfft end", "the qqq zz pp end", None),
        ("the cat zz zz end", "the cat zz on end", True),
        ("the cat zz zz end", "the cat zz zz end", None),
    ],
)
def test_text_is_reasonable_if_half_of_the_gibberish_is_gone(
    first: str, last: str, passed: bool | None
) -> None:
    samples = {0: {"": first}, 40: {"": "pfft"}, 50: {"": last}}
    assert text_check(make_record([3.0], samples=samples), KNOWN).passed is passed


def test_without_samples_or_corpus_nothing_is_said_of_text() -> None:
    samples = {0: {"": "xq"}, 50: {"": "the cat sat"}}
    assert text_check(make_record([3.0], samples=samples), None).passed is None
    assert text_check(make_record([3.0]), KNOWN).passed is None


@pytest.mark.parametrize("text", ["DNA", "numbers"])
def test_data_that_is_not_written_in_words_is_not_asked_for_them(text: str, tmp_path: Path) -> None:
    draw = random.Random(1).choices
    lines = ["".join(draw("ACGT" if text == "DNA" else "0123456789 ", k=60)) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    prepare(str(tmp_path / "text.txt"), tmp_path / "data", "char")
    known = known_words(RunCorpus(tmp_path / "data", read_index(tmp_path / "data")))
    assert known == set()
    check = text_check(make_record([3.0], samples={0: {"": "AC"}, 50: {"": "ACGTTGCA"}}), known)
    assert (check.passed, check.says) == (None, "its corpus has few words")


def test_samples_that_were_words_before_training_prove_nothing() -> None:
    samples = {0: {"": "the cat sat on the"}, 50: {"": "the cat sat on the mat"}}
    check = text_check(make_record([3.0], samples=samples), KNOWN)
    assert (check.passed, check.says) == (None, "100% of the words were known before training")


def test_words_of_a_corpus_are_those_of_both_splits(corpus: Path) -> None:
    known = known_words(RunCorpus(corpus, read_index(corpus)))
    assert {"king", "queen", "fox", "the"} <= known
    assert not {"The", "12", ""} & known


def test_the_loss_stands_beside_what_guessing_and_counting_reach() -> None:
    facts = Facts(vocab_size=66, unigram_loss=3.3, bigram_loss=2.5)
    record = make_record([3.0, 2.0], [None, 2.2])
    assert baselines(record, facts) == {
        "validation": 2.2,
        "uniform": pytest.approx(4.19, abs=0.001),
        "unigram": 3.3,
        "bigram": 2.5,
    }


def test_a_record_without_rows_passes_no_check_and_fails_none() -> None:
    checks = check_all(make_record([]), Facts(), None)
    assert len(checks) == 4
    assert {check.passed for check in checks} == {None}
