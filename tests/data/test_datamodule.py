"""Batches: each block once an epoch, the same sequence from any cursor, no wrong corpus."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmtemplate.data import IGNORED, datamodule, shards
from lmtemplate.data.datamodule import LanguageData, TokenData
from lmtemplate.data.shard_writer import write_index
from lmtemplate.data.shards import Shards
from lmtemplate.errors import ConfigError, DataError, OutOfMemoryError

BLOCK = 32


class FakeTrainer(SimpleNamespace):
    """What TokenData asks the Trainer for."""

    def __init__(
        self, steps: int, accumulate: int = 1, processed: int = 0, rank: int = 0, ranks: int = 1
    ) -> None:
        progress = SimpleNamespace(total=SimpleNamespace(processed=processed))
        super().__init__(
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
            progress=progress,
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            global_rank=rank,
            world_size=ranks,
        )


def token_data(
    corpus: Path, trainer: FakeTrainer | None = None, sequences: int = 0, **settings: Any
) -> TokenData:
    data = TokenData(corpus, **{"block_size": BLOCK, "batch_size": 4, **settings})
    data.load_state_dict({"sequences": sequences})
    data.trainer = trainer
    return data


def rows(loader: Any) -> Tensor:
    """Inputs (N, T) of a whole loader, one row per sequence."""
    return torch.cat([inputs for inputs, _ in loader])


def test_targets_are_the_inputs_one_later(corpus: Path) -> None:
    stream = Shards(corpus, "train").gather(np.arange(2000)).tolist()
    for inputs, targets in list(token_data(corpus).train_dataloader())[:5]:
        assert inputs.shape == targets.shape == (4, BLOCK)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert inputs.is_contiguous()  # a loss of one's own may call `view`
        assert targets.is_contiguous()
    inputs, targets = next(iter(token_data(corpus).val_dataloader()))
    val = Shards(corpus, "val").gather(np.arange(BLOCK + 1)).tolist()
    assert inputs[0].tolist() == val[:-1] != stream[:BLOCK]
    assert targets[0].tolist() == val[1:]


@pytest.mark.parametrize(
    ("workers", "ranks"), [(0, 1), (0, 3), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_ranks_and_workers_see_each_block_once_per_epoch(
    corpus: Path, workers: int, ranks: int
) -> None:
    blocks = len(token_data(corpus).blocks("train"))
    steps = 2 * blocks // (4 * ranks) + 1
    loaders = [
        token_data(
            corpus, FakeTrainer(steps, rank=rank, ranks=ranks), num_workers=workers
        ).train_dataloader()
        for rank in range(ranks)
    ]
    batches = [torch.cat([inputs for inputs, _ in step]) for step in zip(*loaders, strict=True)]
    seen = [tuple(row) for row in torch.cat(batches).tolist()]
    whole, _ = token_data(corpus).blocks("train")[np.arange(blocks)]
    expected = sorted(map(tuple, whole.tolist()))
    assert sorted(seen[:blocks]) == sorted(seen[blocks : 2 * blocks]) == expected
    assert seen[:blocks] != seen[blocks : 2 * blocks]


def test_batches_straddle_the_end_of_an_epoch(corpus: Path) -> None:
    blocks = len(token_data(corpus).blocks("train"))
    assert blocks % 7
    steps = blocks // 7 + 1
    loader = token_data(corpus, FakeTrainer(steps), batch_size=7).train_dataloader()
    assert {len(inputs) for inputs, _ in loader} == {7}
    assert len(rows(loader)) == steps * 7 > blocks


def test_one_lightning_epoch_is_the_whole_run(corpus: Path) -> None:
    loader = token_data(corpus, FakeTrainer(steps=50, accumulate=3)).train_dataloader()
    assert len(loader) == len(list(loader)) == 150


@pytest.mark.parametrize(
    ("done", "workers"),
    [(0, 0), (57, 0), (250, 0), pytest.param(57, 2, marks=pytest.mark.slow)],
)
def test_a_resumed_run_reads_what_the_uninterrupted_one_reads(
    corpus: Path, done: int, workers: int
) -> None:
    whole = rows(token_data(corpus, FakeTrainer(300)).train_dataloader())
    data = token_data(
        corpus, FakeTrainer(300, processed=done), sequences=4 * done, num_workers=workers
    )
    loader = data.train_dataloader()
    assert len(loader) == 300  # of the whole run, or Lightning would skip a batch
    assert torch.equal(rows(loader), whole[4 * done :])


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_another_batch_size_keeps_the_sequence(corpus: Path, batch_size: int) -> None:
    whole = rows(token_data(corpus, FakeTrainer(100)).train_dataloader())
    resumed = token_data(
        corpus, FakeTrainer(100, processed=50), sequences=200, batch_size=batch_size
    )
    went_on = rows(resumed.train_dataloader())[:200]
    assert torch.equal(went_on, whole[200 : 200 + len(went_on)])
    assert len(went_on) == min(200, 50 * batch_size)


def test_the_cursor_counts_sequences_of_all_devices_over_all_restarts(corpus: Path) -> None:
    trainer = FakeTrainer(100, processed=50, ranks=2)
    data = token_data(corpus, trainer, sequences=700)  # of which some with another batch size
    data.train_dataloader()
    assert data.sequences == 700
    trainer.progress.total.processed += 3
    assert data.sequences == 700 + 3 * 4 * 2
    assert data.state_dict() == {"sequences": 724}
    assert data.epochs == 724 / len(data.blocks("train"))


def test_the_seed_decides_the_order(corpus: Path) -> None:
    one, same, other = (
        rows(token_data(corpus, seed=seed).train_dataloader()) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_reading_touches_no_random_numbers(corpus: Path) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    list(token_data(corpus).train_dataloader())
    list(token_data(corpus).val_dataloader())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("ranks", [1, 2])
def test_validation_predicts_every_token_but_the_first_once(
    corpus: Path, batch_size: int, ranks: int
) -> None:
    predicted = []
    for rank in range(ranks):
        data = token_data(corpus, FakeTrainer(1, rank=rank, ranks=ranks), batch_size=batch_size)
        for _, targets in data.val_dataloader():
            predicted += targets[targets != IGNORED].tolist()
    tokens = Shards(corpus, "val").tokens
    assert sorted(predicted) == sorted(Shards(corpus, "val").gather(np.arange(1, tokens)).tolist())


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_fewer_validation_blocks_are_the_same_first_ones_for_any_batch_size(
    corpus: Path, batch_size: int
) -> None:
    data = token_data(corpus, max_val_blocks=6, batch_size=batch_size)
    targets = torch.cat([targets for _, targets in data.val_dataloader()])
    expected = Shards(corpus, "val").gather(np.arange(1, 6 * BLOCK + 1))
    assert targets[targets != IGNORED].tolist() == expected.tolist()


def test_more_validation_blocks_than_there_are_is_all(corpus: Path) -> None:
    whole = rows(token_data(corpus).val_dataloader())
    assert torch.equal(rows(token_data(corpus, max_val_blocks=10**6).val_dataloader()), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 0}, "data.block_size=0 has to be 1 or more"),
        ({"batch_size": 0}, "data.batch_size=0 has to be 1 or more"),
        ({"max_train_blocks": 0}, "data.max_train_blocks=0 has to be 1 or more"),
        ({"max_val_blocks": 0}, "data.max_val_blocks=0 has to be 1 or more"),
    ],
)
def test_impossible_settings_are_refused(
    corpus: Path, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        token_data(corpus, **settings)


def test_a_missing_corpus_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lmtemplate prepare"):
        TokenData(tmp_path)


def test_a_block_longer_than_a_split_is_refused_before_the_first_step(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"val split .* one block needs 20,001.*data.block_size"):
        token_data(corpus, block_size=20_000).setup("fit")


def test_a_test_split_that_was_not_made_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match="no test split"):
        token_data(corpus).setup("test")


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(corpus: Path, tmp_path: Path) -> None:
    index = json.loads((corpus / "index.json").read_text())
    for file in corpus.glob("*.bin"):
        (tmp_path / file.name).hardlink_to(file)
    write_index(tmp_path, {k: v for k, v in index.items() if k not in ("fingerprint", "format")})
    (tmp_path / "tokenizer.json").write_text('{"kind": "char", "characters": "abc"}')
    with pytest.raises(DataError, match=r"tokenizer\.json is not the tokenizer that made"):
        token_data(tmp_path).setup("fit")


def test_the_data_knows_vocabulary_and_bytes(corpus: Path) -> None:
    data = token_data(corpus)
    assert data.vocab_size == 257
    assert data.token_bytes is not None
    assert data.token_bytes.tolist() == [1] * 256 + [0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_workers_go_on_reading_when_a_signal_stops_the_run(corpus: Path, name: str) -> None:
    """The run needs the rest of its step; a scheduler tells all of its processes to stop."""
    data: Any = TokenData(corpus, block_size=16, batch_size=4, num_workers=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    loader = data.val_dataloader()
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    os.kill(worker.pid, signal.Signals[name])
    assert len(list(batches)) == len(loader) - 1


def test_the_exit_of_a_program_without_a_trainer_ends_workers_at_once(corpus: Path) -> None:
    batches: Any = iter(token_data(corpus, num_workers=1).val_dataloader())
    next(batches)
    (worker,) = batches._workers
    worker.terminate()  # as multiprocessing does at exit, once, before it waits for the worker
    worker.join(timeout=20)
    has_ended = not worker.is_alive()
    worker.kill()
    assert has_ended


def test_data_of_no_class_of_its_own_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="LanguageData needs open_split"):
        datamodule.LanguageData(9, 4, 2).setup("fit")


@pytest.mark.parametrize("workers", [-1, 100_000])
def test_a_number_of_workers_that_no_machine_bears_is_refused(corpus: Path, workers: int) -> None:
    with pytest.raises(ConfigError, match=rf"data\.num_workers={workers} has to be from 0 to \d+"):
        token_data(corpus, num_workers=workers)


def test_too_little_shared_memory_for_workers_is_said_before_they_start(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(datamodule, "SHM", corpus)  # not every system has one
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    token_data(corpus).val_dataloader()
    with pytest.raises(OutOfMemoryError, match=r"full.*lower data\.num_workers"):
        token_data(corpus, num_workers=1).val_dataloader()


def test_shared_memory_that_fills_up_under_a_worker_ends_the_run_with_its_line(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)  # workers inherit it
    batches: Any = iter(token_data(corpus, num_workers=1).val_dataloader())
    with pytest.raises(OutOfMemoryError) as refusal:
        next(batches)
    assert str(refusal.value).startswith("/dev/shm is full")
    assert "\n" not in str(refusal.value)
    batches._shutdown_workers()  # garbage collection would wait 10 seconds for it


def test_a_fit_reads_the_index_once_and_opens_each_split_once(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, fingerprints = list[str](), list[str]()
    open_shards, fingerprint = Shards.__init__, shards.fingerprint

    def opening(self: Shards, folder: Path, split: str, index: Any = None) -> None:
        opened.append(split)
        open_shards(self, folder, split, index)

    def counting(index: dict[str, Any]) -> str:
        fingerprints.append(fingerprint(index))
        return fingerprints[-1]

    monkeypatch.setattr(Shards, "__init__", opening)
    monkeypatch.setattr(shards, "fingerprint", counting)
    data = token_data(corpus, FakeTrainer(3))
    assert data.train_sequences
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3
    assert list(data.val_dataloader())
    assert data.epochs == 0
    assert (sorted(opened), len(fingerprints)) == (["train", "val"], 1)


def test_training_on_the_first_blocks_repeats_those_each_epoch(corpus: Path) -> None:
    data = token_data(corpus, FakeTrainer(6), max_train_blocks=8)
    epochs = rows(data.train_dataloader()).split(8)
    expected = Shards(corpus, "train").gather(np.arange(8 * BLOCK)).reshape(8, BLOCK).tolist()
    assert data.train_sequences == 8
    assert [sorted(epoch.tolist()) for epoch in epochs] == [sorted(expected)] * 3


def test_data_of_ones_own_needs_no_tokenizer(corpus: Path) -> None:
    class Bare(LanguageData):
        def open_split(self, split: str) -> Shards:
            return Shards(corpus, split)

    data = Bare(257, BLOCK, 4)
    data.setup("fit")
    assert (data.tokenizer, data.token_bytes, data.fingerprint) == (None, None, None)
    assert torch.equal(rows(data.val_dataloader()), rows(token_data(corpus).val_dataloader()))


def test_small_batches_are_validated_several_at_once(corpus: Path) -> None:
    whole, few = (
        [*TokenData(corpus, block_size=16, batch_size=2, max_val_blocks=count).val_dataloader()]
        for count in (None, 3)
    )
    assert whole[0][0].shape == (256, 16)  # 4,096 tokens
    assert [inputs.shape for inputs, _ in few] == [(4, 16)]  # no more padding than two batches have
    assert sum(int((targets >= 0).sum()) for _, targets in few) == 3 * 16
