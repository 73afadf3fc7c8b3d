"""What a batch costs: microseconds of ours beside nanoGPT's way, in turns, in one process.

    make bench BENCH=batches

nanoGPT (karpathy/nanoGPT, train.py, `get_batch`) maps the file anew for each batch, draws starts at
random, and stacks a slice of each. The first batches of ours also verify what they touch.
"""

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lmtemplate.__main__ import run
from lmtemplate.data.datamodule import Batch, TokenData
from lmtemplate.data.shards import HEADER_BYTES

SIZES = ((12, 64), (16, 256), (16, 1024))  # B, T
BATCHES = 500


def like_nanogpt(shard: Path, size: int, length: int) -> Batch:
    """Inputs and targets (B, T) from random places of a token file."""
    tokens = np.memmap(shard, "<u2", mode="r", offset=HEADER_BYTES)
    starts = torch.randint(len(tokens) - length, (size,))
    rows = ([tokens[i + shift : i + shift + length] for i in starts] for shift in (0, 1))
    parts = [torch.stack([torch.from_numpy(row.astype(np.int64)) for row in of]) for of in rows]
    return parts[0], parts[1]


def microseconds(reading: Callable[[], object]) -> float:
    start = time.perf_counter()
    reading()
    return 1e6 * (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    print("B x T       lmtemplate   first 20   nanoGPT's way (medians, us a batch)")
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "data"
        with contextlib.redirect_stdout(io.StringIO()):
            run(["prepare", "--input=grammar:100000", f"--output={corpus}", "--tokenizer=byte"])
        for size, length in SIZES:
            data = TokenData(corpus, batch_size=size, block_size=length, max_val_blocks=1)
            batches, shard = iter(data.train_dataloader()), corpus / "train_000000.bin"
            readers = (lambda: next(batches), lambda: like_nanogpt(shard, size, length))  # noqa: B023
            rounds = [[microseconds(reader) for reader in readers] for _ in range(BATCHES)]
            ours, theirs = zip(*rounds, strict=True)
            first, rest = statistics.median(ours[:20]), statistics.median(ours[20:])
            other = statistics.median(theirs)
            print(
                f"{size:2} x {length:<5} {rest:10.0f} {first:12.0f} {other:10.0f}   ({other / rest:.1f}x)"
            )


if __name__ == "__main__":
    main()
