"""A run -> all numbers of `probe`: inside of its model, what each depth knows, copies, noise."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmtemplate import metric_names
from lmtemplate.checkpoint.compatibility import NET, load_net
from lmtemplate.checkpoint.files import read
from lmtemplate.data.sampler import block_at
from lmtemplate.data.shards import Blocks, Shards
from lmtemplate.errors import CheckpointError, DataError
from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.record import read_lines
from lmtemplate.run_dir import folder_of
from lmtemplate.study.diagnose.artifacts import Model, RunCorpus, open_run_corpus
from lmtemplate.study.run_files import read_settings
from lmtemplate.study.understand.inside import (
    MAP_TOKENS,
    LayerFigures,
    PartFigures,
    Recorder,
    figures_of_layer,
    figures_of_parts,
    update_ratios,
)
from lmtemplate.study.understand.knowledge import Knowledge, look_into
from lmtemplate.study.understand.memorisation import Memorisation, memorisation
from lmtemplate.study.understand.noise_scale import QUARTERS, NoiseScale, advice, measure_noise
from lmtemplate.study.understand.text_losses import (
    DocumentLoss,
    by_document,
    by_position,
    text_nats,
)

FLOPS = 2e11  # of the forward passes over each text: a larger net reads less of it
LOSS_TOKENS, ASKED_TOKENS = 65_536, 12_288  # at most
LOOKED_AT = 4  # sequences that are looked at layer by layer
SHOWN_TOKENS = 16  # of the text whose predictions are shown at each depth
NOISE_SNAPSHOTS, NOISE_SEQUENCES = 4, 128  # at most, beside the checkpoint


@dataclass(frozen=True)
class Update:
    """Between two snapshots: part -> size of the change, as a share of the weights."""

    first_step: int
    last_step: int
    ratios: dict[str, float]


@dataclass(frozen=True)
class Probed:
    """All numbers of the verb. Losses are in nats per token."""

    step: int  # of the checkpoint
    layers: list[LayerFigures]
    parts: list[PartFigures]
    largest_logit: float
    updates: list[Update]
    by_position: list[float]
    documents: list[DocumentLoss]
    knowledge: Knowledge | None
    memorisation: Memorisation | None
    noise: dict[int, NoiseScale]  # step -> what was measured there
    advice: str  # about the batch size
    unseen: list[str]  # what cannot be shown, and why


def affordable(net: LanguageModel, tokens: int, fewest: int) -> int:
    """Sequences of at most so many tokens; fewer where FLOPS do not suffice for their forward pass."""
    read = 3 * FLOPS / net.flops_per_token()  # a third of a training step's is the forward pass
    return max(fewest, int(min(tokens, read)) // net.block_size)


def batch_of(run: Path) -> int:
    """Sequences in one step of a run, by its record, or else by its config."""
    settings, tokens = read_settings(run), 0.0
    for line in read_lines(run):
        if line.get(metric_names.TOKENS):
            tokens = line[metric_names.TOKENS] / max(1, line["step"])
    return round(tokens / settings["data.block_size"]) or settings.get("data.batch_size") or 1


def next_sequences(run: Path, corpus: RunCorpus, step: int, count: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (N, T) that the run reads after this step, in its own order."""
    settings, shards = read_settings(run), Shards(corpus.folder, "train", corpus.index)
    most = settings.get("data.max_train_blocks")
    blocks = Blocks(shards, settings["data.block_size"], whole=True, most=most)
    wanted = np.arange(count) + step * batch_of(run)
    chosen = block_at(wanted, len(blocks), settings.get("seed_everything") or 0)
    inputs, targets = map(torch.from_numpy, blocks[chosen])
    return inputs, targets


