"""Parameters, tokens, FLOPs, hours or money -> all the others, and a config that runs."""

import json as json_text
import shlex
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lmtemplate.errors import ConfigError
from lmtemplate.run_dir import write_text
from lmtemplate.study.plan.claims import claims_as_json, claims_as_text
from lmtemplate.study.plan.compute_budget import (
    LIMITS,
    MFU,
    Asked,
    Corpus,
    Settled,
    check_numbers,
    chosen_machine,
    read_corpus,
    settle,
)
from lmtemplate.study.plan.proposal import MUON_RATE, REPEATED, Proposal
from lmtemplate.study.plan.scaling_laws import (
    HOUR,
    PASSES,
    TOKENS_PER_PARAMETER,
    Machine,
    power,
    rate,
    short,
    span,
)

STATE_BYTES = 16  # of a parameter: weight, gradient and two moments in float32

Row = tuple[str, str, str]  # name, value, how it came about


def counted(devices: int) -> str:
    return f"{devices:,} device" + ("s" if devices > 1 else "")


def judged(per_parameter: float) -> str:
    """Tokens per parameter against the rule, which is no sharper than a factor of two."""
    best = TOKENS_PER_PARAMETER
    if per_parameter < best / 2:
        return f"undertrained: {best:g} would use the FLOPs best"
    if per_parameter > best * 2:
        return f"overtrained against {best:g}: dearer to train, cheaper to use"
    return f"near the {best:g} that use FLOPs best (Hoffmann et al. 2022)"


def budget_rows(asked: Asked, settled: Settled) -> list[Row]:
    """What it takes."""
    budget, run, machine = settled.budget, settled.proposal, settled.machine
    hours, money = machine.hours(budget.flops), machine.money(budget.flops)
    ratio, devices = budget.tokens / budget.parameters, counted(machine.devices)
    rows = [
        ("parameters", short(budget.parameters), budget.parameters_how),
        ("tokens", short(budget.tokens), budget.tokens_how),
        ("per parameter", f"{ratio:.3g}", judged(ratio)),
    ]
    if asked.corpus is not None and run.passes is not None:
        text = f"over the {short(asked.corpus.tokens)} tokens of {asked.corpus.path}"
        rows.append(("passes", f"{run.passes:.3g}", text))
    rows += [
        ("FLOPs", power(budget.flops), "6 x parameters x tokens (Kaplan et al. 2020)"),
        ("speed", rate(machine.speed), f"of one device: {machine.how}"),
        ("time", span(hours * HOUR), f"{hours:,.3g} hours: FLOPs / speed / {devices}"),
    ]
    if money is None:
        return [*rows, ("money", "-", "no --price_per_hour was given")]
    price = f"hours x {devices} x {machine.price_per_hour:g}"
    return [*rows, ("money", f"{money:,.0f}" if money >= 100 else f"{money:.2g}", price)]


def run_rows(run: Proposal) -> list[Row]:
    """What to train."""
    shape = run.shape
    tied = ", embedding tied to the head" if shape.tied else ""
    state = f"and activations: {STATE_BYTES} bytes a parameter (Rajbhandari et al. 2020)"
    return [
        ("n_layer", str(shape.n_layer), f"{short(shape.parameters)} parameters{tied}"),
        ("n_head", str(shape.n_head), f"of {shape.n_embd // shape.n_head} channels"),
        ("n_embd", str(shape.n_embd), "proportions between quickstart, GPT-2 and Llama"),
        ("vocab_size", f"{shape.vocab_size:,}", "ids"),
        ("block_size", f"{run.block_size:,}", "tokens"),
        ("batch_size", f"{run.batch_size:,}", f"sequences, {run.accumulate:,} times accumulated"),
        ("tokens_per_step", short(run.tokens_per_step), run.tokens_per_step_how),
        ("max_steps", f"{run.steps:,}", f"{run.warmup_steps:,} of them warm-up"),
        ("lr", f"{MUON_RATE:g}", "of Muon, in units of the matrix (Jordan et al. 2024)"),
        ("adamw_lr", f"{run.adamw_lr:.2g}", "0.3118 FLOPs^-0.125 (Bi et al. 2024)"),
        ("dropout", f"{run.dropout:g}", "0.1 where text repeats (Xue et al. 2023), else 0"),
        ("memory", f"{STATE_BYTES * shape.parameters / 1e9:.3g} GB", state),
    ]


def remarks(asked: Asked, settled: Settled) -> list[str]:
    """What a reader of the table should know besides."""
    flops, passes, said = settled.budget.flops, settled.proposal.passes or 0.0, list[str]()
    machine = settled.machine
    spent = {"flops": flops, "hours": machine.hours(flops), "money": machine.money(flops)}
    for name, value in spent.items():
        wanted = asked.limits.get(name)
        if wanted is not None and value is not None and value < 0.99 * wanted:
            said.append(
                f"{short(value)} of {short(wanted)} {name} are enough: the text is too small for "
                "more, hence a smaller model, more passes and dropout. If time is to spare, a "
                "larger net may still do better on the same text: compare."
            )
    if passes > PASSES * REPEATED:
        said.append(
            f"{passes:.3g} passes: beyond {PASSES:g} a text wears off (Muennighoff et al. 2023); "
            "get more text, or train a smaller model."
        )
    elif settled.proposal.repeated:
        said.append(
            f"Up to {PASSES:g} passes are nearly as good as new text (Muennighoff et al. 2023)."
        )
    if machine.devices > 1:
        said.append("Devices are taken to add up, and each holds the whole net.")
    return [
        *said,
        "An estimate. 6ND leaves attention out, the speed is taken as constant, validation, saving "
        "and failures come on top, and the rules were fitted to nets of 70M parameters and more.",
    ]


