"""Run directory -> the corpus that it was trained on and its weights, as far as both still exist.

Whatever is missing is named, and the rest of a study goes on without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmtemplate.checkpoint.compatibility import NET, build_net
from lmtemplate.checkpoint.files import file_name, read
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data import Ints
from lmtemplate.data.shards import Blocks, Shards, read_index
from lmtemplate.data.tokenizer import Tokenizer, parse_tokenizer, tokenizer_of
from lmtemplate.errors import DataError, UserError
from lmtemplate.models.base import LanguageModel
from lmtemplate.run_dir import folder_of
from lmtemplate.study.run_files import read_manifest, read_settings

STRETCHES = 64  # a sample of a large split consists of this many stretches
FREE_BYTES = 2 * 10**9  # a GPU needs this much free memory beside twice the weights


def sample(shards: Shards, most: int, among: int | None = None) -> Ints:
    """All tokens of a split (or its first `among`), if these are at most `most`.

    Otherwise, `most` tokens in evenly spaced stretches, one after the other.
    """
    total = min(shards.tokens, among or shards.tokens)
    if total <= most:
        return shards.gather(np.arange(total))
    size = max(2, most // STRETCHES)
    starts = np.linspace(0, total - size, most // size).astype(np.int64)
    return shards.gather((starts[:, None] + np.arange(size)).ravel())


@dataclass(frozen=True)
class RunCorpus:
    """The prepared text of a run. Its methods raise DataError for damaged files."""

    folder: Path
    index: dict[str, Any]  # its index.json
    validated: int | None = None  # validation tokens that the run reads; None for all
    train_blocks: int | None = None  # training sequences that it reads; None for all

    @property
    def vocab_size(self) -> int:
        return int(self.index["vocab_size"])

    @property
    def bytes_per_token(self) -> float:
        entry = self.index["splits"]["train"]
        return float(entry["bytes"] / entry["tokens"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.folder, self.index)

    def training_tokens(self, most: int) -> Ints:
        """All of them, or a sample of `most`."""
        return sample(Shards(self.folder, "train", self.index), most)

    def validation_tokens(self, most: int) -> Ints:
        """All that a validation reads, or a sample of `most` of them."""
        return sample(Shards(self.folder, "val", self.index), most, self.validated)

    def batch(self, split: str, block_size: int, most: int) -> tuple[torch.Tensor, ...]:
        """At most so many evenly spaced sequences as the run reads them: inputs and targets (N, T).

        And the number of all that it reads, as a tensor.
        """
        shards, is_train = Shards(self.folder, split, self.index), split == "train"
        read = (self.validated - 1) // block_size if self.validated else None
        most_read = self.train_blocks if is_train else read
        blocks = Blocks(shards, block_size, whole=is_train, most=most_read)
        chosen = np.unique(np.linspace(0, len(blocks) - 1, most).astype(np.int64))
        return *map(torch.from_numpy, blocks[chosen]), torch.tensor(len(blocks))


@dataclass(frozen=True)
class Model:
    """A checkpoint of a run, ready to generate."""

    net: LanguageModel
    tokenizer: Tokenizer
    planned_steps: int | None
    step: int = 0
    before: dict[str, torch.Tensor] = field(default_factory=dict)  # its weights at step 0, if kept


@dataclass(frozen=True)
class Artifacts:
    """What a study may look at. `missing` says in words what does not exist, and why."""

    run: Path
    corpus: RunCorpus | None
    model: Model | None
    missing: tuple[str, ...]


def open_run_corpus(run: Path) -> RunCorpus:
    """Raises DataError where the corpus of the run's config is gone, damaged or another one."""
    settings, manifest = read_settings(run), read_manifest(run)
    for key in ("data.path", "data.block_size"):
        if settings.get(key) is None:
            raise DataError(f"{run / 'config.yaml'} names no {key}")
    folder = Path(settings["data.path"])
    index = read_index(folder)
    if index["fingerprint"] != manifest.get("data", {}).get("fingerprint"):
        raise DataError(f"{folder} holds another corpus than the run was trained on")
    blocks = settings.get("data.max_val_blocks")
    validated = blocks * settings["data.block_size"] + 1 if blocks else None
    corpus = RunCorpus(folder, index, validated, settings.get("data.max_train_blocks"))
    for split in ("train", "val"):
        Shards(folder, split, index)
    return corpus


def _device(net: LanguageModel) -> str:
    """CUDA where it has room for the weights beside what else may be running there."""
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 2 * size + FREE_BYTES:
        return "cuda"
    return "cpu"


def _untrained(run: Path) -> dict[str, torch.Tensor]:
    try:
        weights = read(folder_of(run) / "milestones" / file_name(0))["state_dict"]
    except UserError:
        return {}
    return {name.removeprefix(NET): value for name, value in weights.items()}


def open_model(run: Path, checkpoint: str = "best", allow: Sequence[str] = ()) -> Model:
    """Raises CheckpointError or ConfigError where no model is available."""
    state = read(resolve(run, checkpoint))
    net = build_net(state, allow)
    steps = state.get("length", {}).get("steps")
    tokenizer = parse_tokenizer(state["tokenizer"])
    return Model(net.to(_device(net)), tokenizer, steps, state["global_step"], _untrained(run))


def open_artifacts(
    run: Path, *, deep: bool = True, checkpoint: str = "best", allow: Sequence[str] = ()
) -> Artifacts:
    """Open what exists; the weights only if `deep`, with classes from the packages in `allow`."""
    missing, corpus, model = list[str](), None, None
    try:
        corpus = open_run_corpus(run)
    except UserError as error:
        missing.append(f"without the corpus: {error}")
    if deep:
        try:
            model = open_model(run, checkpoint, allow)
        except UserError as error:
            missing.append(f"without the model: {error}")
    return Artifacts(run, corpus, model, tuple(missing))
