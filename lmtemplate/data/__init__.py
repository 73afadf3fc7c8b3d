"""Text -> shards -> batches. What all of its modules share stands here."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]  # token ids, positions or numbers of blocks

LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # first bytes of a file not downloaded
IGNORED = -100  # target that carries no loss: torch's own default for `ignore_index`
