"""A net and text in its order -> loss by position in the context, and by document."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lmtemplate.data import IGNORED
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.models.base import LanguageModel
from lmtemplate.record import Floats
from lmtemplate.study.understand.calibration import predict_text

BEGINNING = 8  # tokens of a document that stand for its name


@dataclass(frozen=True)
class DocumentLoss:
    """Of one document, as far as it was read."""

    beginning: str
    tokens: int
    loss: float  # nats per token


def nats_of(net: LanguageModel, inputs: Tensor, targets: Tensor) -> Floats:
    """(N, T) inputs and targets -> (N, T) nats; NaN where a target does not count."""
    nats = np.full(targets.shape, np.nan)
    nats[(targets != IGNORED).numpy()] = predict_text(net, inputs, targets, (1.0,))[0][0]
    return nats


def by_position(nats: Floats) -> list[float]:
    """(N, T) nats -> (T,) means; at position t the net has seen t + 1 tokens."""
    return list(np.nanmean(nats[:, ~np.isnan(nats).all(0)], 0).tolist())


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
