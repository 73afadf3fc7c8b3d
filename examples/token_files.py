"""Ready-made token files -> batches: .npy, or raw .bin as nanoGPT's train.bin and val.bin.

lmtemplate fit --allow examples --config mine.yaml, with

    data:
      class_path: examples.token_files.TokenFiles
      init_args: {train: train.bin, val: val.bin, vocab_size: 50257, block_size: 256}
"""

from pathlib import Path

import numpy as np

from lmtemplate.data import Ints
from lmtemplate.data.datamodule import LanguageData
from lmtemplate.errors import DataError


class TokenFile:
    """One memory-mapped file of ids without a header, read at any positions."""

    def __init__(self, path: Path, dtype: str, vocab_size: int) -> None:
        self.opened_with = (path, dtype, vocab_size)
        self.name = str(path)
        self.vocab_size = vocab_size
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise DataError(f"{path} cannot be read as tokens: it is no file")
        try:
            if path.suffix == ".npy":
                self.ids = np.load(path, mmap_mode="r")
            else:
                self.ids = np.memmap(path, dtype, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as tokens: {error}") from error
        if self.ids.ndim != 1 or self.ids.dtype.kind not in "iu":
            raise DataError(f"{path} holds {self.ids.dtype} {self.ids.shape}, not a row of ids")
        self.tokens = len(self.ids)

    def __reduce__(self) -> tuple[type["TokenFile"], tuple[Path, str, int]]:
        return TokenFile, self.opened_with  # a worker process opens its own map

    def gather(self, positions: Ints) -> Ints:
        """Ids at these positions, in the same shape. Raises DataError outside the vocabulary."""
        ids = self.ids[positions].astype(np.int64)
        if not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise DataError(
                f"{self.name}: ids from {ids.min()} to {ids.max()}, but data.vocab_size is "
                f"{self.vocab_size}; is its dtype another one?"
            )
        return ids


class TokenFiles(LanguageData):
    """Two token files as training and validation batches, in an order that a resume continues.

    Args:
        train: .npy of any integer type, or .bin without a header.
        val: the same for validation.
        vocab_size: V of the tokenizer that made the files.
        block_size: T, tokens per sequence.
        batch_size: B, sequences per device in one forward pass.
        dtype: of .bin files: uint16 or uint32.
        max_train_blocks: sequences to train on at most; null for all.
        max_val_blocks: sequences to validate on at most; null for all.
        seed: of the order of sequences.
    """

    def __init__(
        self,
        train: Path,
        val: Path,
        vocab_size: int,
        block_size: int = 256,
        batch_size: int = 16,
        dtype: str = "uint16",
        max_train_blocks: int | None = None,
        max_val_blocks: int | None = None,
        seed: int = 1337,
    ) -> None:
        super().__init__(
            vocab_size,
            block_size,
            batch_size,
            max_train_blocks=max_train_blocks,
            max_val_blocks=max_val_blocks,
            seed=seed,
        )
        self.files = {"train": Path(train), "val": Path(val)}
        self.dtype = dtype
        self.name = f"{train} and {val}"

    def open_split(self, split: str) -> TokenFile:
        if split not in self.files:
            raise DataError(f"there is no {split} split, only {' and '.join(self.files)}")
        return TokenFile(self.files[split], self.dtype, self.vocab_size)
