"""Counting tokens, against brute force and against sources of known entropy."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from lmtemplate.study.diagnose.ngrams import (
    followers,
    frequencies,
    longest_copy,
    ngram_losses,
    repeated_share,
    shared_share,
    window_hashes,
)

quick = settings(max_examples=20, deadline=None)
few_tokens = some.lists(some.integers(0, 3), min_size=8, max_size=60).map(np.array)


def windows(tokens: np.ndarray, length: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]


def test_frequencies_are_counts_with_a_share_left_for_what_never_came() -> None:
    # three zeros, one two: 2 of 6 are left for four tokens
    expected = [(3 + 2 / 4) / 6, (2 / 4) / 6, (1 + 2 / 4) / 6, (2 / 4) / 6]
    np.testing.assert_allclose(frequencies(np.array([0, 0, 2, 0]), 4), expected)


@quick
@given(few_tokens)
def test_probabilities_of_all_followers_sum_to_one(tokens: np.ndarray) -> None:
    for before in range(5):  # 4 never occurs
        chances = [followers(tokens, np.array([before, then]), 5)[0] for then in range(5)]
        assert sum(chances) == pytest.approx(1)
        assert min(chances) > 0


def test_after_a_token_that_never_came_only_frequencies_are_known() -> None:
    tokens = np.array([0, 1, 0, 1, 1])
    assert followers(tokens, np.array([3, 1]), 4)[0] == frequencies(tokens, 4)[1]


def test_a_follower_is_counted_and_mixed_with_its_frequency() -> None:
    tokens = np.array([0, 1, 0, 1, 0, 2, 1])  # 0 is followed by 1, 1, 2: three times, two kinds
    expected = (2 + 2 * frequencies(tokens, 3)[1]) / (3 + 2)
    assert followers(tokens, np.array([0, 1]), 3)[0] == pytest.approx(expected)


def test_ngram_losses_reach_the_entropies_of_a_chain() -> None:
    random = np.random.default_rng(0)
    stays = random.random(200_000) < 0.9  # two states, each kept with probability 0.9
    tokens = np.cumsum(~stays) % 2
    unigram, bigram = ngram_losses(tokens[:150_000], tokens[150_000:], 2)
    assert unigram == pytest.approx(math.log(2), abs=0.01)
    assert bigram == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=0.01)


def test_ngram_losses_of_even_dice_are_the_logarithm_of_their_sides() -> None:
    tokens = np.random.default_rng(0).integers(8, size=40_000)
    assert ngram_losses(tokens[:30_000], tokens[30_000:], 8) == pytest.approx(
        (math.log(8), math.log(8)), abs=0.01
    )


@quick
@given(few_tokens, some.sampled_from([1, 2, 4, 8]))
def test_hashes_are_equal_where_windows_are(tokens: np.ndarray, length: int) -> None:
    hashes, spelled = window_hashes(tokens, length), windows(tokens, length)
    assert len(hashes) == len(spelled)
    assert len(set(hashes.tolist())) == len(set(spelled))
    assert len(set(zip(hashes.tolist(), spelled, strict=True))) == len(set(spelled))


def test_hashes_of_two_texts_can_be_compared() -> None:
    one, other = np.arange(40), np.arange(8, 60)
    assert window_hashes(one, 32)[8] == window_hashes(other, 32)[0]


@quick
@given(few_tokens)
def test_repeated_share_is_that_of_windows_counted_twice(tokens: np.ndarray) -> None:
    counts = Counter(windows(tokens, 4))
    again = sum(count for count in counts.values() if count > 1)
    assert repeated_share(np.sort(window_hashes(tokens, 4))) == again / sum(counts.values())


@quick
@given(few_tokens, few_tokens)
def test_shared_share_is_that_of_windows_found_elsewhere(
    one: np.ndarray, other: np.ndarray
) -> None:
    there = set(windows(other, 4))
    expected = np.mean([window in there for window in windows(one, 4)])
    assert shared_share(window_hashes(one, 4), np.sort(window_hashes(other, 4))) == expected


@quick
@given(some.lists(few_tokens, min_size=1, max_size=3), few_tokens)
def test_longest_copy_is_the_longest_span_that_brute_force_finds(
    texts: list[np.ndarray], training: np.ndarray
) -> None:
    spans = {
        window
        for text in texts
        for length in range(1, len(text) + 1)
        for window in windows(text, length)
        if window in set(windows(training, length))
    }
    copied = longest_copy(texts, training)
    assert len(copied) == max(map(len, spans), default=0)
    assert len(copied) == 0 or tuple(copied) in spans


def test_longest_copy_takes_ids_that_are_no_characters() -> None:
    training = np.array([0xD800, 0xDFFF, 0, 0x10FFFF, 5])
    assert longest_copy([np.array([7, 0xDFFF, 0, 0x10FFFF])], training).tolist() == [
        0xDFFF,
        0,
        0x10FFFF,
    ]


def test_bytes_of_two_neighbours_make_no_token() -> None:
    assert len(longest_copy([np.array([0x0100])], np.array([0, 1, 0, 1]))) == 0
