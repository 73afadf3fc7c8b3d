"""Optimizers and schedules -> one web page that opens offline: balls that roll down a landscape.

The landscape is a bowl with one steep axis. Plain descent at rate lr keeps the share 1 - lr * c of
the distance along an axis of curvature c: at lr = 1 / c a step lands on the bottom, above 2 / c
each step ends further out. The steep curvature is slightly above 20, so that the sweet spot ends
at 0.05 and 0.1 is over the edge. As in training, each gradient is shaken by the batch it is from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmtemplate import schedules
from lmtemplate.errors import ConfigError
from lmtemplate.generate import next_probabilities
from lmtemplate.optimizers import SGD, Adam, AdamW, OptimizerRecipe
from lmtemplate.run_dir import write_text

Json = dict[str, Any]

CURVATURES = torch.tensor([1.0, 20.1], dtype=torch.float64)
BOTTOM = torch.tensor([1.0, 0.5], dtype=torch.float64)
START = torch.tensor([-1.8, 1.1], dtype=torch.float64)
NOISE = 2.0  # standard deviation of what batches add to a gradient
SEED = 3  # of that noise: at rate 0.1 the jumps stay on the map
STEPS = 60
RATES = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1)
OPTIMIZERS: dict[str, Callable[[float], OptimizerRecipe]] = {
    "SGD": lambda lr: SGD(lr, momentum=0.0),
    "momentum 0.9": lambda lr: SGD(lr, momentum=0.9),
    "Adam": lambda lr: Adam(lr),
    "AdamW, decay 0.5": lambda lr: AdamW(lr, betas=(0.9, 0.999), weight_decay=0.5),
}
COLOURS = ("#9a4a00", "#111111", "#1f5fd6", "#a01ab8")  # of traces 0 (the map: unused), 1 ...
RUN_STEPS = 1000
WARMUPS = (0, 20, 50, 100, 200)
WORDS = ("the", "cat", "sat", "on", "mat")
GUESS = (0.15, 0.10, 0.05, 0.20, 0.50)  # after "The cat sat", before training
TEMPERATURES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
MARK = '<meta name="generator" content="lmtemplate landscape">'
ABOVE = {"y": 1.02, "yanchor": "bottom"}
LOOK = {"margin": {"t": 70}, "legend": {"orientation": "h", "x": 1, "xanchor": "right", **ABOVE}}
GREEN_TO_RED = [*enumerate(("#1a9850", "#a6d96a", "#fee08b", "#f46d43", "#c2242a"))]


def loss_at(weights: Tensor) -> Tensor:
    """(..., 2) weights -> (...) loss: half the sum of curvature times squared distance."""
    return 0.5 * (CURVATURES * (weights - BOTTOM) ** 2).sum(-1)


def word_loss(logits: Tensor) -> Tensor:
    """(..., V) logits -> (...) cross-entropy of the next word."""
    return -logits.log_softmax(-1)[..., WORDS.index("on")]


def descend(
    start: Tensor, loss: Callable[[Tensor], Tensor], recipe: OptimizerRecipe, kicks: Tensor
) -> Tensor:
    """(N,) weights, (steps, N) kicks added to their gradients -> (steps + 1, N) weights."""
    weights = nn.Parameter(start[None].clone())  # a matrix, so that AdamW decays it
    optimizer = recipe.build(nn.ParameterList([weights]))
    places = [start]
    for kick in kicks:
        (slope,) = torch.autograd.grad(loss(weights).sum(), weights)
        weights.grad = slope + kick
        optimizer.step()
        places.append(weights.detach()[0].clone())
    return torch.stack(places)


def roll(recipe: OptimizerRecipe, noise: float = NOISE) -> Tensor:
    """(STEPS + 1, 2) weights: an optimizer's way. All optimizers and rates get the same noise."""
    generator = torch.Generator().manual_seed(SEED)
    kicks = noise * torch.randn(STEPS, 2, generator=generator, dtype=torch.float64)
    return descend(START, loss_at, recipe, kicks)


def short(values: Tensor) -> list[float]:
    """As JSON of four digits each: the page holds some hundred thousand numbers."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def axis(title: str, **settings: Any) -> Json:
    """Settings of an axis, with its title."""
    return {"title": {"text": title}, **settings}


def commands(method: str, moves: Json) -> list[Json]:
    """What a slider's steps or a row's buttons do; moves: label -> arguments of plotly's method."""
    return [{"label": label, "method": method, "args": args} for label, args in moves.items()]


def slider(prefix: str, steps: list[Json], active: int = 0, **place: float) -> Json:
    """A slider below a figure."""
    shown = {"prefix": prefix, "font": {"size": 16}}
    return {"active": active, "currentvalue": shown, "pad": {"t": 55}, "steps": steps, **place}


def buttons(x: float, parts: list[Json]) -> Json:
    """A row of buttons above a figure."""
    row = {"type": "buttons", "direction": "right", "showactive": False, "buttons": parts}
    return {**row, **ABOVE, "x": x, "xanchor": "left"}


