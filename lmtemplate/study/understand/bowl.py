"""Optimizers and schedules -> paths of balls that roll down a textbook's landscape, for a page.

The landscape is a bowl with one steep axis. Plain descent at rate lr keeps the share 1 - lr * c of
the distance along an axis of curvature c: at lr = 1 / c a step lands on the bottom, above 2 / c
each step ends further out. The steep curvature is slightly above 20, so that the sweet spot ends
at 0.05, and 0.1 diverges. As in training, each gradient has the noise of its batch.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lmtemplate import schedules
from lmtemplate.optimizers import SGD, Adam, AdamW, OptimizerRecipe
from lmtemplate.study.show.plots import ON_A_MAP

CURVATURES = torch.tensor([1.0, 20.1], dtype=torch.float64)
BOTTOM = torch.tensor([1.0, 0.5], dtype=torch.float64)
START = torch.tensor([-1.8, 1.1], dtype=torch.float64)
NOISE = 2.0  # standard deviation of the noise that batches add to a gradient
SEED = 3  # the noise of this seed keeps the jumps at rate 0.1 on the map
STEPS = 60
RATES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1)
OPTIMIZERS: dict[str, Callable[[float], OptimizerRecipe]] = {
    "SGD": lambda lr: SGD(lr, momentum=0.0),
    "momentum 0.9": lambda lr: SGD(lr, momentum=0.9),
    "Adam": lambda lr: Adam(lr),
    "AdamW, decay 0.5": lambda lr: AdamW(lr, betas=(0.9, 0.999), weight_decay=0.5),
}
ON_A_DARK_MAP = ("#ffffff", "#8cc4ff", "#f3a8ff", "#ffd591")
RUN_STEPS = 1000
DRAWN_STEPS = (*range(0, RUN_STEPS, 4), RUN_STEPS - 1)
WARMUPS = (0, 20, 50, 100, 200)


def loss_at(weights: Tensor) -> Tensor:
    """(..., 2) weights -> (...) loss: half the sum of curvature times squared distance."""
    return 0.5 * (CURVATURES * (weights - BOTTOM) ** 2).sum(-1)


def roll(recipe: OptimizerRecipe, noise: float = NOISE) -> Tensor:
    """(STEPS + 1, 2) weights: an optimizer's path. All optimizers and rates get the same noise."""
    generator = torch.Generator().manual_seed(SEED)
    normal = torch.randn(STEPS, 2, generator=generator, dtype=torch.float64)
    weights = nn.Parameter(START[None].clone())  # a matrix, so that AdamW decays it
    optimizer = recipe.build(nn.ParameterList([weights]))
    places = [START]
    for extra in noise * normal:
        (slope,) = torch.autograd.grad(loss_at(weights).sum(), weights)
        weights.grad = slope + extra
        optimizer.step()
        places.append(weights.detach()[0].clone())
    return torch.stack(places)


def path_data(recipe: OptimizerRecipe) -> dict[str, list[float]]:
    """Both weights and the loss at each step."""
    path = roll(recipe)
    x, y = path.T.tolist()
    return {"x": x, "y": y, "loss": loss_at(path).tolist()}


def schedule_data(
    warmup: int, steps: Iterable[int] = DRAWN_STEPS, total: int = RUN_STEPS
) -> dict[str, list[float]]:
    """Schedule -> share of the peak rate at these steps of a run of `total`."""
    return {
        shape.__name__: [shape(warmup_steps=warmup).factor(step, total) for step in steps]
        for shape in schedules.Schedule.__subclasses__()
        if shape.__module__ == schedules.__name__  # not those of whoever imports this
    }


def bowl_parts() -> dict[str, Any]:
    """What the page's first panels draw."""
    every_path = {
        f"{rate:.3f}": {name: path_data(recipe(rate)) for name, recipe in OPTIMIZERS.items()}
        for rate in RATES
    }
    x, y = torch.linspace(-2.5, 3.0, 60), torch.linspace(-2.6, 3.6, 60)
    loss = loss_at(torch.stack(torch.meshgrid(x, y, indexing="xy"), -1))
    data = {
        "paths": every_path,
        # the square root: the valley's floor has colors, too
        "map": {"x": x.tolist(), "y": y.tolist(), "z": loss.sqrt().tolist()},
        "schedules": {str(warmup): schedule_data(warmup) for warmup in WARMUPS},
        "colors": {"light": ON_A_MAP, "dark": ON_A_DARK_MAP},
        "steps": STEPS,
        "run_steps": DRAWN_STEPS,
    }
    return {"data": data, "edge": 2 / CURVATURES.max().item()}
