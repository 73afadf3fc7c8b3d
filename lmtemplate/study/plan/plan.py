"""A budget of FLOPs, hours, tokens or parameters -> a table, and a config that spends it."""

import json as strict_json
import math
import shlex
import sys
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lmtemplate.errors import ConfigError
from lmtemplate.models.gpt import GPT
from lmtemplate.run_dir import write_text
from lmtemplate.study.plan import compute_budget as budgets
from lmtemplate.study.plan import scaling_laws as laws
from lmtemplate.study.plan.compute_budget import CorpusSize, read_corpus, short
from lmtemplate.study.run_files import duration

ASSUMED_MFU = 0.4  # large runs reach 0.38 to 0.43 (Llama 3 405B: Llama Team 2024, table 4)
SMALLEST = (2, 64)  # layers, width: a smaller net learns little more than pairs of tokens
ACTIVATION_BYTES = 8e9  # of one micro-batch
FEWEST_STEPS = 500  # on quickstart's text 507 steps of 21 sequences beat 201 of 53

CONFIG = """\
# {shown[parameters]} parameters on {shown[tokens]} tokens: planned, not tried yet.
#
#   command   make train {setting}
#   plan      {command}
#   hardware  devices: {devices}, FLOP/s of each: {shown[speed]} ({speed_how})
#   time      {shown[time]}, estimated
#   result    not measured yet
run_dir: {run_dir}
data: {{path: {path}, block_size: {block_size}, batch_size: {batch_size}}}
model:
  net: {{class_path: lmtemplate.models.GPT, init_args: {net}}}
  optimizer:
    class_path: lmtemplate.optimizers.MuonAdamW
    init_args: {{lr: {lr}, adamw_lr: {adamw_lr}, weight_decay: 0.1, adamw_weight_decay: 0.1}}
  schedule:
    class_path: lmtemplate.schedules.WarmupCosine
    init_args: {{warmup_steps: {warmup_steps}, floor_ratio: 0.1}}
tokens_per_step: {tokens_per_step}
trainer:
  max_steps: {max_steps}
  val_check_interval: {val_check_interval}
  gradient_clip_val: 1.0
  devices: {devices}
"""


@dataclass(frozen=True)
class TrainingPlan:
    """A budget, and the run that spends it, named as in its config."""

    budget: budgets.Budget
    speed: float  # FLOP/s of one device
    speed_how: str
    devices: int
    hours: float
    epochs: float | None  # over the text; None without a corpus
    vocab_size: int
    net: laws.Sizes
    parameters: int
    block_size: int
    batch_size: int  # sequences of one micro-batch on one device
    accumulate: int  # micro-batches of a step
    tokens_per_step: int
    tokens_per_step_how: str
    max_steps: int
    warmup_steps: int
    lr: float
    adamw_lr: float
    dropout: float