def start(rate: float) -> Json:
    """Start for one rate, and Pause. A move of the slider replaces them: see `frames_at`."""
    now = {"mode": "immediate", "transition": {"duration": 0}}
    play, pause = ({**now, "frame": {"duration": ms}} for ms in (100, 0))
    moves = {"▶ Start": [str(rate), play], "Pause": [[None], pause]}
    return buttons(0, commands("animate", moves))


def frames_at(rate: float) -> list[Json]:
    """One frame per step: paths so far, newest point first (it is the ball), and losses so far."""
    paths = [roll(recipe(rate)) for recipe in OPTIMIZERS.values()]
    frames: list[Json] = []
    for step in range(STEPS + 1):
        ways = [path[: step + 1].flip(0).T for path in paths]
        data: list[Json] = [{"x": short(x), "y": short(y)} for x, y in ways]
        data += [{"y": short(loss_at(path[: step + 1]))} for path in paths]
        named = {"name": f"{rate} {step}", "group": str(rate)}
        frames.append({**named, "data": data, "traces": [*range(1, 1 + len(data))]})
    frames[0]["layout"] = {"updatemenus": [start(rate)]}
    return frames


def landscape_map() -> Json:
    """The loss from above, coloured by its root so that the valley's floor has colours too."""
    across, along = torch.linspace(-2.5, 3.0, 60), torch.linspace(-2.6, 3.6, 60)
    roots = loss_at(torch.stack(torch.meshgrid(across, along, indexing="xy"), -1)).sqrt()
    marks = [0, 1, 5, 20, 50, 90]
    ticks = {"tickvals": [mark**0.5 for mark in marks], "ticktext": marks}
    return {
        "type": "contour",
        "x": short(across),
        "y": short(along),
        "z": [short(row) for row in roots],
        "hoverinfo": "skip",
        "colorscale": [[share / 4, colour] for share, colour in GREEN_TO_RED],
        "autocontour": False,
        "contours": {"start": 0, "end": 9.6, "size": 0.3},
        "line": {"width": 0.4, "color": "white"},
        "colorbar": axis("loss", x=0.5, thickness=12, **ticks),
    }


def ball_traces(data: list[Json]) -> list[Json]:
    """A frame's data with its looks: per optimizer a path on the map, and a curve of the loss."""
    edge = {"color": "white", "width": [2] + [0] * STEPS}
    ball = {"size": [18] + [4] * STEPS, "opacity": 1, "line": edge}
    path = {"mode": "lines+markers", "marker": ball, "line": {"width": 1.5}}
    curve = {"mode": "lines", "xaxis": "x2", "yaxis": "y2", "showlegend": False}
    return [
        {**content, **(path if "x" in content else curve), "name": name, "legendgroup": name}
        for content, name in zip(data, [*OPTIMIZERS] * 2, strict=True)
    ]


def landscape_figure(opening: float = 0.03) -> Json:
    """Balls on the map, losses beside it, a slider of rates, Start, and a choice of optimizers."""
    frames = {rate: frames_at(rate) for rate in RATES}
    balls = ball_traces(frames[opening][0]["data"])
    every = [*range(1, 1 + len(balls))]
    only = [True if ball["name"] == "SGD" else "legendonly" for ball in balls]
    choice = {"one ball": only, "compare optimizers": True}
    moves = {label: [{"visible": visible}, every] for label, visible in choice.items()}
    reset = {"mode": "immediate", "frame": {"duration": 0}}
    rates = {f"{rate:.3f}": [[f"{rate} 0"], reset] for rate in RATES}
    layout = {
        **LOOK,
        "height": 640,
        "colorway": COLOURS,
        "xaxis": axis("weight 1", domain=[0, 0.49], range=[-2.5, 3.0]),
        "yaxis": axis("weight 2", range=[-2.6, 3.6]),
        "xaxis2": axis("step", domain=[0.63, 1], range=[0, STEPS]),
        "yaxis2": axis("loss", type="log", dtick=1, range=[-3.1, 2.3], anchor="x2"),
        "updatemenus": [start(opening), buttons(0.18, commands("restyle", moves))],
        "sliders": [slider("learning rate ", commands("animate", rates), RATES.index(opening))],
    }
    shown = [{**ball, "visible": visible} for ball, visible in zip(balls, only, strict=True)]
    every_frame = [frame for group in frames.values() for frame in group]
    return {"data": [landscape_map(), *shown], "layout": layout, "frames": every_frame}


