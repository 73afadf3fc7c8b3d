"""A net and training sequences -> gradient noise scale, and what it says about the batch size.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training": B_simple = tr(Sigma) / |G|^2,
the noise of one sequence's gradient beside the size of the true gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel

QUARTERS = 4  # of the sequences; the spread of their estimates is the error


@dataclass(frozen=True)
class NoiseScale:
    """Batch sizes are in sequences."""

    sequences: int  # whose gradients were taken
    squared: float  # |G|^2; not above 0 where noise hides the gradient
    noise: float  # tr(Sigma)
    simple: float | None  # B_simple; None where noise hides the gradient
    parts: list[float | None]  # the same from parts of the sequences


def estimate(small_squared: float, big_squared: float, small: int, big: int) -> tuple[float, float]:
    """Mean squared norms of gradients of two batch sizes -> unbiased |G|^2 and tr(Sigma).

    McCandlish et al. 2018, appendix A.1.
    """
    squared = (big * big_squared - small * small_squared) / (big - small)
    noise = (small_squared - big_squared) / (1 / small - 1 / big)
    return squared, noise


def steps_and_data(batch: float, simple: float) -> tuple[float, float]:
    """A batch size -> steps and data, as multiples of the least that lead to the same loss.

    They are 1 + B_simple / B and 1 + B / B_simple (section 2.2).
    """
    return 1 + simple / batch, 1 + batch / simple


def _ratio(squared: float, noise: float) -> float | None:
    return noise / squared if squared > 0 else None


def measure_noise(net: LanguageModel, inputs: Tensor, targets: Tensor) -> NoiseScale:
    """(N, T) sequences, N at least 2 QUARTERS -> the estimate from batches of 1 and of N sequences.

    A gradient is that of the mean cross-entropy of a sequence.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    norms, parts = list[float](), list[float | None]()

    def squared_norm(gradients: list[Tensor], count: int) -> float:
        return float(torch.nn.utils.get_total_norm(gradients) / count) ** 2

    for rows in torch.arange(len(inputs)).tensor_split(QUARTERS):
        sums = [torch.zeros_like(p) for p in parameters]
        for row in rows.tolist():
            some, wanted = (of[row : row + 1].to(total[0].device) for of in (inputs, targets))
            loss = cross_entropy(net(some), wanted).objective
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            gradients = [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(found, parameters, strict=True)
            ]
            norms.append(squared_norm(gradients, 1))
            for held, gradient in zip(sums, gradients, strict=True):
                held += gradient
        for held, part in zip(total, sums, strict=True):
            held += part
        count = len(rows)
        small = sum(norms[-count:]) / count
        parts.append(_ratio(*estimate(small, squared_norm(sums, count), 1, count)))
    small = sum(norms) / len(norms)
    squared, noise = estimate(small, squared_norm(total, len(norms)), 1, len(norms))
    return NoiseScale(len(norms), squared, noise, _ratio(squared, noise), parts)


def advice(found: NoiseScale, batch: int, block_size: int) -> str:
    """What it says about a batch of so many sequences, in a sentence or two."""
    if found.simple is None:
        return (
            f"In {found.sequences} sequences the noise hides the gradient: batches far larger than "
            f"{found.sequences * block_size:,} tokens would still save steps."
        )
    steps, data = steps_and_data(batch, found.simple)
    known = [one for one in found.parts if one is not None]
    spread = (
        f"{min(known) * block_size:,.0f} to {max(known) * block_size:,.0f}" if known else "none"
    )
    return (
        f"The noise scale is {found.simple * block_size:,.0f} tokens ({spread} in quarters of the "
        f"{found.sequences} sequences), the run's batch {batch * block_size:,}. By the model of "
        f"McCandlish et al. (2018) this batch takes {steps:,.3g} times the fewest steps and "
        f"{data:,.3g} times the least data, and one of the noise scale twice both. The model is of "
        "plain descent: for Adam and Muon take it as an order of magnitude."
    )
