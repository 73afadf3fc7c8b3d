"""(seed, epoch, position) -> block: which block comes when, without memory and without history."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lmtemplate.data import Ints

ROUNDS = 6
CHUNK = 64  # batches that are placed at once: for one alone numpy's calls cost 20 times as much
FEW = 64  # as many or fewer are sorted by random keys: the network is not uniform on so few


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64-bit words (the finaliser of SplitMix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@lru_cache(maxsize=8)  # asked for at each chunk, changes with the epoch
def _keys(seed: int, epoch: int, count: int) -> npt.NDArray[np.uint64]:
    return np.random.SeedSequence([seed, epoch]).generate_state(count, np.uint64).astype(np.uint64)


def permute(positions: Ints, size: int, seed: int, epoch: int = 0) -> Ints:
    """Send each position in range(size) to its place in a pseudo-random permutation of range(size).

    A Feistel network on the smallest even-bit domain that holds `size`; an image outside
    range(size) walks on until it is inside (cycle walking: Black and Rogaway 2002, section 3).
    Any slice of the permutation costs only its own length, so 1e9 blocks need no table.
    """
    if size <= FEW:
        return _keys(seed, epoch, size).argsort(kind="stable")[positions]
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = _keys(seed, epoch, ROUNDS)
    images = positions.astype(np.uint64)
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():
        left, right = images[outside] >> half, images[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        images[outside] = (left << half) | right
        outside = images >= np.uint64(size)
    return images.astype(np.int64)


def block_at(sequences: Ints, blocks: int, seed: int) -> Ints:
    """Blocks that stand at these places of the endless training sequence.

    Sequence number s belongs to epoch s // blocks; each epoch is its own permutation of all blocks.
    """
    epochs, positions = np.divmod(sequences, blocks)
    chosen = np.empty_like(sequences)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = permute(positions[here], blocks, seed, int(epoch))
    return chosen


@dataclass(frozen=True)
class TrainOrder:
    """Endless shuffled order in batches for one rank; iterates over (B,) arrays of blocks."""

    blocks: int  # in the split
    batch_size: int  # B, of each rank
    seed: int
    batches: int  # of the whole run, those already done included
    batches_done: int = 0  # of these; iteration skips them
    sequences_done: int = 0  # that all ranks together have consumed; iteration starts there
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Ints]:
        stride, left = self.world_size * self.batch_size, self.batches - self.batches_done
        first = self.sequences_done + self.rank * self.batch_size + np.arange(self.batch_size)
        for start in range(0, left, CHUNK):
            batches = np.arange(start, min(start + CHUNK, left))
            yield from block_at(batches[:, None] * stride + first, self.blocks, self.seed)


def fixed_order(blocks: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[Ints]:
    """Every block once, in order, as (B,) arrays; all batches and all ranks are alike.

    Block numbers past the end stand for padding: they hold no token (see `shards.Blocks`).
    """
    stride = world_size * batch_size
    batches = -(-blocks // stride)
    return list(np.arange(batches * stride).reshape(batches, world_size, batch_size)[:, rank])
