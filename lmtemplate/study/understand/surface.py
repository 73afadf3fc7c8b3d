"""A run's snapshots -> numbers: the loss around its weights, its path there, how sharp it is.

Weights are vectors of all P trainable parameters. A plane is a point and two directions; the loss
on it is computed by the net itself, at every point of a grid.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lmtemplate.checkpoint.compatibility import load_net
from lmtemplate.checkpoint.files import read
from lmtemplate.data import IGNORED
from lmtemplate.loss import cross_entropy
from lmtemplate.models.base import LanguageModel
from lmtemplate.optimizers import trainable
from lmtemplate.run_dir import read_json, write_json
from lmtemplate.study.progress import pieces
from lmtemplate.study.understand.text_losses import split_text

DRAW_SEED = 1337  # of random directions, and of the first vector of an eigenvalue's search
PRODUCTS = 12  # with the Hessian for one eigenvalue, at most
PRECISE = 0.02  # an eigenvalue's error may be this share of it
SAVE_EVERY = 32  # losses; a landscape that is interrupted goes on from there


class Kept:
    """Numbers that are computed once, and kept in a file with all that they depend on."""

    def __init__(self, path: Path, depends: dict[str, object]) -> None:
        self.path, self.depends, content = path, depends, read_json(path)
        known = content.get("numbers") if content.get("depends") == depends else None
        numbers = known.items() if isinstance(known, dict) else ()
        self.numbers = {name: value for name, value in numbers if type(value) is float}

    def get(self, name: str, compute: Callable[..., float], *arguments: object) -> float:
        if name not in self.numbers:
            self.numbers[name] = compute(*arguments)
        return self.numbers[name]

    def save(self) -> None:
        """Raises DiskError."""
        write_json(self.path, {"depends": self.depends, "numbers": self.numbers}, indent=None)


class NetOnText:
    """A net and the windows of text on which its loss is measured.

    Args:
        net: its trainable parameters are set to each weights that are measured.
        inputs: (W, T) token ids.
        targets: (W, T) token ids.
    """

    def __init__(self, net: LanguageModel, inputs: Tensor, targets: Tensor) -> None:
        self.net = net.float()
        self.parameters = trainable(net)
        self.parts = split_text(net, inputs, targets)
        self.tokens = int((targets != IGNORED).sum())

    def read(self, path: Path) -> Tensor:
        """(P,) weights of a checkpoint. Raises CheckpointError."""
        load_net(self.net, read(path))
        return parameters_to_vector(self.parameters).detach().clone()

    def set(self, weights: Tensor) -> None:
        vector_to_parameters(weights.clone(), self.parameters)

    @torch.no_grad()
    def loss(self, weights: Tensor) -> float:
        """Mean cross-entropy at (P,) weights, in nats per token."""
        self.set(weights)
        return sum(cross_entropy(self.net(x), y).nats.item() for x, y in self.parts) / self.tokens

    def hessian_product(self, direction: Tensor) -> Tensor:
        """The Hessian of the mean loss at the weights now set, times a (P,) direction."""
        total = torch.zeros_like(direction)
        for inputs, targets in self.parts:
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
                found = cross_entropy(self.net(inputs), targets)
                loss = found.objective * (found.tokens / self.tokens)
                slopes = grad(loss, self.parameters, create_graph=True, materialize_grads=True)
                along = torch.dot(parameters_to_vector(slopes), direction)
                curved = grad(along, self.parameters, materialize_grads=True)
            total += parameters_to_vector(curved)
        return total

    def sharpness(self, weights: Tensor) -> tuple[float, float]:
        """The largest eigenvalue of the Hessian at (P,) weights, and by how much it may be off."""
        self.set(weights)
        generator = torch.Generator().manual_seed(DRAW_SEED)
        start = torch.randn(len(weights), generator=generator).to(weights)
        return largest_eigenvalue(self.hessian_product, start)


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, steps: int = PRODUCTS
) -> tuple[float, float]:
    """Largest eigenvalue of a symmetric matrix that is known by its products, and its error bound.

    Power iteration that uses all of its vectors (Lanczos 1950). The last vector alone would not
    settle where a negative eigenvalue is as large, as at the start of a training: a saddle.
    """
    vector, before, beside = start / start.norm(), torch.zeros_like(start), 0.0
    diagonal, off_diagonal = list[float](), list[float]()
    while True:
        image = product(vector) - beside * before
        diagonal.append(torch.dot(image, vector).item())
        image -= diagonal[-1] * vector
        beside = image.norm().item()
        if not math.isfinite(beside):
            return math.nan, math.nan
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        matrix += torch.diag(torch.tensor(off_diagonal, dtype=torch.float64), -1)
        values, vectors = torch.linalg.eigh(matrix)  # reads the lower triangle
        value, error = values[-1].item(), beside * abs(vectors[-1, -1].item())
        if len(diagonal) == min(steps, len(start)) or error <= PRECISE * abs(value):
            return value, error
        off_diagonal.append(beside)
        before, vector = vector, image / beside


def orthogonal(direction: Tensor, to: Tensor) -> Tensor:
    """What remains of a (P,) direction without its share along a (P,) unit vector."""
    for _ in range(2):  # the second pass takes away what rounding has left
        direction = direction - torch.dot(direction, to) * to
    return direction


def random_direction(net: LanguageModel, seed: int) -> Tensor:
    """(P,) normal numbers, each row of a matrix as long as the net's own; 0 for gains and biases.

    Filter normalisation: Li et al. 2018, section 4.
    """
    generator, parts = torch.Generator().manual_seed(seed), list[Tensor]()
    for weight in trainable(net):
        drawn = torch.randn(weight.shape, generator=generator).to(weight.detach())
        if weight.dim() < 2:
            parts.append(torch.zeros_like(drawn).flatten())
            continue
        own, new = weight.detach().flatten(1).norm(dim=1), drawn.flatten(1).norm(dim=1)
        parts.append((drawn.flatten(1) * (own / new)[:, None]).flatten())
    return torch.cat(parts)


@dataclass(frozen=True)
class Plane:
    """All points `origin + x axes[0] + y axes[1]`; the axes are orthogonal, and equally long."""

    origin: Tensor  # (P,)
    axes: Tensor  # (2, P)

    @cached_property
    def unit(self) -> float:
        """Length of an axis."""
        return self.axes[0].norm().item()

    def at(self, x: float, y: float) -> Tensor:
        return self.origin + x * self.axes[0] + y * self.axes[1]

    def place(self, weights: Tensor) -> tuple[float, float]:
        """Coordinates of the point of the plane that is nearest to (P,) weights."""
        x, y = (self.axes @ (weights - self.origin) / self.unit**2).tolist()
        return x, y


def plane_through(start: Tensor, best: Tensor, third: Tensor) -> Plane:
    """Start is its (0, 0), best its (1, 0); the third point lies above or below these."""
    first = best - start
    unit = first.norm()
    second = orthogonal(third - start, first / unit)
    return Plane(start, torch.stack([first, second / second.norm() * unit]))


def coarse_to_fine(size: int) -> list[tuple[int, int]]:
    """Points (row, column) of a grid of 2^n + 1 points a side: a coarse grid first, then between."""
    points = itertools.product(range(size), range(size))
    return sorted(points, key=lambda point: -math.gcd(*point, size - 1))


def measure_surface(
    name: str, measured: NetOnText, plane: Plane, x: list[float], y: list[float], kept: Kept
) -> dict[str, Any]:
    """The loss at all points of a grid, as [row of y][column of x].

    Points that `kept` knows are not computed again. `zero` is the point nearest to weights that are
    all 0, to which decay pulls; `unit` is the distance between weights behind a distance of 1.
    """
    loss = [[math.nan] * len(x) for _ in y]
    points = pieces(coarse_to_fine(len(x)), f"loss on the plane: {name}")
    for count, (row, column) in enumerate(points):
        u, v = x[column], y[row]
        place = f"{name}: {u:.9g}, {v:.9g}"
        loss[row][column] = kept.get(place, lambda u=u, v=v: measured.loss(plane.at(u, v)))
        if count % SAVE_EVERY == 0:
            kept.save()
    kept.save()
    zero = plane.place(torch.zeros_like(plane.origin))
    return {"name": name, "x": x, "y": y, "loss": loss, "zero": zero, "unit": plane.unit}
