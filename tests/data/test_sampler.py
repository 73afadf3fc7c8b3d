"""The order of blocks: a permutation each epoch, whatever the batches, ranks and restarts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtemplate.data.sampler import TrainOrder, block_at, fixed_order, permute

sizes = st.integers(1, 5000)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 2**40)
ranks = st.integers(1, 8)
batch_sizes = st.integers(1, 17)
few = settings(max_examples=15, deadline=None, derandomize=True)


@given(sizes, seeds, epochs)
@few
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    images = permute(np.arange(size), size, seed, epoch)
    assert np.array_equal(np.sort(images), np.arange(size))


@given(st.integers(10, 5000), seeds, epochs)
@few
def test_epochs_and_seeds_differ(size: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(size), size, seed, epoch)
    assert not np.array_equal(order, permute(np.arange(size), size, seed, epoch + 1))
    assert not np.array_equal(order, permute(np.arange(size), size, seed + 1, epoch))
    assert not np.array_equal(order, np.arange(size))


@given(sizes, seeds, epochs, st.data())
@few
def test_a_position_does_not_depend_on_who_else_is_asked(
    size: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    whole = permute(np.arange(size), size, seed, epoch)
    some = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    assert np.array_equal(permute(some, size, seed, epoch), whole[some])


def chi_squared(counts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("size", [2, 7, 20])
@pytest.mark.parametrize("place", [0, -1])
def test_every_block_is_as_likely_to_come_first_or_last(size: int, place: int) -> None:
    position = np.array([place % size])
    drawn = [int(permute(position, size, 5, epoch)[0]) for epoch in range(40 * size)]
    degrees = size - 1  # of freedom: mean of chi squared, whose variance is twice that
    assert chi_squared(np.bincount(drawn, minlength=size)) < degrees + 4 * (2 * degrees) ** 0.5 + 4


def test_all_orders_of_four_blocks_occur() -> None:
    orders = Counter(tuple(permute(np.arange(4), 4, 1, epoch).tolist()) for epoch in range(1000))
    assert len(orders) == 24


def test_neighbours_do_not_stay_together() -> None:
    size = 4096
    steps = np.diff(permute(np.arange(size), size, 0, 0))
    assert (np.abs(steps) == 1).sum() < 12  # about 2 are expected
    # the mean distance of two random blocks is a third of the whole
    assert np.abs(steps).mean() == pytest.approx(size / 3, rel=0.05)


def test_a_billion_blocks_need_no_table() -> None:
    positions = np.concatenate([np.arange(1000), 10**9 - 1 - np.arange(1000)])
    images = permute(positions, 10**9, 3, 1)
    assert len(set(images.tolist())) == 2000
    assert images.min() >= 0
    assert images.max() < 10**9
    assert images.mean() == pytest.approx(5e8, rel=0.1)


@given(st.integers(1, 300), seeds, st.integers(0, 5))
@few
def test_the_endless_sequence_is_one_permutation_after_another(
    blocks: int, seed: int, epoch: int
) -> None:
    whole = block_at(np.arange(blocks * epoch, blocks * (epoch + 1)), blocks, seed)
    assert np.array_equal(whole, permute(np.arange(blocks), blocks, seed, epoch))


def test_the_order_of_version_one_stays_as_it_is() -> None:
    # a checkpoint's cursor means these blocks: another order would repeat some and miss others
    assert block_at(np.arange(8), 8, 1337).tolist() == [3, 7, 1, 4, 2, 6, 0, 5]
    assert block_at(np.arange(797, 803), 800, 1337).tolist() == [528, 27, 62, 382, 54, 373]


@pytest.mark.parametrize("size", [5, 40])
def test_few_blocks_are_shuffled_uniformly(size: int) -> None:
    """The second block, given the first: chi squared over the distances of all seeds."""
    orders = np.array([permute(np.arange(2), size, seed) for seed in range(8_000)])
    counts = np.bincount((orders[:, 1] - orders[:, 0]) % size, minlength=size)[1:]
    degrees = size - 2
    assert chi_squared(counts) < degrees + 4 * (2 * degrees) ** 0.5 + 4


def consumed(
    blocks: int, seed: int, world_size: int, batch_size: int, batches: int, first: int = 0
) -> list[int]:
    """Blocks in the order of sequences, gathered from all ranks."""
    orders = [
        TrainOrder(
            blocks,
            batch_size,
            seed,
            batches=batches,
            sequences_done=first,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    return [block for step in zip(*orders, strict=True) for part in step for block in part.tolist()]


@given(st.integers(1, 100), seeds, ranks, batch_sizes)
@few
def test_ranks_and_batches_see_each_block_once_per_epoch(
    blocks: int, seed: int, world_size: int, batch_size: int
) -> None:
    batches = 3 * blocks // (world_size * batch_size) + 1
    seen = consumed(blocks, seed, world_size, batch_size, batches)
    for epoch in range(len(seen) // blocks):
        assert sorted(seen[epoch * blocks : (epoch + 1) * blocks]) == list(range(blocks))
    rest = seen[len(seen) // blocks * blocks :]
    assert len(set(rest)) == len(rest)  # an epoch that is not over repeats nothing either


@given(st.integers(5, 100), seeds, ranks, batch_sizes, ranks, batch_sizes, st.integers(0, 500))
@few
def test_the_sequence_goes_on_from_any_cursor_with_other_ranks_and_batches(
    blocks: int,
    seed: int,
    world_size: int,
    batch_size: int,
    other_world_size: int,
    other_batch_size: int,
    cursor: int,
) -> None:
    for ranks, size in ((world_size, batch_size), (other_world_size, other_batch_size)):
        went_on = consumed(blocks, seed, ranks, size, batches=2, first=cursor)
        expected = block_at(np.arange(cursor, cursor + 2 * ranks * size), blocks, seed)
        assert went_on == expected.tolist()


def test_a_long_run_has_the_order_of_its_single_batches() -> None:
    """They are placed 64 at a time; epochs of 37 blocks end inside."""
    batches = list(TrainOrder(37, 4, 5, batches=200, sequences_done=11, rank=1, world_size=2))
    alone = [block_at(np.arange(4) + 11 + 4 + 8 * batch, 37, 5) for batch in range(200)]
    assert np.array_equal(batches, alone)


def test_a_batch_may_begin_in_one_epoch_and_end_in_the_next() -> None:
    batches = [batch.tolist() for batch in TrainOrder(10, 4, 0, batches=5)]
    first, second = permute(np.arange(10), 10, 0, 0), permute(np.arange(10), 10, 0, 1)
    assert batches[2] == [*first[8:], *second[:2]]
    assert [block for batch in batches for block in batch] == [*first, *second]


def test_a_resumed_order_is_as_long_as_the_whole_run_but_yields_the_rest() -> None:
    order = TrainOrder(10, 4, 0, batches=7, batches_done=3, sequences_done=12)
    whole = list(TrainOrder(10, 4, 0, batches=7))
    assert len(order) == 7
    assert np.array_equal(list(order), whole[3:])


@given(st.integers(1, 300), ranks, batch_sizes)
@few
def test_evaluation_sees_each_block_once_and_all_ranks_are_alike(
    blocks: int, world_size: int, batch_size: int
) -> None:
    parts = [
        list(fixed_order(blocks, batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(part) for part in parts}) == 1
    assert {len(batch) for part in parts for batch in part} == {batch_size}
    seen = [block for part in parts for batch in part for block in batch.tolist()]
    assert sorted(seen) == list(range(len(seen)))
    assert blocks <= len(seen) < blocks + world_size * batch_size


def test_evaluation_is_the_same_each_time() -> None:
    order = fixed_order(10, 4)
    assert np.array_equal(list(order), list(order))
    assert len(order) == len(list(order)) == 3
