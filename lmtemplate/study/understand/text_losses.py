"""A net and text -> how probable it found what came: by position, document, source, confidence."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmtemplate.data import IGNORED, Ints
from lmtemplate.data.shards import Shards
from lmtemplate.errors import NumbersError
from lmtemplate.models.base import LanguageModel
from lmtemplate.record import Floats
from lmtemplate.study.progress import pieces

LOGITS_AT_ONCE = 2**24  # floats in one forward pass
READ_AT_ONCE = 2**22  # tokens of a split
BINS = 10  # of confidence, equally wide


def split_text(net: LanguageModel, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(N, T) inputs and targets -> in parts of LOGITS_AT_ONCE, on the device of the net."""
    device = next(net.parameters()).device
    size = max(1, LOGITS_AT_ONCE // (inputs.size(1) * net.vocab_size))
    parts = (of.to(device).split(size) for of in (inputs, targets))
    return [*zip(*parts, strict=True)]


def check_logits(logits: Tensor) -> None:
    """Raises NumbersError where logits (..., V) give no probabilities: one is NaN, or infinite."""
    if not logits.float().logsumexp(-1).isfinite().all():
        raise NumbersError("the model's logits are not finite; take an earlier checkpoint")


@torch.no_grad()
def predict_text(
    net: LanguageModel, inputs: Tensor, targets: Tensor, temperatures: Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    """(N, T) inputs and targets -> of the P targets that count, at each of H temperatures:

    (H, P) nats, (H, P) probabilities of the likeliest token, (P,) whether that was the target.
    Raises NumbersError.
    """
    parts = list[tuple[Tensor, Tensor, Tensor]]()
    for some, of_some in pieces(split_text(net, inputs, targets), "losses of validation text"):
        counted = of_some != IGNORED
        logits, wanted = net(some).float()[counted], of_some[counted]  # (P, V), (P,)
        check_logits(logits)
        nats, highest = list[Tensor](), list[Tensor]()
        for temperature in temperatures:
            likely = (logits / temperature).log_softmax(-1)
            nats.append(-likely.gather(-1, wanted[:, None])[:, 0])
            highest.append(likely.amax(-1).exp())
        parts.append((torch.stack(nats), torch.stack(highest), logits.argmax(-1) == wanted))
    losses, confidence, correct = (torch.cat(of, -1) for of in zip(*parts, strict=True))
    return tuple(of.double().cpu().numpy() for of in (losses, confidence, correct))  # type: ignore[return-value]


def calibrate(confidence: Floats, correct: Floats) -> dict[str, Any]:
    """(N,) probabilities of the likeliest tokens, (N,) whether they came -> their agreement.

    The error is the expected calibration error (Guo et al. 2017, equation 3); a bin of confidence
    has its number of predictions, their mean confidence, the share that was right.
    """
    which = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(which, minlength=BINS)
    sure, right = (np.bincount(which, of, BINS) for of in (confidence, 1.0 * correct))
    means = [(total / np.maximum(counts, 1)).tolist() for total in (sure, right)]
    return {
        "accuracy": float(correct.mean()),
        "confidence": float(confidence.mean()),
        "calibration_error": float(np.abs(right - sure).sum() / len(confidence)),
        "bins": list(zip(counts.tolist(), *means, strict=True)),
    }


def text_nats(net: LanguageModel, inputs: Tensor, targets: Tensor) -> Floats:
    """(N, T) inputs and targets -> (N, T) nats; NaN where a target does not count."""
    nats = np.full(targets.shape, np.nan)
    nats[(targets != IGNORED).numpy()] = predict_text(net, inputs, targets, (1.0,))[0][0]
    return nats


def by_position(nats: Floats) -> list[float]:
    """(N, T) nats -> (T,) means; at position t the net has seen t + 1 tokens."""
    return list(np.nanmean(nats[:, ~np.isnan(nats).all(0)], 0).tolist())


def grouped(
    nats: Floats, targets: Ints, groups: Ints, token_bytes: Ints
) -> dict[int, dict[str, Any]]:
    """(P,) each -> group -> its tokens, nats per token, bits per byte (none where it has no text)."""
    tokens, total = np.bincount(groups), np.bincount(groups, nats)
    bits, size = total / math.log(2), np.bincount(groups, token_bytes[targets])
    return {
        group: {
            "tokens": int(tokens[group]),
            "loss": float(total[group] / tokens[group]),
            "bits_per_byte": float(bits[group] / size[group]) if size[group] else None,
        }
        for group in np.flatnonzero(tokens).tolist()
    }


def document_starts(text: Shards, eot_id: int) -> Ints:
    """(D,) places where the documents of a split begin; its end is one, too."""
    chunks = (
        np.arange(first, min(first + READ_AT_ONCE, text.tokens))
        for first in range(0, text.tokens, READ_AT_ONCE)
    )
    return np.concatenate([[0], *(1 + places[text.gather(places) == eot_id] for places in chunks)])


def by_document(
    nats: Floats,
    targets: Ints,
    document: Ints,
    token_bytes: Ints,
    sources: Sequence[tuple[str, int]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(N, T) nats, targets and the documents that these belong to -> documents, and their sources.

    `sources` are those of `Shards`: names, and how many documents each has, in the order of the
    text.
    """
    counted = ~np.isnan(nats)
    losses, wanted, numbers = nats[counted], targets[counted], document[counted]
    documents = [
        {"document": number, **row}
        for number, row in grouped(losses, wanted, numbers, token_bytes).items()
    ]
    names = [*dict.fromkeys(name for name, _ in sources)]
    runs = [np.full(count, names.index(name)) for name, count in sources]
    source = np.concatenate(runs)
    counts = np.bincount(source[np.unique(numbers)])
    return documents, [
        {"source": names[number], "documents": int(counts[number]), **row}
        for number, row in grouped(losses, wanted, source[numbers], token_bytes).items()
    ]