def plan_training(
    flags: dict[str, Any], corpus: CorpusSize | None, speed: float, how: str
) -> TrainingPlan:
    """Net, batch and steps for these flags of `plan`, on devices of `speed` FLOP/s each."""
    flops, devices = flags["flops"], flags["devices"]
    if flags["hours"] is not None:
        flops = flags["hours"] * 3600 * speed * devices
    vocab_size = corpus.vocab_size if corpus else flags["vocab_size"]
    budget = budgets.solve(
        flags["parameters"],
        flags["tokens"],
        flops,
        ratio=flags["tokens_per_parameter"],
        text_tokens=corpus.tokens if corpus else math.inf,
        smallest=laws.parameter_count(vocab_size, *SMALLEST) if vocab_size else 0.0,
    )
    vocab_size = vocab_size or laws.vocabulary_for(budget.parameters)
    net = laws.net_sizes(budget.parameters, vocab_size)
    block_size = flags["block_size"] or laws.block_size_for(budget.parameters)
    block_size = min(block_size, corpus.longest) if corpus else block_size
    per_step, step_how = laws.batch_tokens(budget.flops), "0.2920 FLOPs^0.3271 (Bi et al. 2024)"
    if per_step > budget.tokens / FEWEST_STEPS:
        per_step, step_how = budget.tokens / FEWEST_STEPS, f"for at least {FEWEST_STEPS} steps"
    sequences = max(1, round(per_step / block_size / devices))
    # activations of the layers (Korthikanti et al. 2022, equation 1, without those of attention)
    # and the logits with their gradient
    token_bytes = 34 * net["n_embd"] * net["n_layer"] + 8 * vocab_size
    accumulate = -(-sequences // max(1, int(ACTIVATION_BYTES / token_bytes / block_size)))
    batch_size = -(-sequences // accumulate)
    tokens_per_step = block_size * batch_size * accumulate * devices
    max_steps = max(1, round(budget.tokens / tokens_per_step))
    hours = budget.flops / speed / devices / 3600
    epochs = budget.tokens / corpus.tokens if corpus else None
    return TrainingPlan(
        *(budget, speed, how, devices, hours, epochs, vocab_size, net),
        laws.parameter_count(vocab_size, net["n_layer"], net["n_embd"]),
        *(block_size, batch_size, accumulate, tokens_per_step, step_how, max_steps),
        warmup_steps=min(2000, max_steps // 20),  # 2,000: Bi et al. 2024
        lr=0.02,  # of Muon, for every width: its updates have singular values near 1
        adamw_lr=float(f"{laws.adamw_lr(budget.flops):.2g}"),
        dropout=0.1 if epochs and epochs > 1.05 else 0.0,
    )


def trial_net(plan: TrainingPlan) -> GPT:
    """The planned net, or a smaller one where timing it would take long."""
    largest = 3e8 if torch.accelerator.is_available() else 1e7
    if plan.parameters <= largest:
        return GPT(plan.vocab_size, plan.block_size, **plan.net)
    vocab_size = laws.vocabulary_for(largest)
    return GPT(vocab_size, plan.block_size, **laws.net_sizes(largest, vocab_size))


def rows_of(plan: TrainingPlan) -> list[tuple[str, str, str]]:
    """Name, value, reason: what the run takes, an empty row, what to train."""
    budget, net, devices = plan.budget, plan.net, plan.devices
    ratio, best = budget.tokens / budget.parameters, budgets.OPTIMAL_RATIO
    judged = "undertrained" if 2 * ratio < best else "overtrained" if ratio > 2 * best else "near"
    judged += f": {best:g} use the FLOPs best (Hoffmann et al. 2022)"
    loss = laws.estimated_loss(budget.parameters, budget.tokens)
    rows = [
        ("parameters", short(budget.parameters), budget.parameters_how),
        ("tokens", short(budget.tokens), budget.tokens_how),
        ("per parameter", f"{ratio:.3g}", judged),
        ("epochs", f"{plan.epochs or 0:.3g}", "tokens / tokens of the text"),
        ("loss", f"{loss:.2f}", "nats per token of web text (Hoffmann et al. 2022, equation 10)"),
        ("FLOPs", f"{budget.flops:.3g}", "6 x parameters x tokens (Kaplan et al. 2020)"),
        ("speed", f"{plan.speed:.3g}", f"FLOP/s of one device: {plan.speed_how}"),
        ("time", duration(plan.hours * 3600), f"FLOPs / speed / devices ({devices:,})"),
        ("", "", ""),
        ("n_layer", str(net["n_layer"]), f"{short(plan.parameters)} parameters"),
        ("n_head", str(net["n_head"]), f"of {net['n_embd'] // net['n_head']} channels"),
        ("n_embd", str(net["n_embd"]), "proportions between quickstart, GPT-2 and Llama"),
        ("vocab_size", f"{plan.vocab_size:,}", "ids"),
        ("block_size", f"{plan.block_size:,}", "tokens"),
        ("batch_size", f"{plan.batch_size:,}", f"sequences, {plan.accumulate:,} times accumulated"),
        ("tokens_per_step", short(plan.tokens_per_step), plan.tokens_per_step_how),
        ("max_steps", f"{plan.max_steps:,}", f"{plan.warmup_steps:,} of them warmup"),
        ("lr", f"{plan.lr:g}", "of Muon, in units of the matrix (Jordan et al. 2024)"),
        ("adamw_lr", f"{plan.adamw_lr:g}", "0.3118 FLOPs^-0.125 (Bi et al. 2024)"),
        ("dropout", f"{plan.dropout:g}", "0.1 where text repeats (Xue et al. 2023), else 0"),
        ("memory", f"{16e-9 * plan.parameters:.3g} GB", "weights, gradients, moments in float32"),
    ]
    unknown = {"epochs": plan.epochs is None, "loss": budget.parameters < 7e7}
    return [row for row in rows if not unknown.get(row[0])]


def remarks(plan: TrainingPlan, flags: dict[str, Any]) -> list[str]:
    """What else to know when reading the table."""
    said = [
        "An estimate. 6ND leaves attention out, the speed is taken as constant, validation, saving "
        "and failures come on top, and the rules were fitted to nets of 70M parameters and more."
    ]
    for name, spent in (("flops", plan.budget.flops), ("hours", plan.hours)):
        if spent < 0.99 * (flags[name] or 0.0):
            said.append(
                f"{short(spent)} of {short(flags[name])} {name} are enough: the text is too small "
                "for more, hence a smaller net, more epochs and dropout."
            )
    if plan.epochs and plan.epochs > 1.05 * budgets.EPOCHS:
        said.append(
            f"Beyond {budgets.EPOCHS:g} epochs, repeated text helps less and less (Muennighoff et "
            "al. 2023): get more text, or take a smaller net."
        )
    return said


def write_config(output: Path, plan: TrainingPlan, data: Path) -> None:
    """Write the run as a config that `lmtemplate fit` takes, with a note on top."""
    setting = shlex.quote(f"CONFIG={output}")
    values = asdict(plan) | {
        "shown": {name: value for name, value, _ in rows_of(plan)},
        "setting": setting,
        "command": shlex.join(["lmtemplate", *sys.argv[1:]]),
        "run_dir": strict_json.dumps(f"runs/{output.stem}"),
        "path": strict_json.dumps(str(data)),
        "net": strict_json.dumps({**plan.net, "dropout": plan.dropout}),
        "val_check_interval": max(1, plan.max_steps // 10),
    }
    write_text(output, CONFIG.format(**values))
    print(f"{output} is written; next: make train {setting}", file=sys.stderr)


def check_flags(flags: dict[str, Any], corpus: CorpusSize | None) -> None:
    """Raises ConfigError for flags that contradict each other, and for numbers not above 0."""
    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, float | int) and value is not False and not 0 < value < math.inf:
            raise ConfigError(f"--{name} {value:g} has to be above 0")
    if given["mfu"] > 1:
        raise ConfigError(f"--mfu {given['mfu']:g} is a share of the peak, at most 1")
    for one, other in (("hours", "flops"), ("gpu", "speed"), ("data", "vocab_size")):
        if given.keys() >= {one, other}:
            raise ConfigError(f"--{one} and --{other} both say the same; keep one")
    if corpus and given.get("block_size", 1) > corpus.longest:
        longest = f"the splits of {given['data']} have room for {corpus.longest:,} tokens at most"
        raise ConfigError(f"--block_size {given['block_size']} is too long; {longest}")
    if "output" in given and corpus is None:
        raise ConfigError("--output needs --data: a config names the corpus it trains on")
    if "output" in given and given["output"].exists():
        raise ConfigError(f"--output {given['output']} exists and is not overwritten")


def plan_here(flags: dict[str, Any], corpus: CorpusSize | None) -> TrainingPlan:
    """The plan for the speed that is given, that of a GPU, or the one measured on this machine."""
    if gpu := flags["gpu"]:
        speed, how = flags["mfu"] * budgets.gpu_peak(gpu), f"ASSUMED_MFU {flags['mfu']:g} of {gpu}"
        return plan_training(flags, corpus, speed, how)
    made = plan_training(flags, corpus, flags["speed"] or 1e11, "as asked")
    for _ in range(0 if flags["speed"] else 3):  # the net depends on the speed, and vice versa
        before = made.net
        made = plan_training(flags, corpus, *budgets.measure(trial_net(made), made.batch_size))
        if made.net == before:
            break
    return made


def show(made: TrainingPlan, said: list[str], as_json: bool) -> None:
    """Print the plan as a table with remarks below it, or as strict JSON."""
    if as_json:
        print(strict_json.dumps(asdict(made) | {"remarks": said}, indent=2, allow_nan=False))
        return
    rows = rows_of(made)
    first, second = (max(len(row[n]) for row in rows) for n in (0, 1))
    for name, value, reason in rows:
        print(f"{name:<{first}}  {value:>{second}}  {reason}".rstrip())
    print("\n" + "\n".join(textwrap.fill(remark, 100) for remark in said))


def plan(
    *,
    parameters: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    hours: float | None = None,
    gpu: str | None = None,
    devices: int = 1,
    mfu: float = ASSUMED_MFU,
    speed: float | None = None,
    data: Path | None = None,
    block_size: int | None = None,
    vocab_size: int | None = None,
    tokens_per_parameter: float = budgets.OPTIMAL_RATIO,
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Turn any of parameters, tokens, FLOPs and hours into the others, and into a run.

    Args:
        parameters: of the net.
        tokens: to train on, repeated ones included.
        flops: to spend.
        hours: to spend.
        gpu: a name such as h100 or "RTX 4090"; without it and --speed this machine is measured.
        devices: GPUs that train together, each with the whole net; their speeds are added up.
        mfu: share of the peak of --gpu that training reaches; small nets reach less.
        speed: FLOP/s that one device reaches in training, instead of --gpu.
        data: a prepared corpus: its vocabulary and number of tokens.
        block_size: tokens of a sequence; without it, one that suits the size of the net.
        vocab_size: ids, where there is no corpus yet; without it, a size that suits the net.
        tokens_per_parameter: ratio where one follows from the other.
        output: write the run as a config to this file; needs --data.
        json: print JSON, figures unrounded.
    """
    flags = dict(locals())
    corpus = read_corpus(data) if data else None
    check_flags(flags, corpus)
    made = plan_here(flags, corpus)
    show(made, remarks(made, flags), json)
    if output and data:
        write_config(output, made, data)
