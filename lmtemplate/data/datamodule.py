"""Shards -> batches of inputs (B, T) and targets (B, T); owns the one cursor, in sequences.

`LanguageData` is the contract that data of any kind keeps, and the order, the loaders and the
resume that they share; `TokenData` reads a prepared corpus.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lmtemplate.data import Ints
from lmtemplate.data.sampler import TrainOrder, fixed_order
from lmtemplate.data.shards import Blocks, Shards, TokenStream, read_index
from lmtemplate.data.tokenizer import Tokenizer, tokenizer_of
from lmtemplate.errors import ConfigError, OutOfMemoryError, amount

Batch = tuple[Tensor, Tensor]
FULL_BATCH = 4096  # tokens of a validation batch: without gradients, they need little memory
WORKERS_PER_CORE = 8  # more of them only take memory
SHM = Path("/dev/shm")  # data workers pass their batches through it, where it exists
NO_SHARED_ROOM = (
    f"{SHM} is full, and data workers pass batches through it: lower data.num_workers (0 reads "
    "in the training process), or make it larger (docker run --shm-size)"
)


def to_tensors(arrays: tuple[Ints, Ints]) -> Batch:
    inputs, targets = map(torch.from_numpy, arrays)
    return inputs, targets


def to_shared_tensors(arrays: tuple[Ints, Ints]) -> Batch:
    """For a worker. Where multiprocessing does it, an error ends a thread, and training waits."""
    try:
        return tuple(tensor.share_memory_() for tensor in to_tensors(arrays))
    except RuntimeError as error:
        raise OutOfMemoryError(NO_SHARED_ROOM) from error


def ignore_signals_in_worker(_: int) -> None:
    """Keep a worker reading when all processes of a run are told to stop: its step needs batches.

    A second SIGTERM ends it: so the training process ends a worker that is stuck.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _processed(trainer: Trainer) -> int:
    """Micro-batches per device; of Lightning's counts, the one that is right in every hook."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return int(progress.processed)


def _ranks(trainer: Trainer | None) -> dict[str, int]:
    return {"rank": trainer.global_rank, "world_size": trainer.world_size} if trainer else {}


@dataclass(frozen=True)
class Batches:
    """Batches that the training process reads itself: torch's DataLoader takes 5 times as long."""

    blocks: Blocks
    order: TrainOrder | list[Ints]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        is_pinned = torch.cuda.is_available()
        for numbers in self.order:
            inputs, targets = to_tensors(self.blocks[numbers])
            yield (inputs.pin_memory(), targets.pin_memory()) if is_pinned else (inputs, targets)


