"""Steps of a spike -> its sequences and documents, and whether their loss is unusual.

Which sequences a step has read is a pure function of how many were read before it, so that they can
be found again long after the run.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from lmtemplate.data.sampler import block_at
from lmtemplate.data.shards import Ints
from lmtemplate.models.base import LanguageModel
from lmtemplate.record import Record
from lmtemplate.study.diagnose.artifacts import Corpus, Sources

Floats = npt.NDArray[np.float64]

MOST = 256  # sequences of a spike that are looked at: those with which it began
OTHERS = 64  # training sequences that they are compared with
BATCH_LOGITS = 2**25
DEVIATIONS = 4  # standard errors by which their mean is unusual
TOGETHER = 1  # spreads, at least: what was read more often or longer ago differs by less
ALONE = 8  # spreads by which a single sequence stands out; in sound text, the loudest has 4
SMALLEST_SPREAD = 0.05  # of the loss: less is no difference
NAMED = 3  # sequences that are named, the loudest
WORDS_TOKENS, WORDS = 24, 6


@dataclass(frozen=True)
class Passage:
    """A training sequence and where it stands in the text."""

    sequence: int  # number in the order of training, 0-based
    documents: tuple[int, int]  # first and last that it touches, 1-based in the training split
    begins: str  # first words of the first
    loss: float | None  # nats per token


@dataclass(frozen=True)
class Spike:
    """What a model read while its loss rose.

    Attributes:
        steps: from where it rose to its peak.
        sequences: first and last, in the order of training.
        passages: the loudest of them.
        unusual: whether their loss is; None where no model is there to ask.
        says: all of it in one sentence.
    """

    steps: tuple[int, int]
    sequences: tuple[int, int]
    passages: tuple[Passage, ...]
    unusual: bool | None
    says: str


def sequences_between(
    record: Record, block_size: int, first_step: int, last_step: int
) -> Ints | None:
    """Numbers of the sequences that the rows of these steps have read; None where that is unknown.

    A row reaches back to the row before it. Tokens are counted over resumes and changed batches.
    """
    tokens = record.values.get("data/tokens")
    rows = np.flatnonzero((record.steps >= first_step) & (record.steps <= last_step))
    if tokens is None or not len(rows):
        return None
    before = tokens[rows[0] - 1] if rows[0] else 0.0
    after = tokens[rows[-1]]
    if not (np.isfinite(before) and np.isfinite(after)):
        return None
    return np.arange(int(before) // block_size, int(after) // block_size)


@torch.inference_mode()
def sequence_losses(net: LanguageModel, inputs: Ints, targets: Ints) -> Floats:
    """(B, T) inputs and targets -> (B,) nats per token."""
    device = next(net.parameters()).device
    size = max(1, BATCH_LOGITS // (inputs.shape[1] * net.vocab_size))
    losses = []
    for first in range(0, len(inputs), size):
        part = slice(first, first + size)
        logits = net.forward(torch.from_numpy(inputs[part]).to(device))  # (B, T, V)
        wanted = torch.from_numpy(targets[part]).to(device)
        nats = F.cross_entropy(logits.transpose(1, 2).float(), wanted, reduction="none")  # (B, T)
        losses.append(nats.mean(1).double().cpu().numpy())
    return np.concatenate(losses)


def compare(losses: Floats, others: Floats) -> tuple[bool, str]:
    """Whether losses of sequences are unusual beside those of others, and that in words.

    The others are described so that a few outliers do not count: by their median, and by 1.4826 x
    the median deviation from it, which of a normal distribution is the standard deviation.
    """
    middle = float(np.median(others))
    deviation = float(1.4826 * np.median(np.abs(others - middle)))
    spread = max(deviation, SMALLEST_SPREAD * middle)
    # the variance of a median is pi / 2 times that of a mean
    error = spread * math.sqrt(1 / len(losses) + math.pi / 2 / len(others))
    together = losses.mean() - middle > max(DEVIATIONS * error, TOGETHER * spread)
    alone = int((losses > middle + ALONE * spread).sum())
    figures = f"loss {losses.mean():.2f}, {len(others)} others {middle:.2f} ± {spread:.2f}"
    if together:
        return True, f"these sequences are unusual ({figures})"
    if alone:
        are = "stands" if alone == 1 else "stand"
        return True, f"{alone} of them {are} out (loss {losses.max():.2f}; all: {figures})"
    return False, f"the data is not the reason ({figures})"


def _passage(
    corpus: Corpus, starts: Ints, sequence: int, block: int, loss: float | None
) -> Passage:
    first = block * corpus.block_size
    documents = np.searchsorted(starts, [first, first + corpus.block_size - 1], side="right")
    begin = int(starts[documents[0] - 1])
    shards = corpus.train_shards
    ids = shards.gather(np.arange(begin, min(begin + WORDS_TOKENS, shards.tokens)))
    words = corpus.tokenizer.decode(ids.tolist()).split()[:WORDS]
    return Passage(sequence, (int(documents[0]), int(documents[1])), " ".join(words), loss)


def _named(passage: Passage) -> str:
    first, last = passage.documents
    where = f"document {first}" if first == last else f"documents {first} to {last}"
    loss = "" if passage.loss is None else f", loss {passage.loss:.2f}"
    return f'sequence {passage.sequence:,} ({where}, "{passage.begins} ..."{loss})'


def _others(corpus: Corpus, blocks: Ints) -> Ints:
    """Up to OTHERS blocks that are not among these, always the same ones."""
    drawn = np.random.default_rng(0).permutation(min(len(corpus.train), 10 * (MOST + OTHERS)))
    drawn = drawn * (len(corpus.train) // len(drawn))  # spread over the whole split
    return drawn[~np.isin(drawn, blocks)][:OTHERS]


def _loudest(
    corpus: Corpus, sequences: Ints, blocks: Ints, losses: Floats | None
) -> tuple[Passage, ...]:
    if losses is None:
        order = np.arange(len(blocks))[:NAMED]
    else:
        order = np.argsort(-losses, kind="stable")[:NAMED]
    starts = corpus.document_starts(int(blocks[order].max() + 1) * corpus.block_size)
    return tuple(
        _passage(
            corpus,
            starts,
            int(sequences[i]),
            int(blocks[i]),
            None if losses is None else float(losses[i]),
        )
        for i in order
    )


def look(sources: Sources, record: Record, first_step: int, last_step: int) -> Spike | None:
    """What the model read from the first step to the highest loss up to the last one; None where
    the corpus or the count of tokens is gone. Raises DataError where shards are damaged.
    """
    corpus, model = sources.corpus, sources.model
    rows = np.flatnonzero((record.steps >= first_step) & (record.steps <= last_step))
    if corpus is None or not len(rows):
        return None
    peak = int(record.steps[rows[record.train_loss[rows].argmax()]])
    read = sequences_between(record, corpus.block_size, first_step, peak)
    if read is None or not len(read):
        return None
    sequences = read[:MOST]
    blocks = block_at(sequences, len(corpus.train), corpus.seed)
    others = _others(corpus, blocks)
    unusual, words, losses = None, "", None
    if model is not None and len(others):
        losses = sequence_losses(model.net, *corpus.train[blocks])
        unusual, words = compare(losses, sequence_losses(model.net, *corpus.train[others]))
        words = f"; under the weights of step {model.step:,} {words}"
    passages = _loudest(corpus, sequences, blocks, losses)
    first, last = int(read[0]), int(read[-1])
    begin = int(record.steps[rows[0] - 1]) + 1 if rows[0] else 1
    says = (
        f"steps {begin:,} to {peak:,} read sequences {first:,} to {last:,}, among them "
        f"{', '.join(map(_named, passages))}{words}"
    )
    return Spike((begin, peak), (first, last), passages, unusual, says)
