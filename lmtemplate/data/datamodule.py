"""Shards -> batches of inputs (B, T) and targets (B, T); owns the one cursor, in sequences."""

import os
import signal
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lmtemplate.data.sampler import FixedOrder, TrainOrder
from lmtemplate.data.shards import Blocks, Ints, Shards, read_index
from lmtemplate.data.tokenizer import Tokenizer, load_tokenizer
from lmtemplate.errors import ConfigError

Batch = tuple[Tensor, Tensor]
WORKERS_PER_CORE = 8  # more of them only take memory


def to_tensors(arrays: tuple[Ints, Ints]) -> Batch:
    inputs, targets = arrays
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _outlive_signals(_: int) -> None:
    """Let a worker go on when all processes of a run are told to stop: its step needs batches.

    A second SIGTERM ends it: that is how the training process ends a worker that is stuck.
    """
    for name in {"SIGINT", "SIGHUP", "SIGUSR1"} & {*vars(signal)}:
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class TokenData(LightningDataModule):
    """A prepared corpus as training, validation and test batches.

    Args:
        path: folder that `lmtemplate prepare` has made.
        block_size: T, tokens per sequence; the model's longest context.
        batch_size: B, sequences per device in one forward pass.
        num_workers: processes that read ahead; 0 reads in the training process, which is faster
            unless reading takes longer than a step.
        max_val_blocks: validate on the first so many sequences; null for the whole split.
        seed: of the order of sequences (the command line and configs state it as seed_everything).
    """

    def __init__(
        self,
        path: Path = Path("data/sotu-tiny"),
        block_size: int = 256,
        batch_size: int = 16,
        num_workers: int = 0,
        max_val_blocks: int | None = None,
        seed: int = 1337,
    ) -> None:
        super().__init__()
        for name, value in (("block_size", block_size), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"data.{name}={value} has to be 1 or more")
        most = WORKERS_PER_CORE * (os.cpu_count() or 1)
        if not 0 <= num_workers <= most:
            raise ConfigError(
                f"data.num_workers={num_workers} has to be from 0 to {most}, "
                f"{WORKERS_PER_CORE} for each core of this machine"
            )
        if max_val_blocks is not None and max_val_blocks < 1:
            raise ConfigError(f"data.max_val_blocks={max_val_blocks} has to be 1 or more, or null")
        self.path = Path(path)
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.max_val_blocks = max_val_blocks
        self.seed = seed
        self.index = read_index(self.path)
        self.vocab_size = int(self.index["vocab_size"])
        self._sequences_before = 0  # consumed before this process
        self._batches_before = 0  # counted by the Trainer before this process

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises DataError if it is not the one that made the shards."""
        said = self.index["tokenizer"]
        return load_tokenizer(self.path / said["file"], said["sha256"])

    @property
    def token_bytes(self) -> Tensor:
        """(V,) bytes of text that each token id stands for."""
        return torch.from_numpy(self.tokenizer.token_bytes())

    @cached_property
    def train_blocks(self) -> Blocks:
        return Blocks(Shards(self.path, "train"), self.block_size, whole=True)

    @property
    def sequences(self) -> int:
        """Training sequences consumed so far, by all devices, over all restarts."""
        trainer = self.trainer
        if trainer is None:
            return self._sequences_before
        batches = self._processed(trainer) - self._batches_before
        return self._sequences_before + batches * self.batch_size * trainer.world_size

    @staticmethod
    def _processed(trainer: Trainer) -> int:
        """Micro-batches per device; of Lightning's counts, the one that is right in every hook."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.total
        return int(progress.processed)

    @property
    def passes(self) -> float:
        """How often the training split has been gone through."""
        return self.sequences / len(self.train_blocks)

    def leave_out(self, sequences: int) -> None:
        """Begin, or go on, behind so many sequences: those before made bad numbers."""
        self._sequences_before = sequences

    def state_dict(self) -> dict[str, Any]:
        return {"sequences": self.sequences}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sequences_before = max(int(state_dict["sequences"]), self._sequences_before)

    def setup(self, stage: str) -> None:
        """Open what the stage needs. Raises DataError before the first step rather than at it."""
        splits = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}
        for split in splits.get(stage, []):
            Blocks(Shards(self.path, split), self.block_size, whole=split == "train")
        _ = self.tokenizer

    def _loader(self, blocks: Blocks, order: TrainOrder | FixedOrder) -> DataLoader[Batch]:
        dataset: Any = blocks
        return DataLoader(
            dataset,
            sampler=order,
            batch_size=None,  # the order yields whole batches: one gather each
            num_workers=self.num_workers,
            collate_fn=to_tensors,  # type: ignore[arg-type]
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # else each epoch draws from the RNG that dropout uses
        )

    def _ranks(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def train_dataloader(self) -> DataLoader[Batch]:
        """The rest of the whole run, from the cursor on; its length is that of the whole run.

        One Lightning epoch is the run: without a true length, Lightning drops a batch at each
        resume.
        """
        blocks, ranks = self.train_blocks, self._ranks()
        done, total = 0, len(blocks) // (self.batch_size * ranks["world_size"])
        if self.trainer is not None:
            done = self._batches_before = self._processed(self.trainer)
            total = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        order = TrainOrder(
            len(blocks),
            self.batch_size,
            self.seed,
            batches=total,
            batches_done=done,
            sequences_done=self._sequences_before,
            **ranks,
        )
        return self._loader(blocks, order)

    def _fixed_loader(self, split: str, most: int | None) -> DataLoader[Batch]:
        blocks = Blocks(Shards(self.path, split), self.block_size, whole=False)
        blocks.blocks = min(len(blocks), most or len(blocks))
        return self._loader(blocks, FixedOrder(len(blocks), self.batch_size, **self._ranks()))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._fixed_loader("val", self.max_val_blocks)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._fixed_loader("test", None)
