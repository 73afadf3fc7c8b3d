"""Run directory -> what it was trained on and what it has learned, as far as both are still there.

Whatever is missing is named, and the rest of a study does without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lmtemplate.checkpoint.compatibility import build_net, flatten
from lmtemplate.checkpoint.files import read
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data.shards import Blocks, Ints, Shards, read_index
from lmtemplate.data.tokenizer import Tokenizer, load_tokenizer, parse_tokenizer
from lmtemplate.errors import DataError, UserError
from lmtemplate.models.base import LanguageModel
from lmtemplate.run_dir import parse_yaml, read_json

STRETCHES = 64  # that a sample of a large split consists of
SEARCHED = 2**22  # tokens looked at in one go
ROOM_BYTES = 2 * 10**9  # on a GPU, for what a net computes


def read_settings(run: Path) -> dict[str, Any]:
    """What config.yaml says, as "data.path" -> value; empty where it is missing or broken."""
    try:
        settings = parse_yaml((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flatten(settings) if isinstance(settings, dict) else {}


def sample(shards: Shards, most: int, among: int | None = None) -> Ints:
    """All tokens of a split (or its first `among`) if they are at most so many; otherwise so many
    in evenly spaced stretches, one after the other.
    """
    total = min(shards.tokens, among or shards.tokens)
    if total <= most:
        return shards.gather(np.arange(total))
    size = max(2, most // STRETCHES)
    starts = np.linspace(0, total - size, most // size).astype(np.int64)
    return shards.gather((starts[:, None] + np.arange(size)).ravel())


@dataclass(frozen=True)
class Corpus:
    """The prepared text of a run, and how the run has cut it.

    Attributes:
        folder: where it stands.
        index: its index.json.
        block_size: T, tokens per sequence.
        max_val_blocks: sequences that a validation reads at most.
        seed: of the order of training sequences.
    """

    folder: Path
    index: dict[str, Any]
    block_size: int
    max_val_blocks: int | None
    seed: int

    @property
    def vocab_size(self) -> int:
        return int(self.index["vocab_size"])

    @property
    def eot_id(self) -> int:
        return int(self.index["eot_id"])

    @property
    def bytes_per_token(self) -> float:
        entry = self.index["splits"]["train"]
        return float(entry["bytes"] / entry["tokens"])

    @cached_property
    def train(self) -> Blocks:
        """Raises DataError."""
        return Blocks(self.train_shards, self.block_size, whole=True)

    @cached_property
    def train_shards(self) -> Shards:
        """Raises DataError."""
        return Shards(self.folder, "train", self.index)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises DataError."""
        return load_tokenizer(self.folder / self.index["tokenizer"]["file"])

    def training_tokens(self, most: int) -> Ints:
        """At most so many, see `sample`. Raises DataError."""
        return sample(self.train_shards, most)

    def validation_tokens(self, most: int) -> Ints:
        """Of those that a validation reads, at most so many. Raises DataError."""
        blocks = self.max_val_blocks
        among = blocks * self.block_size + 1 if blocks else None
        return sample(Shards(self.folder, "val", self.index), most, among)

    def document_starts(self, until: int) -> Ints:
        """Where the training documents that begin before token number `until` begin."""
        starts, before = [np.zeros(1, dtype=np.int64)], 0
        for file in self.train_shards.files:
            for first in range(0, min(len(file), until - before), SEARCHED):
                ends = np.flatnonzero(file[first : first + SEARCHED] == self.eot_id)
                starts.append(before + first + ends + 1)
            before += len(file)
        all_starts = np.concatenate(starts)
        return all_starts[all_starts < max(1, until)]


@dataclass(frozen=True)
class Model:
    """A checkpoint of a run, ready to be asked."""

    net: LanguageModel
    tokenizer: Tokenizer
    step: int
    planned_steps: int | None


@dataclass(frozen=True)
class Sources:
    """What a study may look at. `missing` says in words what is not there, and why."""

    run: Path
    corpus: Corpus | None
    model: Model | None
    missing: tuple[str, ...]


def open_corpus(run: Path) -> Corpus:
    """Raises DataError where the corpus of the run's config is gone or is another one by now."""
    settings, manifest = read_settings(run), read_json(run / "manifest.json") or {}
    for key in ("data.path", "data.block_size"):
        if settings.get(key) is None:
            raise DataError(f"{run / 'config.yaml'} names no {key}")
    folder = Path(settings["data.path"])
    index = read_index(folder)
    if index["fingerprint"] != manifest.get("data", {}).get("fingerprint"):
        raise DataError(f"{folder} holds another corpus than the run was trained on")
    corpus = Corpus(
        folder,
        index,
        int(settings["data.block_size"]),
        settings.get("data.max_val_blocks"),
        int(settings.get("seed_everything", 0)),
    )
    Blocks(Shards(folder, "val", index), corpus.block_size, whole=False)
    len(corpus.train)
    return corpus


def _device(net: LanguageModel) -> str:
    """CUDA where it has room for the weights beside what else may be running there."""
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 2 * size + ROOM_BYTES:
        return "cuda"
    return "cpu"


def open_model(run: Path, checkpoint: str = "best", allow: Sequence[str] = ()) -> Model:
    """Raises CheckpointError or ConfigError where there is none to be had."""
    state = read(resolve(run, checkpoint))
    net = build_net(state, allow)
    return Model(
        net.to(_device(net)),
        parse_tokenizer(state["tokenizer"]),
        int(state["global_step"]),
        state.get("length", {}).get("steps"),
    )


def open_sources(
    run: Path, *, deep: bool = True, checkpoint: str = "best", allow: Sequence[str] = ()
) -> Sources:
    """Open what is there.

    Args:
        run: run directory.
        deep: load the weights, too.
        checkpoint: best, latest, or the path of a checkpoint.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    missing, corpus, model = list[str](), None, None
    try:
        corpus = open_corpus(run)
    except UserError as error:
        missing.append(f"without the corpus: {error}")
    if deep:
        try:
            model = open_model(run, checkpoint, allow)
        except UserError as error:
            missing.append(f"without the model: {error}")
    return Sources(run, corpus, model, tuple(missing))