def look_inside(
    net: LanguageModel, inputs: Tensor, targets: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Figures of layers and parts from one pass forward and backward, and each head's attention."""
    device = next(net.parameters()).device
    with Recorder(net) as recorder:
        logits = net(inputs.to(device))
    cross_entropy(logits, targets.to(device)).objective.backward()
    found = {
        "layers": [figures_of_layer(layer) for layer in recorder.layers],
        "parts": figures_of_parts(net),
        "largest_logit": float(logits.detach().abs().max()),
    }
    net.zero_grad()
    maps = {
        f"{layer.name}, head {number}": head
        for layer in recorder.layers
        for number, head in enumerate((m for one in layer.attention for m in one.maps), start=1)
    }
    return found, maps


def follow_snapshots(
    run: Path, model: Model, batch: tuple[Tensor, Tensor], unseen: list[str]
) -> tuple[list[Update], dict[int, NoiseScale]]:
    """Through the snapshots of a run: how far the weights moved, and the noise at some of them."""
    net, updates, noise = model.net, list[Update](), dict[int, NoiseScale]()
    own = {name: value.clone() for name, value in net.state_dict().items()}
    paths = sorted((folder_of(run) / "milestones").glob("step-*.ckpt"))
    is_small = len(batch[0]) >= NOISE_SEQUENCES  # a large net is measured at the checkpoint alone
    chosen = np.linspace(0, len(paths) - 1, NOISE_SNAPSHOTS * is_small).round()
    before: tuple[int, dict[str, Tensor]] | None = None
    for number, path in enumerate(paths):
        try:
            state = read(path)
            load_net(net, state)
        except CheckpointError as error:
            unseen.append(f"a snapshot: {error}")
            continue
        step = state["global_step"]
        now = {name.removeprefix(NET): value for name, value in state["state_dict"].items()}
        if before:
            updates.append(Update(before[0], step, update_ratios(net, before[1], now)))
        if number in chosen and step != model.step:
            noise[step] = measure_noise(net, *batch)
        before = step, now
    net.load_state_dict(own)
    return updates, {**noise, model.step: measure_noise(net, *batch)}


def cannot_see(found: dict[str, Any]) -> Iterator[str]:
    """What this net, this run and this corpus do not show."""
    layers: list[LayerFigures] = found["layers"]
    if not layers:
        yield "layers: the net keeps them in no list of modules"
    if all(layer.attention_entropy is None for layer in layers):
        yield "attention: no layer calls torch's scaled_dot_product_attention"
    if all(layer.dead_units is None for layer in layers):
        yield "dead units: no layer calls a ReLU of torch"
    if found["knowledge"] is None:
        yield "what each depth knows: layers that hand on one tensor (B, T, C), or more text"
    if not found["updates"]:
        yield "updates: the run keeps fewer than two snapshots (checkpoint.milestones)"
    yield "loss by source: the prepared corpus does not say which text comes from where"


def look_at_model(run: Path, model: Model) -> tuple[Probed, dict[str, Tensor], list[str]]:
    """All numbers; the attention (T, T) of each head, and the T tokens that it is of.

    Raises DataError without the run's corpus.
    """
    net, corpus, unseen = model.net, open_run_corpus(run), list[str]()
    size = net.block_size
    count = affordable(net, NOISE_SEQUENCES * size, 2 * QUARTERS)
    batch = next_sequences(run, corpus, model.step, count)
    found, maps = look_inside(net, *(part[:LOOKED_AT] for part in batch))
    found["updates"], found["noise"] = follow_snapshots(run, model, batch, unseen)
    found["advice"] = advice(found["noise"][model.step], batch_of(run), size)
    held_out = Blocks(Shards(corpus.folder, "val", corpus.index), size, whole=False)
    count = min(len(held_out), affordable(net, LOSS_TOKENS, LOOKED_AT))
    inputs, targets = map(torch.from_numpy, held_out[np.arange(count)])
    nats = text_nats(net, inputs, targets)
    found["by_position"] = by_position(nats)
    found["documents"] = by_document(nats, inputs, targets, model.tokenizer)
    inputs, targets, _ = corpus.batch("val", size, affordable(net, ASKED_TOKENS, LOOKED_AT))
    found["knowledge"] = look_into(net, model.tokenizer, inputs, targets, SHOWN_TOKENS)
    found["memorisation"] = None
    try:
        found["memorisation"] = memorisation(model, corpus)
    except DataError as error:
        unseen.append(f"copies: {error}")
    words = [model.tokenizer.decode([token]) for token in batch[0][0, :MAP_TOKENS].tolist()]
    unseen += cannot_see(found)
    return Probed(step=model.step, **found, unseen=unseen), maps, words