def as_text(asked: Asked, settled: Settled) -> str:
    """Two tables and the remarks."""
    parts = [budget_rows(asked, settled), run_rows(settled.proposal)]
    left, middle = (max(len(row[n]) for part in parts for row in part) for n in (0, 1))
    tables = [
        "\n".join(f"{name:<{left}}  {value:>{middle}}  {how}" for name, value, how in part)
        for part in parts
    ]
    return "\n\n".join([*tables, "\n".join(textwrap.fill(s, 100) for s in remarks(asked, settled))])


def as_json(asked: Asked, settled: Settled) -> str:
    """The same as strict JSON: figures unrounded."""
    budget, run, machine = settled.budget, settled.proposal, settled.machine
    hours, money = machine.hours(budget.flops), machine.money(budget.flops)
    cost = {"flops": budget.flops, "hours": hours, "money": money}
    derived = {name: getattr(run, name) for name in ("tokens_per_step", "warmup_steps", "dropout")}
    shape = {"n_head": run.shape.n_head, "parameters": run.shape.parameters}
    content = {
        "budget": asdict(budget) | cost,
        "machine": asdict(machine),
        "net": asdict(run.shape) | shape,
        "run": {name: value for name, value in asdict(run).items() if name != "shape"} | derived,
        "remarks": remarks(asked, settled),
    }
    return json_text.dumps(content, indent=2, allow_nan=False)


def check_output(output: Path, corpus: Corpus | None) -> None:
    """Raises ConfigError where a config cannot be written."""
    if corpus is None:
        raise ConfigError("--output needs --data: a config names the corpus it trains on")
    if output.exists():
        raise ConfigError(f"--output {output} exists and is not overwritten; name another file")


def command_line(given: dict[str, Any]) -> str:
    """The words that ask for the same again."""
    words = [
        word
        for name, value in given.items()
        if name not in ("output", "json")
        for word in (f"--{name}", f"{value:.12g}" if isinstance(value, float) else str(value))
    ]
    return shlex.join(["lmtemplate", "plan", *words])


def write_config(output: Path, asked: Asked, settled: Settled, command: str) -> None:
    """Write the run as a config that `lmtemplate fit` takes, with a note on top."""
    assert asked.corpus is not None
    path, run = asked.corpus.path, settled.proposal
    shown = {name: value for name, value, _ in budget_rows(asked, settled)}
    note = [
        f"{shown['parameters']} parameters on {shown['tokens']} tokens: planned, not yet tried.",
        "",
        f"  command   make train CONFIG={output}",
        f"  plan      {command}",
        f"  hardware  {counted(run.devices)}, {shown['speed']} each ({settled.machine.how})",
        f"  time      {shown['time']}, estimated",
        "  result    not measured yet",
    ]
    dumped = yaml.safe_dump(
        run.config(str(path), f"runs/{output.stem}"),
        sort_keys=False,
        default_flow_style=None,
        width=100,
    )
    write_text(output, "".join(f"{f'# {line}'.rstrip()}\n" for line in note) + dumped)


def answer(
    asked: Asked, machine: Machine, json: bool, output: Path | None, given: dict[str, Any]
) -> None:
    """Print what is asked for, and write the config if there is to be one."""
    if output is not None:
        check_output(output, asked.corpus)
    settled = settle(asked, machine)
    print(as_json(asked, settled) if json else as_text(asked, settled))
    if output is not None:
        write_config(output, asked, settled, command_line(given))
        print(f"{output} is written; next: make train CONFIG={output}", file=sys.stderr)


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Those that were not left at their defaults."""
    defaults = plan.__kwdefaults__ or {}
    return {name: value for name, value in flags.items() if value != defaults.get(name)}


def plan(
    *,
    parameters: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    hours: float | None = None,
    money: float | None = None,
    gpu: str | None = None,
    devices: int = 1,
    price_per_hour: float | None = None,
    mfu: float = MFU,
    speed: float | None = None,
    data: Path | None = None,
    block_size: int | None = None,
    vocab_size: int | None = None,
    tokens_per_parameter: float = TOKENS_PER_PARAMETER,
    output: Path | None = None,
    json: bool = False,
    claims: bool = False,
) -> None:
    """Turn any of parameters, tokens, FLOPs, hours and money into the others, and into a run.

    Args:
        parameters: of the net.
        tokens: to train on, repeats included.
        flops: to spend.
        hours: to spend, by the clock.
        money: to spend, in the currency of the price.
        gpu: a name such as h100 or "RTX 4090"; without it and --speed this machine is measured.
        devices: GPUs that train together.
        price_per_hour: of one device.
        mfu: share of the GPU's peak that training reaches.
        speed: FLOP/s that one device reaches in training, instead of --gpu.
        data: a prepared corpus: its vocabulary, and how many tokens there are.
        block_size: tokens of a sequence; chosen by size if not given.
        vocab_size: ids, where there is no corpus yet; chosen by size if not given.
        tokens_per_parameter: where one follows from the other.
        output: write the run as a config here; needs --data.
        json: print JSON.
        claims: print what the documents claim of cost and scale, our figures, and verdicts.
    """
    given = given_flags(locals())
    if claims:
        print(claims_as_json() if json else claims_as_text())
        return
    check_numbers(given, mfu)
    limits = {name: given[name] for name in LIMITS if name in given}
    corpus = read_corpus(data) if data is not None else None
    asked = Asked(limits, tokens_per_parameter, block_size, vocab_size, corpus)
    answer(asked, chosen_machine(gpu, speed, mfu, devices, price_per_hour), json, output, given)
