"""The numbers of one training step -> lines for a terminal."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lmtemplate.study.understand.update import FORMULAS

LINE = 110
GRADIENT_HEAD = ("", "p", "onehot", "p - onehot")
Found = dict[str, Any]


def figure_of(value: float) -> str:
    """About four digits: "0.1234", "12.34", "1.2e-07"."""
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns, two spaces apart; the last one is not padded."""
    known = [list(row) for row in rows]
    widths = [max(len(row[n]) for row in known) for n in range(len(known[0]))] if known else []
    pairs = ([*zip(row, [*widths[:-1], 0], strict=True)] for row in known)
    return ["  " + "  ".join(cell.ljust(width) for cell, width in row) for row in pairs]


def numbers(values: Iterable[float]) -> str:
    return " ".join(map(figure_of, values))


def stage_rows(found: Found) -> Iterator[tuple[str, ...]]:
    """Stage by stage: name, formula, shape, the first numbers of its last row, its difference."""
    said = set[str]()
    for stage in found["stages"]:
        formula = "as above" if stage["formula"] in said else stage["formula"]
        said.add(stage["formula"])
        shape = " × ".join(map(str, stage["shape"]))
        difference = f"{stage['difference']:.0e}" if "difference" in stage else ""
        yield stage["name"], formula, shape, numbers(stage["last"]), difference


def prediction_rows(found: Found) -> Iterator[tuple[str, ...]]:
    """Place by place: the token read, the one that follows, its probability, -ln of that."""
    for token, row in zip(found["tokens"][:-1], found["predictions"], strict=True):
        top = ", ".join(f"{word!r} {share:.1%}" for word, share in row["top"])
        yield (
            repr(token),
            repr(row["next"]),
            figure_of(row["probability"]),
            f"{row['loss']:.3f}",
            top,
        )


def gradient_table(gradient: Found) -> Iterator[tuple[str, ...]]:
    """Token by token: p, onehot, p - onehot, and that over the number of places."""
    for token, p, onehot, difference, share in gradient["rows"]:
        yield repr(token), figure_of(p), f"{onehot:.0f}", f"{difference:+.4f}", figure_of(share)


def norm_rows(found: Found) -> Iterator[tuple[str, ...]]:
    for row in found["gradient_norms"]:
        yield row["layer"], f"{row['weights']:,}", figure_of(row["norm"]), figure_of(row["slope"])


def title_of(update: Found) -> str:
    place = ", ".join(map(str, update["place"]))
    return f"{update['parameter']}[{place}]"


def settings_of(update: Found) -> str:
    """The settings of its group that the formulas use, as they write them."""
    names = {"lr": "lr", "momentum": "mu", "weight_decay": "wd", "eps": "eps"}
    known = update["settings"]
    parts = [f"{short} {known[name]:.4g}" for name, short in names.items() if known.get(name)]
    if "betas" in known:
        parts.insert(1, "b1 {:g}, b2 {:g}".format(*known["betas"]))
    if update.get("t"):
        parts.append(f"t {update['t']}")
    return ", ".join(parts)


def update_rows(update: Found) -> Iterator[tuple[str, str]]:
    """One weight on its way through the optimizer: what, and its number."""
    values = dict(update["values"])
    if values["gradient"] != update["gradient_before_clipping"]:
        before = update["gradient_before_clipping"]
        yield "gradient, before clipping", figure_of(before)
    for name, value in values.items():
        long = name in ("weight", "after")
        yield FORMULAS[name], f"{value:.9f}" if long else figure_of(value)
        if name == "gradient":
            yield "  measured: (L(w + h) - L(w - h)) / 2h", figure_of(update["slope"])
    yield "w, after the optimizer of torch", f"{update['after_by_torch']:.9f}"
    if first := update.get("first_step"):
        yield "were it the first step of a run (t = 1): step", figure_of(first[0])
        yield "  and without bias correction", figure_of(first[1])
    if spectra := update.get("singular_values"):
        for name, spectrum in zip(("ahead / its norm", "O"), spectra, strict=True):
            ends = numbers((min(spectrum), max(spectrum)))
            yield f"singular values of {name}: smallest, largest", ends


