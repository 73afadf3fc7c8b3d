"""A net and text -> how probable it found what came: by position, by document, by its confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmtemplate.data import IGNORED
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.models.base import LanguageModel
from lmtemplate.record import Floats

LOGITS_AT_ONCE = 2**24  # floats in one forward pass
BEGINNING = 8  # tokens of a document that stand for its name
BINS = 10  # of confidence, equally wide


def split_text(net: LanguageModel, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(N, T) inputs and targets -> in parts of LOGITS_AT_ONCE, on the device of the net."""
    device = next(net.parameters()).device
    size = max(1, LOGITS_AT_ONCE // (inputs.size(1) * net.vocab_size))
    parts = (of.to(device).split(size) for of in (inputs, targets))
    return [*zip(*parts, strict=True)]


@torch.no_grad()
def predict_text(
    net: LanguageModel, inputs: Tensor, targets: Tensor, temperatures: Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    """(N, T) inputs and targets -> of the P targets that count, at each of H temperatures:

    (H, P) nats, (H, P) probabilities of the likeliest token, (P,) whether that was the target.
    """
    parts = list[tuple[Tensor, Tensor, Tensor]]()
    for some, of_some in split_text(net, inputs, targets):
        counted = of_some != IGNORED
        logits, wanted = net(some).float()[counted], of_some[counted]  # (P, V), (P,)
        nats, highest = list[Tensor](), list[Tensor]()
        for temperature in temperatures:
            likely = (logits / temperature).log_softmax(-1)
            nats.append(-likely.gather(-1, wanted[:, None])[:, 0])
            highest.append(likely.amax(-1).exp())
        parts.append((torch.stack(nats), torch.stack(highest), logits.argmax(-1) == wanted))
    losses, confidence, correct = (torch.cat(of, -1) for of in zip(*parts, strict=True))
    return tuple(of.double().cpu().numpy() for of in (losses, confidence, correct))  # type: ignore[return-value]


@dataclass(frozen=True)
class Calibration:
    """Predictions by their confidence, which is the probability of the likeliest token."""

    accuracy: float
    confidence: float  # mean
    error: float  # expected calibration error (Guo et al. 2017, equation 3)
    bins: list[tuple[int, float, float]]  # BINS of: predictions, mean confidence, share right


def calibrate(confidence: Floats, correct: Floats) -> Calibration:
    """(N,) probabilities of the likeliest tokens, (N,) whether they came -> their agreement."""
    which = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(which, minlength=BINS)
    sure, right = (np.bincount(which, of, BINS) for of in (confidence, 1.0 * correct))
    means = [(total / np.maximum(counts, 1)).tolist() for total in (sure, right)]
    return Calibration(
        accuracy=float(correct.mean()),
        confidence=float(confidence.mean()),
        error=float(np.abs(right - sure).sum() / len(confidence)),
        bins=list(zip(counts.tolist(), *means, strict=True)),
    )


def text_nats(net: LanguageModel, inputs: Tensor, targets: Tensor) -> Floats:
    """(N, T) inputs and targets -> (N, T) nats; NaN where a target does not count."""
    nats = np.full(targets.shape, np.nan)
    nats[(targets != IGNORED).numpy()] = predict_text(net, inputs, targets, (1.0,))[0][0]
    return nats


def by_position(nats: Floats) -> list[float]:
    """(N, T) nats -> (T,) means; at position t the net has seen t + 1 tokens."""
    return list(np.nanmean(nats[:, ~np.isnan(nats).all(0)], 0).tolist())


@dataclass(frozen=True)
class DocumentLoss:
    """Of one document, as far as it was read."""

    beginning: str
    tokens: int
    loss: float  # nats per token


def by_document(
    nats: Floats, inputs: Tensor, targets: Tensor, tokenizer: Tokenizer
) -> list[DocumentLoss]:
    """(N, T) of consecutive sequences -> documents in their order; end-of-text counts to its own."""
    number = np.cumsum(inputs.numpy().ravel() == tokenizer.eot_id)
    first = [int(inputs[0, 0])]  # which is no target
    counted = ~np.isnan(nats.ravel())
    losses, wanted, found = nats.ravel()[counted], targets.numpy().ravel()[counted], []
    for document in np.unique(number[counted]):
        here = number[counted] == document
        begins = [*([] if document else first), *wanted[here][:BEGINNING].tolist()]
        text = " ".join(tokenizer.decode(begins).split())
        found.append(DocumentLoss(text, int(here.sum()), float(losses[here].mean())))
    return found