def schedule_figure(opening: int = 100) -> Json:
    """Every shape of schedules.py over a run, with a slider for the warm-up."""
    shapes = [
        shape
        for shape in schedules.Schedule.__subclasses__()
        if shape.__module__ == schedules.__name__  # not those of whoever imports this
    ]
    steps = [*range(0, RUN_STEPS, 4), RUN_STEPS - 1]
    moves: Json = {}
    for warmup in WARMUPS:
        built = [shape(warmup_steps=warmup) for shape in shapes]
        factors = [torch.tensor([one.factor(n, RUN_STEPS) for n in steps]) for one in built]
        moves[str(warmup)] = [{"y": [short(factor) for factor in factors]}]
    layout = {
        **LOOK,
        "height": 460,
        "xaxis": axis(f"step (of {RUN_STEPS})"),
        "yaxis": axis("share of the peak rate", range=[0, 1.05]),
        "sliders": [slider("warm-up steps: ", commands("restyle", moves), WARMUPS.index(opening))],
    }
    heights = zip(shapes, moves[str(opening)][0]["y"], strict=True)
    data = [{"x": steps, "y": y, "mode": "lines", "name": shape.__name__} for shape, y in heights]
    return {"data": data, "layout": layout}


def word_figure() -> Json:
    """Left: training moves probability to the next word. Right: temperature, before training."""
    guess = torch.tensor(GUESS, dtype=torch.float64).log()
    logits = descend(guess, word_loss, SGD(0.5, momentum=0.0), torch.zeros(20, len(WORDS)))
    trained = [short(row.softmax(-1)) for row in logits]
    titles = [f"loss = -ln P(on) = {loss:.3f}" for loss in word_loss(logits)]
    changes = enumerate(zip(trained, titles, strict=True))
    steps = {str(n): [{"y": [y]}, {"xaxis.title.text": title}, [0]] for n, (y, title) in changes}
    warm = {heat: short(next_probabilities(logits[0], heat)) for heat in TEMPERATURES}
    heats = {str(heat): [{"y": [y]}, [1]] for heat, y in warm.items()}
    bars = {"type": "bar", "x": WORDS, "texttemplate": "%{y:.0%}", "textposition": "outside"}
    right = {"y": warm[1.0], "xaxis": "x2", "yaxis": "y2"}
    share = {"range": [0, 1.1], "tickformat": ".0%"}
    training = slider("training step ", commands("update", steps), len=0.46)
    heating = slider("temperature ", commands("restyle", heats), [*warm].index(1.0), len=0.46)
    layout = {
        "height": 440,
        "margin": {"t": 30},
        "xaxis": axis(titles[0], domain=[0, 0.46]),
        "yaxis": axis("probability", **share),
        "xaxis2": {"domain": [0.54, 1]},
        "yaxis2": {**share, "anchor": "x2"},
        "showlegend": False,
        "sliders": [training, {**heating, "x": 0.54}],
    }
    return {"data": [{**bars, "y": trained[0]}, {**bars, **right}], "layout": layout}


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">{mark}
<title>Training on a loss landscape</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; min-width: 900px; max-width: 1200px;
margin: 2em auto; padding: 0 1em; color: #222 }}</style>
<h1>Training on a loss landscape</h1>
<p>The ball is the model's current weights. It rolls downhill: green is low error, red is high.
Set a learning rate and press Start. 0.005 crawls; 0.03 to 0.05 is the sweet spot; at 0.100 it
jumps wildly: plain descent diverges above 2 / curvature, {edge:.4f} on the steep axis. Then
compare optimizers: all roll down the same slopes, shaken by the same noise, as batches do. Both
Adams have betas 0.9 and 0.999 and correct their bias; AdamW also pulls the weights towards 0, by
rate x 0.5 a step.</p>
{landscape}
<h2>Learning-rate schedules</h2>
<p>What multiplies the peak rate. A click in a legend hides a curve.</p>
{schedules}
<h2>From a guess to the next word</h2>
<p>After "The cat sat" the text goes on with "on". Left: each step of training moves probability
there, and the loss falls. Right: the scores before training, divided by a temperature: low is
confident, high is random.</p>
{words}
</html>
"""


def write_page() -> str:
    """The whole page as HTML, with plotly's own script in it."""
    from plotly.io import to_html

    figures = {"landscape": landscape_figure(), "schedules": schedule_figure()}
    figures["words"] = word_figure()
    fixed: Json = {"full_html": False, "auto_play": False, "validate": False}
    fixed["config"] = {"displaylogo": False, "responsive": True}
    parts = {
        name: to_html(figure, include_plotlyjs=name == "landscape", div_id=name, **fixed)
        for name, figure in figures.items()
    }
    return PAGE.format(mark=MARK, edge=2 / CURVATURES.max(), **parts)


def landscape(output: Path = Path("landscape.html")) -> None:
    """Write a web page, to be opened offline, on which a ball rolls down a loss landscape.

    Args:
        output: HTML file to write; one that this verb wrote before is replaced.
    """
    if output.exists() and not (output.is_file() and MARK.encode() in output.read_bytes()[:500]):
        raise ConfigError(f"--output {output} exists and is no landscape page; name another file")
    write_text(output, write_page())
    print(output)
