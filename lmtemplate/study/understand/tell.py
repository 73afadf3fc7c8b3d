"""The numbers of one training step -> tables of text, and lines for a terminal."""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lmtemplate.study.understand.update import FORMULAS

LINE = 110
GRADIENT_HEAD = ("", "p", "onehot", "p - onehot")
Found = dict[str, Any]
TextRows = list[tuple[str, ...]]
Shown = Callable[[str], str]  # how a token is written, so that its spaces can be seen


def figure_of(value: float) -> str:
    """About four digits: "0.1234", "12.34", "1.2e-07"."""
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns, two spaces apart; the last one is not padded."""
    known = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*known, strict=True)]
    pairs = ([*zip(row, [*widths[:-1], 0], strict=True)] for row in known)
    return ["  " + "  ".join(cell.ljust(width) for cell, width in row) for row in pairs]


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, LINE, initial_indent="  ", subsequent_indent="  ")


def stage_rows(found: Found) -> TextRows:
    """Stage by stage: name, formula, shape, mean and spread, numbers of the last row, difference."""
    return [
        (
            stage["name"],
            stage["formula"],
            " × ".join(map(str, stage["shape"])),
            f"{figure_of(stage['mean'])} ± {figure_of(stage['deviation'])}",
            " ".join(map(figure_of, stage["last"])),
            f"{stage['difference']:.0e}" if "difference" in stage else "",
        )
        for stage in found["stages"]
    ]


def prediction_rows(found: Found, shown: Shown) -> TextRows:
    """Place by place: token read, the next one, its probability, -ln of that, likeliest tokens."""
    rows: TextRows = []
    for token, row in zip(found["tokens"][:-1], found["predictions"], strict=True):
        top = ", ".join(f"{shown(word)} {share:.1%}" for word, share in row["top"])
        numbers = figure_of(row["probability"]), f"{row['loss']:.3f}"
        rows.append((shown(token), shown(row["next"]), *numbers, top))
    return rows


def gradient_rows(gradient: Found, shown: Shown) -> TextRows:
    """Token by token: p, onehot, p - onehot, and that over the number of places."""
    return [
        (shown(token), figure_of(p), f"{onehot:.0f}", f"{difference:+.4f}", figure_of(share))
        for token, p, onehot, difference, share in gradient["rows"]
    ]


def norm_rows(found: Found) -> TextRows:
    """Layer by layer: weights, norm of the gradient, slope measured along it."""
    return [
        (row["layer"], f"{row['weights']:,}", figure_of(row["norm"]), figure_of(row["slope"]))
        for row in found["gradient_norms"]
    ]


def update_title(update: Found) -> str:
    """Parameter and place, and the settings that the formulas use, as they write them."""
    names = {"lr": "lr", "momentum": "mu", "weight_decay": "wd", "eps": "eps"}
    known, t = update["settings"], update.get("t")
    parts = [f"{short} {known[name]:.4g}" for name, short in names.items() if known.get(name)]
    parts += ["b1 {:g}, b2 {:g}".format(*known["betas"])] if "betas" in known else []
    parts += [f"t {t}"] if t else []
    return f"{update['parameter']}[{', '.join(map(str, update['place']))}] ({', '.join(parts)})"


def update_rows(update: Found) -> Iterator[tuple[str, str]]:
    """One weight on its way through the optimizer: what, and its number."""
    if update["values"]["gradient"] != update["gradient_before_clipping"]:
        yield "gradient, before clipping", figure_of(update["gradient_before_clipping"])
    for name, value in update["values"].items():
        exact = name in ("weight", "after")
        yield FORMULAS[name], f"{value:.9f}" if exact else figure_of(value)
        if name == "gradient":
            yield "  measured: (L(w + h) - L(w - h)) / 2h", figure_of(update["slope"])
    yield "w, after the optimizer of torch", f"{update['after_by_torch']:.9f}"
    if first := update.get("first_step"):
        yield "were it the first step of a run (t = 1): step", figure_of(first[0])
        yield "  and without bias correction", figure_of(first[1])
    names = ("ahead / its norm", "O")
    for name, values in zip(names, update.get("singular_values", ()), strict=False):
        ends = f"{figure_of(min(values))} {figure_of(max(values))}"
        yield f"singular values of {name}: smallest, largest", ends


def forward_parts(found: Found) -> dict[str, Iterable[str]]:
    """Title -> lines, up to the loss."""
    example, first = found["worked_example"], dict[str, str]()
    for name, formula, *_ in reversed(stage_rows(found)):
        first[formula if found["by_hand"] else name] = name
    return {
        'First, by the same code, five made-up words after "The cat sat"; "on" follows': [
            *aligned([GRADIENT_HEAD, *(row[:4] for row in gradient_rows(example, repr))]),
            f"  loss = -ln 0.20 = {example['loss']:.2f}",
        ],
        "1 Tokens: each but the first is predicted from those before it": wrapped(
            " ".join(map(repr, found["tokens"]))
        ),
        "2 Forward: stage, formula, shape, mean ± spread, last row, difference from torch": aligned(
            (name, "as above" if first.get(formula, name) != name else formula, *cells)
            for name, formula, *cells in stage_rows(found)
        ),
        "3 Predictions: token read, the next one, its probability p, -ln p, likeliest tokens": [
            *aligned(prediction_rows(found, repr)),
            f"  loss = mean of -ln p = {found['loss']:.4f} nats; "
            f"perplexity = e^loss = {found['perplexity']:.2f}",
        ],
    }


def backward_parts(found: Found) -> dict[str, Iterable[str]]:
    """Title -> lines, from the gradient at the logits to the loss after the step."""
    gradient, count, after = found["logit_gradient"], len(found["predictions"]), found["after"]
    read, follows = found["tokens"][gradient["place"] : gradient["place"] + 2]
    change = after["loss_after"] - after["loss_before"]
    return {
        "4 Gradient at the logits, where the loss is largest: p - onehot": [
            f"  after {read!r}, when {follows!r} follows; over {count} places for the mean loss",
            *aligned([(*GRADIENT_HEAD, f"/ {count}"), *gradient_rows(gradient, repr)]),
            f"  over all {found['vocab_size']:,} tokens they add up to {gradient['sum']:.1e}",
        ],
        "5 Gradient norms: layer, weights, norm, slope measured along the gradient": [
            *aligned(norm_rows(found)),
            f"  all {figure_of(found['gradient_norm'])}",
        ],
        "6 Update: of each group of the optimizer, the weight with the largest gradient": (
            f"  {line}"
            for update in found["updates"]
            for line in (update_title(update), *aligned(update_rows(update)))
        ),
        f"7 After the step: the loss of the same {count} tokens": [
            f"  {after['loss_before']:.6f} -> {after['loss_after']:.6f}, which is {change:+.6f}",
            f"  gradient · movement, summed over all weights, foretold {after['foretold']:+.6f}",
        ],
    }


def walk_through(found: Found) -> str:
    """The whole step for a terminal."""
    net, optimizer = (found[key].rpartition(".")[2] for key in ("net", "optimizer"))
    stages = {stage["name"] for stage in found["stages"]}
    rest = [(k, f"{v:.1e}") for k, v in found["differences"].items() if k not in stages]
    parts = {
        f"One step of {found['run']}, after step {found['step']:,}: {net}, {optimizer}": [
            line for note in found["notes"] for line in wrapped(note)
        ],
        **forward_parts(found),
        **backward_parts(found),
        "8 By hand and by torch: the largest difference (as a share of numbers above 1)": [
            *aligned([*rest, ("of all", f"{found['largest_difference']:.1e}")]),
        ],
    }
    return "\n\n".join("\n".join((title, *lines)) for title, lines in parts.items())
