"""Token ids -> what counting tells of them: unigram and bigram losses, repeats, copies."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from lmtemplate.record import Floats, Ints

Hashes = npt.NDArray[np.uint64]


def frequencies(tokens: Ints, vocab_size: int) -> Floats:
    """(V,) probabilities after counting; unseen tokens share what is left evenly.

    Smoothed as in Witten and Bell 1991, method C: as much is left as different tokens were seen.
    """
    counts = np.bincount(tokens, minlength=vocab_size)
    different = np.count_nonzero(counts)
    smoothed: Floats = (counts + different / vocab_size) / (len(tokens) + different)
    return smoothed


def followers(tokens: Ints, wanted: Ints, vocab_size: int) -> Floats:
    """Probability of each wanted token but the first, given the one before it, after counting.

    Interpolated with `frequencies` as in Witten and Bell 1991, method C: the weight of the
    frequencies grows with the number of different tokens that have followed.
    """
    pairs, counts = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
    times = np.bincount(tokens[:-1], minlength=vocab_size)
    different = np.bincount(pairs // vocab_size, minlength=vocab_size)
    before, then = wanted[:-1], wanted[1:]
    asked = before * vocab_size + then
    place = np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)
    seen = np.where(pairs[place] == asked, counts[place], 0)
    alone = frequencies(tokens, vocab_size)[then]
    total = times[before] + different[before]
    mixed: Floats = (seen + different[before] * alone) / np.maximum(total, 1)
    return np.where(total > 0, mixed, alone)


def ngram_losses(training: Ints, held_out: Ints, vocab_size: int) -> tuple[float, float]:
    """(N,) and (M,) ids, N and M at least 2 -> unigram and bigram loss of the held-out tokens.

    In nats per token but the first, under probabilities counted in the training tokens.
    """
    single = frequencies(training, vocab_size)[held_out[1:]]
    pairs = followers(training, held_out, vocab_size)
    return float(-np.log(single).mean()), float(-np.log(pairs).mean())


def window_hashes(tokens: Ints, length: int) -> Hashes:
    """One 64-bit hash per window of `length` tokens, a power of two: (N,) -> (N - length + 1,).

    Built by doubling: the hash of a window comes from those of its halves, in log2(length) passes.
    Two different windows share a hash once in 2^64 pairs.
    """
    kinds = int(tokens.max(initial=0)) + 1
    hashes = np.random.default_rng(0).integers(2**64, size=kinds, dtype=np.uint64)[tokens]
    factors = np.random.default_rng(1)
    half = 1
    while half < length:
        factor = factors.integers(2**63, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        hashes = hashes[:-half] * factor + hashes[half:]
        half *= 2
    return hashes


def repeated_share(ordered: Hashes) -> float:
    """Share of windows that occur more than once; their hashes come in ascending order."""
    same = ordered[1:] == ordered[:-1]
    again = np.append(same, False) | np.insert(same, 0, False)
    return float(again.mean())


def shared_share(hashes: Hashes, ordered: Hashes) -> float:
    """Share of windows that occur in another text, whose hashes come in ascending order."""
    place = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return float((ordered[place] == hashes).mean())


def _as_text(tokens: Ints) -> str:
    """One character per token: Python's search for text then finds spans of tokens."""
    return tokens.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def longest_copy(texts: Iterable[Ints], training: Ints) -> Ints:
    """The longest span of any of the texts that occurs in the training tokens; exact.

    Ids are at most 0x10FFFF, the largest character.
    """
    known, longest = _as_text(training), ""
    for text in map(_as_text, texts):
        for start in range(len(text)):
            end = start + len(longest) + 1
            while end <= len(text) and text[start:end] in known:
                longest, end = text[start:end], end + 1
    return np.array([ord(character) for character in longest], dtype=np.int64)
