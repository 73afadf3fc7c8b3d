"""A run and a prompt -> the next token at each temperature, and whether its probabilities hold."""

import json as json_text
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

import torch

from lmtemplate.data.tokenizer import Tokenizer
from lmtemplate.errors import ConfigError, UserError
from lmtemplate.generate import encode_prompt, logits_to_probs
from lmtemplate.run_dir import to_json, write_text
from lmtemplate.study.diagnose.artifacts import Model, open_model, open_run_corpus
from lmtemplate.study.progress import pieces, progress_shown
from lmtemplate.study.show.page import label, plot_html, render, style_figure
from lmtemplate.study.show.plots import INK, SERIES
from lmtemplate.study.understand.snapshots import continuation
from lmtemplate.study.understand.tables import Found, TextTable, as_lines, as_table
from lmtemplate.study.understand.text_losses import calibrate, predict_text

SHOWN_TEMPERATURES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
LISTED = 12  # the likeliest next tokens that are shown
CALIBRATED_TOKENS = 16_384  # validation tokens whose predictions are looked at


def quoted(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token, in quotes; the number of one that has no text."""
    text = tokenizer.decode([token])
    return json_text.dumps(text, ensure_ascii=False) if text else f"<{token}>"


def heat_prompt(model: Model, prompt: str, max_new_tokens: int, seed: int) -> Found:
    """The likeliest tokens after a prompt, and what each temperature makes of them.

    Raises ConfigError for a prompt that is longer than the context.
    """
    net, tokenizer = model.net, model.tokenizer
    start = encode_prompt(tokenizer, prompt)
    if len(start) > net.block_size:
        raise ConfigError(
            f"--prompt has {len(start):,} tokens, and the net reads {net.block_size:,}; shorten it"
        )
    with torch.no_grad():
        logits = net(torch.tensor([start], device=next(net.parameters()).device))[0, -1].cpu()
    listed, rows = logits.topk(min(LISTED, len(logits))).indices, list[Found]()
    for one in pieces(SHOWN_TEMPERATURES, "samples at each temperature"):
        likely = logits_to_probs(logits, one)
        entropy = torch.special.entr(likely.double()).sum().item()
        text = continuation(net, tokenizer, prompt, max_new_tokens, temperature=one, seed=seed)
        row = {"temperature": one, "entropy": entropy, "choices": exp(entropy)}
        rows.append({**row, "probabilities": likely[listed].tolist(), "sample": text})
    tokens = [quoted(tokenizer, token) for token in listed.tolist()]
    return {"prompt": prompt, "step": model.step, "tokens": tokens, "temperatures": rows}


def add_calibration(found: Found, run: Path, model: Model) -> None:
    """Add what each temperature does to validation text; a reason where that is gone."""
    size = model.net.block_size
    try:
        inputs, targets, _ = open_run_corpus(run).batch("val", size, CALIBRATED_TOKENS // size + 1)
    except UserError as error:
        found["missing"] = str(error)
        return
    nats, confidence, correct = predict_text(model.net, inputs, targets, SHOWN_TEMPERATURES)
    for row, loss, sure in zip(found["temperatures"], nats, confidence, strict=True):
        row |= {"val_loss": float(loss.mean()), **calibrate(sure, correct)}
    found["val_tokens"] = len(correct)


def temperature_table(found: Found) -> TextTable:
    """A row for each temperature; entropy and loss are in nats."""
    columns = ("temperature", "entropy", "choices", "val_loss", "confidence", "calibration_error")
    return as_table(
        {
            **{name: row[name] for name in columns if name in row},
            "the_likeliest": [*zip(found["tokens"], row["probabilities"], strict=True)][:3],
        }
        for row in found["temperatures"]
    )


def calibration_words(found: Found) -> str:
    """What the columns on validation text say, in a sentence."""
    if "missing" in found:
        return f"not calibrated: {found['missing']}"
    known = found["temperatures"][SHOWN_TEMPERATURES.index(1.0)]
    best = min(found["temperatures"], key=lambda row: row["val_loss"])["temperature"]
    return (
        f"Of {found['val_tokens']:,} validation tokens, {known['accuracy']:.1%} are the likeliest "
        f"one at every temperature; at 1.0 the net expects {known['confidence']:.1%}, and its "
        f"expected calibration error is {known['calibration_error']:.1%}. The loss is lowest at "
        f"temperature {best}."
    )


def slider_figure(groups: Sequence[Sequence[dict[str, Any]]], height: int) -> Any:
    """For each temperature the traces that are seen while the slider stands there."""
    import plotly.graph_objects as go

    start, steps = SHOWN_TEMPERATURES.index(1.0), []
    owners = [place for place, group in enumerate(groups) for _ in group]
    for place, one in enumerate(SHOWN_TEMPERATURES):
        visible = [owner == place for owner in owners]
        steps.append({"label": f"{one}", "method": "restyle", "args": [{"visible": visible}]})
    traces = [trace for group in groups for trace in group]
    figure = go.Figure([{**t, "visible": o == start} for t, o in zip(traces, owners, strict=True)])
    style_figure(figure, height)
    slider = {"active": start, "steps": steps, "currentvalue": {"prefix": "temperature "}}
    figure.update_layout(sliders=[{**slider, "pad": {"t": 60}}], showlegend=False)
    return figure


def next_figure(found: Found) -> Any:
    """Bars of the likeliest tokens and of all others together, with a slider of temperatures."""
    labels = [*map(label, found["tokens"])]
    look: dict[str, Any] = {
        "type": "bar",
        "orientation": "h",
        "y": [*labels, "all others"],
        "marker": {"color": [SERIES[0]] * len(labels) + [INK]},
        "texttemplate": "%{x:.1%}",
        "textposition": "outside",
        "hovertemplate": "%{y} %{x:.3%}<extra></extra>",
    }
    shares = (
        [*p, max(0.0, 1 - sum(p))] for p in (row["probabilities"] for row in found["temperatures"])
    )
    figure = slider_figure([[{**look, "x": x}] for x in shares], 520)
    figure.update_xaxes(range=[0, 1.15], tickformat=".0%")
    figure.update_yaxes(autorange="reversed")
    return figure


def reliability_figure(found: Found) -> Any:
    """Share that was right over confidence; a point's area grows with its predictions."""
    dotted = {"mode": "lines", "line": {"color": INK, "dash": "dot"}}
    look: dict[str, Any] = {
        "mode": "lines+markers",
        "line": {"color": SERIES[0], "width": 1},
        "hovertemplate": "expected %{x:.1%}, right %{y:.1%} of %{customdata:,}<extra></extra>",
    }
    groups = []
    for one in found["temperatures"]:
        counts, sure, right = zip(*(row for row in one["bins"] if row[0]), strict=True)
        sizes = [5 + 40 * (count / found["val_tokens"]) ** 0.5 for count in counts]
        marker = {"size": sizes, "opacity": 0.8}
        curve = {**look, "x": sure, "y": right, "customdata": counts, "marker": marker}
        groups.append([{**dotted, "x": [0, 1], "y": [0, 1]}, curve])
    figure = slider_figure(groups, 560)
    axis = {"range": [0, 1.03], "tickformat": ".0%"}
    figure.update_xaxes(title="probability of the likeliest token", **axis)
    figure.update_yaxes(title="share that was right", **axis)
    return figure


def temperature(
    run: Path,
    prompt: str = "",
    max_new_tokens: int = 40,
    seed: int = 1337,
    checkpoint: str = "best",
    json: bool = False,
    allow: list[str] | None = None,
) -> None:
    """Show what temperature does to a model's next token, here and in RUN/temperature.html.

    Args:
        run: run directory.
        prompt: text whose next token is looked at; empty begins a new document.
        max_new_tokens: tokens of each sample.
        seed: of the samples.
        checkpoint: best, latest, or the path of a checkpoint.
        json: print one JSON object and nothing else.
        allow: packages outside lmtemplate whose classes the checkpoint may name.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"--max_new_tokens {max_new_tokens} has to be 1 or more")
    model = open_model(run, checkpoint, allow or ())
    with progress_shown(unless=json):
        found = heat_prompt(model, prompt, max_new_tokens, seed)
        add_calibration(found, run, model)
    table, says = temperature_table(found), calibration_words(found)
    samples = as_table(
        {"T": str(row["temperature"]), "sample": " ".join(f"{prompt}{row['sample']}".split())}
        for row in found["temperatures"]
    )
    parts = {
        "found": found,
        "calibration": says,
        "temperatures": table,
        "samples": samples,
        "next": plot_html(next_figure(found)),
        "reliability": "" if "missing" in found else plot_html(reliability_figure(found)),
    }
    page = run / "temperature.html"
    write_text(page, render("temperature", f"{run.resolve().name}: temperature", parts))
    if json:
        print(to_json(found))
        return
    title = f"the next token after {prompt!r} at step {found['step']:,}; entropy in nats"
    print(as_lines(title, [says], {"The next token": table, "Samples": samples}))
    print(f"\npage: {page}")
