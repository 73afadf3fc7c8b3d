"""Scores of two arms -> a sentence that claims no more than was seen."""

import pytest

from lmtemplate.study.experiments.comparison import Comparison, Scores, compare_all

A = {1: 1.30, 2: 1.31, 3: 1.29, 4: 1.30, 5: 1.305}


def compared(a: Scores, b: Scores, *others: Scores, effect: float = 0.01) -> Comparison:
    names = ["A", "B", "C", "D"][: 2 + len(others)]
    return compare_all(names, [a, b, *others], "bits per byte", effect)[0]


def shifted(scores: Scores, by: float) -> Scores:
    return {seed + 10: value + by for seed, value in scores.items()}


def test_a_clear_difference_is_said_with_its_interval_and_its_seeds() -> None:
    found = compared(A, shifted(A, -0.1))
    # Welch's interval by hand: 5 seeds each of deviation 0.0074162, t(8) = 2.3060
    half = 2.3060 * 0.0074162 * (2 / 5) ** 0.5
    assert found.better == "B"
    assert found.sentence == (
        f"B is better than A by {0.1 - half:.4f} to {0.1 + half:.4f} bits per byte (5 seeds each)"
    )
    assert "13.5 times the standard deviation between seeds (0.0074)" in found.against_noise
    assert compared(A, shifted(A, 0.1)).sentence.startswith("A is better than B by ")


def test_a_difference_within_the_noise_is_none_and_the_seeds_for_it_are_said() -> None:
    few = {seed: A[seed] for seed in (1, 2, 3)}
    found = compared(few, shifted(few, -0.002))
    assert found.better is None
    assert "no difference can be seen between A and B: B is from " in found.sentence
    assert f"about {found.more_seeds} more seeds each would be needed to see 0.01" in found.sentence
    assert found.more_seeds == 14  # by G*Power: 17 seeds each for d = 1 and a power of 0.8
    assert "0.5 would have been seen" in compared(few, shifted(few, 0), effect=0.5).sentence


def test_three_matching_seeds_or_more_are_compared_pair_by_pair() -> None:
    better = {seed: score - 0.002 - 1e-5 * seed for seed, score in A.items()}
    found = compared(A, better)
    assert found.better == "B"
    assert found.sentence.endswith("(5 seeds each, paired)")
    two = {seed: better[seed] for seed in (1, 2)}
    assert "paired" not in compared(A, two).sentence


@pytest.mark.parametrize("difference", [-0.5, 0.5])
def test_one_seed_on_each_side_cannot_tell(difference: float) -> None:
    found = compared({1: 1.3}, {1: 1.3 + difference})
    assert found.better is None
    assert "no difference can be seen" in found.sentence
    assert "one seed on each side cannot tell" in found.sentence
    assert "how much seeds differ is not known" in found.sentence


def test_other_arms_tell_how_much_one_seed_may_differ() -> None:
    found = compared({1: 1.3}, {1: 1.0}, A)
    assert found.better == "B"
    assert found.sentence.endswith("(1 seed each, noise of the other arms)")
    assert compared({1: 1.3}, {1: 1.29}, A).better is None
    assert "(1 and 5 seeds, noise of B)" in compared({7: 1.3}, A).sentence


def test_several_comparisons_have_wider_intervals_so_that_all_hold() -> None:
    alone, among = (compared(A, shifted(A, -0.012), *more) for more in ([], [A, A]))
    assert alone.level == pytest.approx(0.95)
    assert among.level == pytest.approx(1 - 0.05 / 3)
    assert (alone.better, among.better) == ("B", None)


def test_an_arm_without_a_score_is_named() -> None:
    assert compared(A, {}).sentence.endswith("B has no validation to compare")
