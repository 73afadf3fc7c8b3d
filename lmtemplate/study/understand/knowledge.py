"""A net and text -> what each depth of it knows: logit lens, and linear probes of letters and words."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmtemplate.data import IGNORED
from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.progress import pieces
from lmtemplate.study.understand.inside import Recorder, layers_of
from lmtemplate.study.understand.text_losses import split_text

RIDGE = 1e-3  # of the probes, as a share of the features' variance
FITTED = 0.75  # share of the sequences on which a probe is fitted; the others are its test
FEWEST_ROWS = 4  # sequences
CLASSES = ("vowel", "consonant", "other")  # of a letter


@torch.no_grad()
def streams_of(net: LanguageModel, inputs: Tensor) -> list[Tensor]:
    """(B, T) ids -> the stream (B, T, C) before the layers and after each; [] if they do not show."""
    with Recorder(net) as recorder:
        net(inputs)
    first = [layer.entered for layer in recorder.layers[:1]]
    streams = first + [layer.left for layer in recorder.layers]
    shapes = {None if stream is None else stream.shape for stream in streams}
    return [s for s in streams if s is not None] if len(shapes) == 1 else []


@torch.no_grad()
def lens(net: LanguageModel, streams: Sequence[Tensor]) -> Iterator[Tensor]:
    """Streams (B, T, C) -> the logits (B, T, V) that the head makes of each (nostalgebraist 2020).

    Meanwhile each layer returns the stream and computes nothing: what the net does after its
    layers (norm, head, cap) is thus applied to any stream.
    """
    layers = [*layers_of(net).values()]
    tokens = torch.zeros(streams[0].shape[:2], dtype=torch.long, device=streams[0].device)
    for stream in streams:
        try:
            for layer in layers:
                layer.forward = lambda *_, stream=stream, **__: stream
            logits = net(tokens)
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)
        yield logits


def fit_ridge(features: Tensor, classes: Tensor, count: int) -> Tensor:
    """(N, C) features, (N,) classes -> (C + 1, count) weights, the last row for the bias.

    Closed form of least squares with a penalty: (X'X + penalty)^-1 X'Y, Y being one-hot.
    """
    x = nn.functional.pad(features, (0, 1), value=1.0)
    wanted = nn.functional.one_hot(classes, count).double()
    penalty = RIDGE * len(x) * features.var(0, correction=0).mean()
    squares = x.T @ x + penalty * torch.eye(x.size(1), dtype=x.dtype)
    return torch.linalg.pinv(squares, hermitian=True) @ (x.T @ wanted)  # features may all be equal


def probe_accuracy(features: Tensor, classes: Tensor, fitted: int, count: int) -> float:
    """Share of the rows after the first `fitted` whose class a linear map of their features finds."""
    features = features.double()
    mean, spread = features[:fitted].mean(0), features[:fitted].std(0).clamp(min=1e-8)
    features = (features - mean) / spread
    weights = fit_ridge(features[:fitted], classes[:fitted], count)
    found = features[fitted:] @ weights[:-1] + weights[-1]
    return float((found.argmax(-1) == classes[fitted:]).double().mean())


def letter_class(text: str) -> int:
    """Of CLASSES, that of the first character that is no space."""
    first = text.strip()[:1].lower()
    return 0 if first and first in "aeiou" else 1 if first.isalpha() else 2


def questions(tokenizer: Tokenizer, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """(N, T) ids -> what is asked, and the class (N, T) that is right; -1 where there is none."""
    shown = np.stack((inputs.numpy(), np.maximum(targets.numpy(), 0)))
    before = [int(np.bincount(shown.ravel()).argmax())]  # some decoders drop a space at the start
    known = len(tokenizer.decode(before))
    texts = {n: tokenizer.decode([*before, n])[known:] for n in np.unique(shown).tolist()}
    letters = np.vectorize({n: letter_class(text) for n, text in texts.items()}.get)(shown)
    inside = np.vectorize({n: text[:1].isalpha() for n, text in texts.items()}.get)(shown[1])
    asked = {
        "letter: vowel, consonant, other": letters[0],
        "the next token's letter": letters[1],
        "the word ends here": ~inside,
    }
    counted = targets.numpy() != IGNORED
    return {name: torch.from_numpy(np.where(counted, of, -1)) for name, of in asked.items()}


def probes(streams: Tensor | None, asked: dict[str, Tensor], fitted: int) -> dict[str, float]:
    """(N, T, C) stream, classes (N, T) -> accuracies; without one, those of the commonest class."""
    accuracies = dict[str, float]()
    for name, classes in asked.items():
        counted = classes >= 0
        right, first = classes[counted], int(counted[:fitted].sum())
        if streams is None:
            commonest = right[:first].mode().values
            accuracies[name] = float((right[first:] == commonest).double().mean())
        else:
            accuracies[name] = probe_accuracy(streams[counted], right, first, len(CLASSES))
    return accuracies


def likeliest_next(tokenizer: Tokenizer, logits: Tensor) -> list[tuple[str, float]]:
    """(T, V) logits -> the likeliest token after each, and its probability."""
    highest = logits.float().softmax(-1).max(-1)
    texts = [tokenizer.decode([token]) for token in highest.indices.tolist()]
    return list(zip(texts, highest.values.tolist(), strict=True))


def look_into(
    net: LanguageModel, tokenizer: Tokenizer, inputs: Tensor, targets: Tensor, words: int
) -> dict[str, Any]:
    """(N, T) inputs and targets -> what each depth knows, tested on the last quarter of the rows.

    `depths` are rows, the first before any layer: loss and accuracy of the head, applied there, and
    of each linear probe its accuracy; the last row always answers the commonest class. `guesses`
    are the next token at each depth, after each of the first `words`. {} where N is below
    FEWEST_ROWS, or where the layers do not hand on one tensor (B, T, C).
    """
    kept, sums, guesses = list[list[Tensor]](), list[Tensor](), list[Any]()
    for some, wanted in pieces(split_text(net, inputs, targets), "what each depth knows"):
        streams = streams_of(net, some)
        if not streams or len(inputs) < FEWEST_ROWS:
            return {}
        kept.append([stream.cpu() for stream in streams])
        found = []
        for logits in lens(net, streams):
            right = (logits.argmax(-1) == wanted).sum().double()
            found.append(torch.stack((cross_entropy(logits, wanted).nats.double(), right)))
            if len(kept) == 1:
                guesses.append(likeliest_next(tokenizer, logits[0, :words]))
        sums.append(torch.stack(found).cpu())
    asked, fitted = questions(tokenizer, inputs, targets), int(FITTED * len(inputs))
    means = torch.stack(sums).sum(0) / (targets != IGNORED).sum()  # (depths, 2)
    depths = [
        {"after": name, "loss": loss, "accuracy": right, **probes(torch.cat(parts), asked, fitted)}
        for name, parts, (loss, right) in zip(
            ["embedding", *layers_of(net)], zip(*kept, strict=True), means.tolist(), strict=True
        )
    ]
    return {
        "depths": [*depths, {"after": "(the commonest)", **probes(None, asked, fitted)}],
        "words": [tokenizer.decode([token]) for token in inputs[0, :words].tolist()],
        "guesses": guesses,
    }
