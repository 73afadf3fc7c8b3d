"""A net and training sequences -> gradient noise scale, and what it says about the batch size.

McCandlish et al. 2018, "An Empirical Model of Large-Batch Training": B_simple = tr(Sigma) / |G|^2,
the noise of one sequence's gradient beside the size of the true gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.utils import parameters_to_vector

from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel

QUARTERS = 4  # of the sequences; the spread of their estimates is the error


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


def scale_of(norms: Sequence[float], total: Tensor) -> dict[str, Any]:
    """Squared norms of gradients of one sequence each, and their sum (P,) -> the estimate.

    The scale is None where noise hides the gradient: then its square is not above 0.
    """
    count, whole = len(norms), vector_norm(total, dtype=torch.float64).item() / len(norms)
    squared, noise = estimate(sum(norms) / count, whole**2, 1, count)
    scale = noise / squared if squared > 0 else None
    return {"sequences": count, "squared_gradient": squared, "noise": noise, "scale": scale}


def measure_noise(net: LanguageModel, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """(N, T) sequences, N at least 2 QUARTERS -> the estimate from batches of 1 and of N sequences.

    A gradient is that of the mean cross-entropy of a sequence; the scale is in sequences.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    total = torch.zeros_like(parameters_to_vector(parameters).detach())
    norms, quarters = list[float](), list[float | None]()
    for quarter in torch.arange(len(inputs)).tensor_split(QUARTERS):
        inside = torch.zeros_like(total)
        for row in quarter.tolist():
            some, wanted = (of[row : row + 1].to(total.device) for of in (inputs, targets))
            loss = cross_entropy(net(some), wanted).objective
            slopes = torch.autograd.grad(loss, parameters, materialize_grads=True)
            gradient = parameters_to_vector(slopes)
            norms.append(vector_norm(gradient, dtype=torch.float64).item() ** 2)
            inside += gradient
        total += inside
        quarters.append(scale_of(norms[-len(quarter) :], inside)["scale"])
    return {**scale_of(norms, total), "scale_in_quarters": quarters}


def advice(found: dict[str, Any], batch: int, block_size: int) -> str:
    """What it says about a batch of so many sequences, in a sentence or two."""
    count, scale = found["sequences"], found["scale"]
    if scale is None:
        return (
            f"In {count} sequences the noise hides the gradient: batches far larger than "
            f"{count * block_size:,} tokens would still save steps."
        )
    steps, data = steps_and_data(batch, scale)
    known = [one for one in found["scale_in_quarters"] if one is not None]
    spread = (
        " to ".join(f"{end(known) * block_size:,.0f}" for end in (min, max)) if known else "none"
    )
    return (
        f"The noise scale is {scale * block_size:,.0f} tokens ({spread} in {len(known)} quarters of the "
        f"{count} sequences), the run's batch {batch * block_size:,}. By the model of "
        f"McCandlish et al. (2018) this batch takes {steps:,.3g} times the fewest steps and "
        f"{data:,.3g} times the least data, and one of the noise scale twice both. The model is of "
        "plain descent: for Adam and Muon take it as an order of magnitude."
    )