class LanguageData(LightningDataModule):
    """The contract of `data.class_path`: what training, callbacks and checkpoints ask of data.

    A subclass passes its settings to this constructor (those of TokenData, and vocab_size, V, which
    reaches the net), names `seed` among its own (it receives seed_everything), and opens token
    streams in `open_split`; order, cursor and exact resume are then those of a prepared corpus. A
    subclass that makes batches in another way overrides the dataloaders, `sequences`,
    `train_sequences`, `state_dict` and `load_state_dict`. Batches are inputs (B, T) and targets
    (B, T) of int64, with targets of IGNORED where no loss is. Raises ConfigError for impossible
    settings.
    """

    name: str = "data"  # for people: a folder, a file
    fingerprint: str | None = None  # equal data, equal fingerprints; a resume compares it

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        batch_size: int,
        num_workers: int = 0,
        max_train_blocks: int | None = None,
        max_val_blocks: int | None = None,
        seed: int = 1337,
    ) -> None:
        super().__init__()
        self.max_blocks = {"train": max_train_blocks, "val": max_val_blocks}
        limits = {"max_train_blocks": max_train_blocks, "max_val_blocks": max_val_blocks}
        for name, value in {"block_size": block_size, "batch_size": batch_size, **limits}.items():
            if value is not None and value < 1:
                raise ConfigError(f"data.{name}={value} has to be 1 or more")
        most = WORKERS_PER_CORE * (os.cpu_count() or 1)
        if not 0 <= num_workers <= most:
            raise ConfigError(f"data.num_workers={num_workers} has to be from 0 to {most} here")
        self.vocab_size, self.block_size, self.batch_size = vocab_size, block_size, batch_size
        self.num_workers, self.seed = num_workers, seed
        self._blocks: dict[str, Blocks] = {}  # of each split, once it is opened
        self._sequences_before = 0  # consumed before this process
        self._batches_before = 0  # counted by the Trainer before this process

    def open_split(self, split: str) -> TokenStream:
        """The tokens of "train", "val" or "test". Raises DataError where there are none."""
        raise ConfigError(f"{type(self).__name__} needs open_split, or its own dataloaders")

    @property
    def tokenizer(self) -> Tokenizer | None:
        """None where ids cannot be turned into text: no samples, no `lmtemplate generate`."""
        return None

    @property
    def tokenizer_json(self) -> str:
        """What a checkpoint keeps of the tokenizer; empty where there is none."""
        return self.tokenizer.to_json() if self.tokenizer else ""

    @property
    def token_bytes(self) -> Tensor | None:
        """(V,) bytes of text that each token id stands for; None: no bits per byte."""
        return torch.from_numpy(self.tokenizer.token_bytes()) if self.tokenizer else None

    @property
    def description(self) -> str:
        """One line for the card before a run."""
        return f"{self.name}: vocabulary {self.vocab_size:,}"

    @property
    def train_sequences(self) -> int | None:
        """Sequences in one epoch; None where there is no such number: no epochs."""
        return len(self.blocks("train"))

    @property
    def sequences(self) -> int:
        """The cursor: training sequences consumed so far, by all devices, over all restarts."""
        if self.trainer is None:
            return self._sequences_before
        batches = _processed(self.trainer) - self._batches_before
        return self._sequences_before + batches * self.batch_size * self.trainer.world_size

    @property
    def epochs(self) -> float | None:
        """How often the training split has been gone through."""
        return self.sequences / self.train_sequences if self.train_sequences else None

    def skip_to(self, sequences: int) -> None:
        """Move the cursor past sequences that led to NaN or inf; training goes on from there."""
        self._sequences_before = sequences

    def state_dict(self) -> dict[str, Any]:
        return {"sequences": self.sequences}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        tokens = amount(dict(state_dict)["sequences"] * self.block_size)
        self._sequences_before = max(int(tokens) // self.block_size, self._sequences_before)

    def blocks(self, split: str) -> Blocks:
        """The sequences of a split, opened once. Raises DataError."""
        if split not in self._blocks:
            stream, most = self.open_split(split), self.max_blocks.get(split)
            self._blocks[split] = Blocks(stream, self.block_size, whole=split == "train", most=most)
        return self._blocks[split]

    def setup(self, stage: str) -> None:
        """Open what the stage needs. Raises DataError before the first step rather than at it."""
        for split in {"fit": "train val", "validate": "val", "test": "test"}.get(stage, "").split():
            self.blocks(split)

    def _loader(self, split: str, order: TrainOrder | list[Ints]) -> Batches | DataLoader[Batch]:
        blocks: Any = self.blocks(split)
        if not self.num_workers:
            return Batches(blocks, order)
        if SHM.is_dir() and shutil.disk_usage(SHM).free < 2**20:
            raise OutOfMemoryError(NO_SHARED_ROOM)
        return DataLoader(
            blocks,
            sampler=order,
            batch_size=None,  # the order yields whole batches: one gather each
            num_workers=self.num_workers,
            collate_fn=to_shared_tensors,  # type: ignore[arg-type]
            pin_memory=torch.cuda.is_available(),
            persistent_workers=True,
            # at exit, multiprocessing sends one SIGTERM and waits: without a Trainer, it has to end them
            worker_init_fn=ignore_signals_in_worker if self.trainer else None,
            generator=torch.Generator(),  # else each epoch draws from the RNG that dropout uses
        )

    def train_dataloader(self) -> Batches | DataLoader[Batch]:
        """The rest of the whole run, from the cursor on; its length is that of the whole run.

        One Lightning epoch is the run; without a true length, a resume would drop a batch.
        """
        blocks = len(self.blocks("train"))
        batches = max(1, blocks // self.batch_size)  # without a Trainer: one epoch
        if self.trainer is not None:
            self._batches_before = _processed(self.trainer)
            batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        order = TrainOrder(
            blocks,
            self.batch_size,
            self.seed,
            batches,
            batches_done=self._batches_before,
            sequences_done=self._sequences_before,
            **_ranks(self.trainer),
        )
        return self._loader("train", order)

    def val_dataloader(self, split: str = "val") -> Batches | DataLoader[Batch]:
        """Batches of training's size, or several of them at once up to FULL_BATCH tokens."""
        blocks, ranks = len(self.blocks(split)), _ranks(self.trainer)
        count = -(-blocks // (self.batch_size * ranks.get("world_size", 1)))  # of training's
        at_once = min(FULL_BATCH // (self.batch_size * self.block_size), count)
        order = fixed_order(blocks, self.batch_size * max(1, at_once), **ranks)
        return self._loader(split, order)

    def test_dataloader(self) -> Batches | DataLoader[Batch]:
        return self.val_dataloader("test")


class TokenData(LanguageData):
    """A prepared corpus as training, validation and test batches.

    Args:
        path: folder that `lmtemplate prepare` has made.
        block_size: T, tokens per sequence; the model's longest context.
        batch_size: B, sequences per device in one forward pass.
        num_workers: processes that read ahead; 0 reads in the training process, which is faster
            unless reading takes longer than a step.
        max_train_blocks: train on the first sequences only, this many, for example to overfit one
            batch; null for the whole split.
        max_val_blocks: validate on this many sequences, the first ones; null for the whole split.
        seed: of the order of sequences (the command line and configs state it as seed_everything).
    """

    def __init__(
        self,
        path: Path = Path("data/sotu-tiny"),
        block_size: int = 256,
        batch_size: int = 16,
        num_workers: int = 0,
        max_train_blocks: int | None = None,
        max_val_blocks: int | None = None,
        seed: int = 1337,
    ) -> None:
        self.path = Path(path)
        self.index = read_index(self.path)
        sizes = (int(self.index["vocab_size"]), block_size, batch_size, num_workers)
        super().__init__(*sizes, max_train_blocks, max_val_blocks, seed)
        self.name, self.fingerprint = str(self.path), str(self.index["fingerprint"])

    def open_split(self, split: str) -> Shards:
        return Shards(self.path, split, self.index)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises DataError if it is not the one that made the shards."""
        return tokenizer_of(self.path, self.index)

    @property
    def description(self) -> str:
        splits, kind = self.index["splits"], self.index["tokenizer"]["kind"]
        train, val = (f"{splits[split]['tokens']:,}" for split in ("train", "val"))
        tokens = f"{train} training and {val} validation tokens"
        return f"{self.name}: {tokens}, vocabulary {self.vocab_size:,} ({kind})"

    def setup(self, stage: str) -> None:
        super().setup(stage)
        _ = self.tokenizer
