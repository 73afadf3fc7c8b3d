"""Token files of others: read as written, each sequence once an epoch, resumed exactly."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from examples.token_files import TokenFile, TokenFiles
from lmtemplate.data import IGNORED
from lmtemplate.errors import DataError

IDS = np.random.default_rng(0).integers(0, 50_257, 1000)


@pytest.fixture(params=["bin-uint16", "bin-uint32", "npy-int64"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    suffix, dtype = request.param.split("-")
    for split, ids in (("train", IDS), ("val", IDS[:101])):
        if suffix == "npy":
            np.save(tmp_path / f"{split}.npy", ids.astype(dtype))
        else:
            ids.astype(dtype).tofile(tmp_path / f"{split}.bin")
    paths = {split: tmp_path / f"{split}.{suffix}" for split in ("train", "val")}
    return {**paths, "vocab_size": 50_257, "dtype": dtype}


def rows(data: TokenFiles, sequences: int = 0) -> torch.Tensor:
    """Inputs (N, T) of a run of 50 batches, from a cursor on."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=sequences // data.batch_size))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer: Any = SimpleNamespace(
        fit_loop=loop, max_steps=50, accumulate_grad_batches=1, global_rank=0, world_size=1
    )
    data.load_state_dict({"sequences": sequences})
    data.trainer = trainer
    return torch.cat([inputs for inputs, _ in data.train_dataloader()])


def test_an_epoch_holds_each_sequence_once(files: dict[str, Any]) -> None:
    data = TokenFiles(**files, block_size=9, batch_size=3)
    data.setup("fit")
    assert data.train_sequences == 111
    expected = IDS[:999].reshape(111, 9).tolist()
    assert sorted(rows(data)[:111].tolist()) == sorted(expected)


def test_validation_predicts_every_token_but_the_first(files: dict[str, Any]) -> None:
    data = TokenFiles(**files, block_size=9, batch_size=4)
    targets = torch.cat([targets for _, targets in data.val_dataloader()])
    assert targets[targets != IGNORED].tolist() == IDS[1:101].tolist()


def test_a_resumed_run_reads_what_the_uninterrupted_one_reads(files: dict[str, Any]) -> None:
    whole = rows(TokenFiles(**files, block_size=9, batch_size=3))
    resumed = rows(TokenFiles(**files, block_size=9, batch_size=3), sequences=60)
    assert torch.equal(resumed, whole[60:])


def test_a_worker_process_opens_the_file_itself(files: dict[str, Any]) -> None:
    file = TokenFile(files["train"], files["dtype"], 50_257)
    content = pickle.dumps(file)
    assert len(content) < 500
    assert pickle.loads(content).gather(np.arange(1000)).tolist() == IDS.tolist()


def test_ids_read_with_the_wrong_type_are_refused(tmp_path: Path) -> None:
    IDS.astype("uint32").tofile(tmp_path / "train.bin")
    file = TokenFile(tmp_path / "train.bin", "uint16", vocab_size=50_000)
    with pytest.raises(DataError, match=r"train\.bin: ids from .*is its dtype another one"):
        file.gather(np.arange(2000))


def test_a_missing_or_shapeless_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.bin cannot be read as tokens"):
        TokenFile(tmp_path / "train.bin", "uint16", 100)
    np.save(tmp_path / "train.npy", np.zeros((3, 3), dtype=np.uint16))
    with pytest.raises(DataError, match=r"train\.npy holds uint16 \(3, 3\), not a row of ids"):
        TokenFile(tmp_path / "train.npy", "uint16", 100)


def test_a_pipe_is_no_token_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.bin")
    with pytest.raises(DataError, match=r"train\.bin cannot be read as tokens: it is no file"):
        TokenFile(tmp_path / "train.bin", "uint16", 50_257)