def worked_lines(found: Found) -> Iterator[str]:
    example = found["worked_example"]
    yield 'First, by the same code, five made-up words after "The cat sat"; "on" follows:'
    yield from aligned([GRADIENT_HEAD, *(row[:4] for row in gradient_table(example))])
    yield f"  loss = -ln 0.20 = {example['loss']:.2f}"


def gradient_lines(found: Found) -> Iterator[str]:
    gradient, count = found["logit_gradient"], len(found["predictions"])
    read, follows = found["tokens"][gradient["place"] : gradient["place"] + 2]
    yield "4 Gradient at the logits, where the loss is largest: p - onehot"
    yield f"  after {read!r}, when {follows!r} follows; over {count} places for the mean loss"
    yield from aligned([(*GRADIENT_HEAD, f"/ {count}"), *gradient_table(gradient)])
    yield f"  over all {found['vocab_size']:,} tokens they add up to {gradient['sum']:.1e}"


def update_lines(found: Found) -> Iterator[str]:
    yield "6 Update: of each group of the optimizer, the weight with the largest gradient"
    for update in found["updates"]:
        yield f"  {title_of(update)} ({settings_of(update)})"
        yield from aligned((f"  {what}", value) for what, value in update_rows(update))


def after_lines(found: Found) -> Iterator[str]:
    after, count = found["after"], len(found["predictions"])
    before, now, foretold = (after[k] for k in ("loss_before", "loss_after", "foretold"))
    yield f"7 After the step: the loss of the same {count} tokens"
    yield f"  {before:.6f} -> {now:.6f}, which is {now - before:+.6f}"
    yield f"  gradient · movement, summed over all weights, foretold {foretold:+.6f}"


def difference_lines(found: Found) -> Iterator[str]:
    stages = {stage["name"] for stage in found["stages"]}
    yield "8 By hand and by torch: the largest difference"
    yield "  (as a share of the largest number of its kind, where that is above 1)"
    differences = found["differences"].items()
    yield from aligned((part, f"{how:.1e}") for part, how in differences if part not in stages)
    yield f"  of all: {found['largest_difference']:.1e}"


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, LINE, initial_indent="  ", subsequent_indent="  ")


def walk_through(found: Found) -> str:
    """The whole walk for a terminal."""
    net, optimizer = (found[key].rpartition(".")[2] for key in ("net", "optimizer"))
    loss, perplexity = found["loss"], found["perplexity"]
    parts: list[Iterable[str]] = [
        [f"One training step of {found['run']}, after step {found['step']:,}: {net}, {optimizer}"],
        (line for note in found["notes"] for line in wrapped(note)),
        ["", *worked_lines(found)],
        ["\n1 Tokens: each but the first is predicted from those before it"],
        wrapped(" ".join(map(repr, found["tokens"]))),
        ["\n2 Forward: stage, formula, shape, numbers of the last row, difference from torch"],
        aligned(stage_rows(found)),
        ["\n3 Predictions: token read, the next one, its probability p, -ln p, likeliest tokens"],
        aligned(prediction_rows(found)),
        [f"  loss = mean of -ln p = {loss:.4f} nats; perplexity = e^loss = {perplexity:.2f}"],
        ["", *gradient_lines(found)],
        ["\n5 Gradient norms: layer, weights, norm, slope measured along the gradient"],
        aligned(norm_rows(found)),
        [f"  all {figure_of(found['gradient_norm'])}"],
        ["", *update_lines(found)],
        ["", *after_lines(found)],
        ["", *difference_lines(found)],
    ]
    return "\n".join(line for part in parts for line in part)
