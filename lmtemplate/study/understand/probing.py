"""A run -> all numbers of `probe`: inside of its model, what each depth knows, copies, noise."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmtemplate import metric_names
from lmtemplate.checkpoint.compatibility import load_net
from lmtemplate.checkpoint.files import read
from lmtemplate.data.sampler import block_at
from lmtemplate.data.shards import Blocks, Shards
from lmtemplate.errors import CheckpointError, DataError
from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.record import read_lines
from lmtemplate.study.diagnose.artifacts import Model, RunCorpus, open_run_corpus
from lmtemplate.study.progress import pieces
from lmtemplate.study.run_files import read_settings
from lmtemplate.study.understand.inside import (
    MAP_TOKENS,
    Recorder,
    figures_of_layer,
    figures_of_parts,
    update_ratios,
)
from lmtemplate.study.understand.knowledge import look_into
from lmtemplate.study.understand.memorisation import memorisation
from lmtemplate.study.understand.noise_scale import QUARTERS, advice, measure_noise
from lmtemplate.study.understand.snapshots import snapshot_files
from lmtemplate.study.understand.text_losses import (
    by_document,
    by_position,
    check_logits,
    document_starts,
    text_nats,
)

FLOPS = 2e11  # of the forward passes over each text: a larger net reads less of it
LOSS_TOKENS, ASKED_TOKENS = 65_536, 12_288  # at most
LOOKED_AT = 4  # sequences that are looked at layer by layer
BEGINNING = 8  # tokens of a document that stand for its name
SHOWN_TOKENS = 16  # of the text whose predictions are shown at each depth
NOISE_SNAPSHOTS, NOISE_SEQUENCES = 4, 128  # at most, beside the checkpoint
Sequences = tuple[Tensor, Tensor]  # inputs and targets (N, T)


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


def next_sequences(run: Path, corpus: RunCorpus, step: int, count: int) -> Sequences:
    """Sequences that the run reads after this step, in its own order."""
    settings, shards = read_settings(run), Shards(corpus.folder, "train", corpus.index)
    most = settings.get("data.max_train_blocks")
    blocks = Blocks(shards, settings["data.block_size"], whole=True, most=most)
    wanted = np.arange(count) + step * batch_of(run)
    chosen = block_at(wanted, len(blocks), settings.get("seed_everything") or 0)
    inputs, targets = map(torch.from_numpy, blocks[chosen])
    return inputs, targets


def look_inside(net: LanguageModel, batch: Sequences) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Figures of layers and parts from one pass forward and backward, and each head's attention."""
    inputs, targets = (part[:LOOKED_AT].to(next(net.parameters()).device) for part in batch)
    with Recorder(net) as recorder:
        logits = net(inputs)
    check_logits(logits)
    cross_entropy(logits, targets).objective.backward()
    found = {
        "layers": [{"name": one.name, **figures_of_layer(one)} for one in recorder.layers],
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
    run: Path, model: Model, batch: Sequences, unseen: list[str]
) -> dict[str, Any]:
    """Through the snapshots of a run: how far the weights moved, and the noise at some of them."""
    net, files, updates, noise = model.net, dict[int, Path](), [], []
    own = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        files = snapshot_files(run)
    except CheckpointError as error:
        unseen.append(f"updates: {error}")
    is_small = len(batch[0]) >= NOISE_SEQUENCES  # a large net is measured at the checkpoint alone
    chosen = np.linspace(0, len(files) - 1, NOISE_SNAPSHOTS * is_small).round()
    before: tuple[int, dict[str, Tensor]] | None = None
    for number, (step, path) in enumerate(pieces([*files.items()], "gradients at the snapshots")):
        try:
            load_net(net, read(path))
        except CheckpointError as error:
            unseen.append(f"a snapshot: {error}")
            continue
        now = {name: value.clone() for name, value in net.state_dict().items()}
        if before:
            ratios = update_ratios(net, before[1], now)
            updates.append({"first_step": before[0], "last_step": step, "ratios": ratios})
        if number in chosen and step != model.step:
            noise.append({"step": step, **measure_noise(net, *batch)})
        before = step, now
    net.load_state_dict(own)
    noise.append({"step": model.step, **measure_noise(net, *batch)})
    return {"updates": updates, "noise": noise}


def losses_of(model: Model, corpus: RunCorpus) -> dict[str, Any]:
    """Of validation text, evenly spaced where it is long: by position, by document, by source."""
    held_out, size = Shards(corpus.folder, "val", corpus.index), model.net.block_size
    blocks = Blocks(held_out, size, whole=False)
    count = affordable(model.net, LOSS_TOKENS, LOOKED_AT)
    chosen = np.unique(np.linspace(0, len(blocks) - 1, count).astype(np.int64))
    inputs, targets = blocks[chosen]
    nats = text_nats(model.net, torch.from_numpy(inputs), torch.from_numpy(targets))
    starts, tokenizer = document_starts(held_out, model.tokenizer.eot_id), model.tokenizer
    places = chosen[:, None] * size + np.arange(1, size + 1)  # (N, T) of the targets
    numbers = starts.searchsorted(places, side="right") - 1
    counts = [count for _, count in held_out.sources]
    if counts and numbers[targets >= 0].max(initial=0) >= sum(counts):
        raise DataError(f"{corpus.folder} has more documents than its index says; prepare it again")
    documents, sources = by_document(
        nats, targets, numbers, tokenizer.token_bytes(), held_out.sources
    )
    names = [name for name, count in held_out.sources for _ in range(count)]
    for row in documents:
        row["source"] = names[row["document"]] if names else ""
        first = starts[row["document"]]
        ids = held_out.gather(np.arange(first, min(first + BEGINNING, held_out.tokens)))
        row["beginning"] = " ".join(tokenizer.decode(ids.tolist()).split())
    return {"by_position": by_position(nats), "documents": documents, "sources": sources}


def cannot_see(found: dict[str, Any]) -> Iterator[str]:
    """What this net and this corpus do not show."""
    layers = found["layers"]
    if not layers:
        yield "layers: the net keeps them in no list of modules"
    if not any("attention_entropy" in layer for layer in layers):
        yield "attention: no layer calls torch's scaled_dot_product_attention"
    if not any("dead_units" in layer for layer in layers):
        yield "dead units: no layer calls a ReLU of torch"
    if not found["knowledge"]:
        yield "what each depth knows: layers that hand on one tensor (B, T, C), or more text"


def look_at_model(run: Path, model: Model) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """All numbers; the attention (T, T) of each head, and the T tokens that it is of.

    Losses are in nats per token. Raises DataError without the run's corpus.
    """
    net, corpus, unseen = model.net, open_run_corpus(run), list[str]()
    size, step = net.block_size, model.step
    batch = next_sequences(run, corpus, step, affordable(net, NOISE_SEQUENCES * size, 2 * QUARTERS))
    found, maps = look_inside(net, batch)
    found |= follow_snapshots(run, model, batch, unseen) | losses_of(model, corpus)
    found["advice"] = advice(found["noise"][-1], batch_of(run), size)
    inputs, targets, _ = corpus.batch("val", size, affordable(net, ASKED_TOKENS, LOOKED_AT))
    found["knowledge"] = look_into(net, model.tokenizer, inputs, targets, SHOWN_TOKENS)
    found["memorisation"] = []
    try:
        found["memorisation"] = memorisation(model, corpus)
    except DataError as error:
        unseen.append(f"copies: {error}")
    words = [model.tokenizer.decode([token]) for token in batch[0][0, :MAP_TOKENS].tolist()]
    return {"step": step, **found, "unseen": [*unseen, *cannot_see(found)]}, maps, words
