"""A budget of FLOPs, hours, tokens or parameters -> a table, and a config that spends it."""

import json as strict_json
import math
import shlex
import sys
import textwrap
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lmtemplate.errors import ConfigError
from lmtemplate.run_dir import to_json, write_text
from lmtemplate.study.plan import compute_budget as budgets
from lmtemplate.study.plan import scaling_laws as laws
from lmtemplate.study.plan.compute_budget import short, training_flops
from lmtemplate.study.plan.memory import MicroBatch, larger_gpus
from lmtemplate.study.run_files import duration

Figures = dict[str, Any]

SMALLEST = (2, 64)  # layers, width: a smaller net learns little more than pairs of tokens
FEWEST_STEPS = 500  # on quickstart's text 507 steps of 21 sequences beat 201 of 53
RECOMPUTING = 0.75  # of the speed is left with gradient checkpointing: a second forward pass

CONFIG = """\
# {parameters} parameters on {tokens} tokens: planned, not tried yet.
#
#   command   make train CONFIG={output}
#   plan      {command}
#   data      {ratio:.3g} tokens per parameter, {judged}: {best:g} use FLOPs best (Hoffmann et al. 2022){epochs}
#   cost      {flops:.3g} FLOPs = 6 x parameters x tokens (Kaplan et al. 2020)
#   speed     {device[speed]:.3g} FLOP/s of each device: {device[speed_how]}
#   time      {time} on {devices:,} x {device[name]}: {tokens_per_second:,.0f} tokens/s
#   memory    {memory:.3g} GB of {device_memory:.3g}, {state_memory:.3g} of them for weights, gradients and moments
#   loss      {loss}
{remarks}
run_dir: {run_dir}
data: {{path: {path}, block_size: {block_size}, batch_size: {batch_size}}}
model:
  net:  # {head_size} channels a head; proportions between quickstart, GPT-2 and Llama
    class_path: lmtemplate.models.GPT
    init_args: {init_args}
  optimizer:  # lr is in units of the matrix (Jordan et al. 2024), adamw_lr 0.3118 FLOPs^-0.125 (Bi et al. 2024)
    class_path: lmtemplate.optimizers.MuonAdamW
    init_args: {{lr: {lr}, adamw_lr: {adamw_lr}, weight_decay: 0.1, adamw_weight_decay: 0.1}}
  schedule:
    class_path: lmtemplate.schedules.WarmupCosine
    init_args: {{warmup_steps: {warmup_steps}, floor_ratio: 0.1}}
planned:  # for the card at the end
  class_path: lmtemplate.study.plan.planned.Planned
  init_args: {{tokens_per_second: {tokens_per_second:.4g}, val_loss: {val_loss}}}
tokens_per_step: {tokens_per_step}  # 0.2920 FLOPs^0.3271 (Bi et al. 2024), or less, so that there are about {fewest} steps
trainer: {{max_steps: {max_steps}, val_check_interval: {interval}, gradient_clip_val: 1.0, devices: {devices}}}
"""


def choose_net(
    flags: Figures, corpus: budgets.CorpusSize, flops: float | None
) -> tuple[laws.Sizes, int, int, float]:
    """Sizes of the net, its vocabulary, its parameters, and the tokens to train it on."""
    smallest = laws.parameter_count(corpus.vocab_size, *SMALLEST) if corpus.vocab_size else 0
    given = flags["parameters"], flags["tokens"], flops
    wanted, tokens = budgets.solve(*given, text_tokens=corpus.tokens, smallest=smallest)
    vocab_size = corpus.vocab_size or laws.vocabulary_for(wanted)
    net = laws.net_sizes(wanted, vocab_size)
    parameters = laws.parameter_count(vocab_size, net["n_layer"], net["n_embd"])
    if flags["tokens"] is None:  # as many as are paid for with this net, which is near the wanted
        most = math.inf if flags["parameters"] else budgets.EPOCHS * corpus.tokens
        tokens = min(most, budgets.solve(parameters, None, flops, text_tokens=corpus.tokens)[1])
    return net, vocab_size, parameters, tokens


def plan_training(
    flags: Figures, corpus: budgets.CorpusSize, device: budgets.TrainingDevice
) -> Figures:
    """Net, batch and steps for these flags of `plan`, each figure by its name in a config."""
    devices = flags["devices"]
    flops = flags["hours"] * 3600 * device.speed * devices if flags["hours"] else flags["flops"]
    net, vocab_size, parameters, tokens = choose_net(flags, corpus, flops)
    flops, epochs = training_flops(parameters, tokens), tokens / corpus.tokens
    block_size = flags["block_size"] or min(laws.block_size_for(parameters), corpus.longest)
    per_step = min(laws.batch_tokens(flops), tokens / FEWEST_STEPS)
    sequences = max(1, round(per_step / block_size / devices))
    least = MicroBatch(net, vocab_size, block_size, 1, True, device.width, device.on_cpu)
    fitting = least.split(sequences, device.memory)
    work = fitting or least
    accumulate = -(-sequences // work.batch_size)
    tokens_per_step = block_size * work.batch_size * accumulate * devices
    max_steps = max(1, round(tokens / tokens_per_step))
    return {
        "parameters": parameters,
        "tokens": tokens,
        "flops": flops,
        "hours": flops / device.speed / devices / 3600,
        "epochs": epochs or None,
        "val_loss": laws.estimated_loss(parameters, tokens),
        "tokens_per_second": device.speed * devices / training_flops(parameters, 1),
        "device": asdict(device),
        "devices": devices,
        "memory": work.memory.total,
        "state_memory": work.memory.state,
        "largest_that_fits": parameters if fitting else least.largest_net(device.memory),
        "fits": fitting is not None,
        "vocab_size": vocab_size,
        "net": {**net, "dropout": 0.1 if epochs > 1.05 else 0.0}
        | {"gradient_checkpointing": work.gradient_checkpointing},
        "block_size": block_size,
        "batch_size": work.batch_size,
        "accumulate": accumulate,
        "tokens_per_step": tokens_per_step,
        "max_steps": max_steps,
        "warmup_steps": min(2000, max_steps // 20),  # 2,000: Bi et al. 2024
        "lr": 0.02,  # of Muon, for every width: its updates have singular values near 1
        "adamw_lr": float(f"{laws.adamw_lr(flops):.2g}"),
    }


def plan_here(flags: Figures, corpus: budgets.CorpusSize) -> Figures:
    """The plan for the device that is asked for; the speed of this machine is measured."""
    device = budgets.find_device(flags["gpu"], flags["speed"])
    made = plan_training(flags, corpus, device)
    if not device.speed_how:
        for _ in range(3):  # the net depends on the speed, and vice versa
            before = made["net"]
            sizes = (made[key] for key in ("net", "vocab_size", "block_size", "batch_size"))
            speed, how = budgets.measure(*sizes)
            device = replace(device, speed=speed, speed_how=how)
            made = plan_training(flags, corpus, device)
            if made["net"] == before:
                break
    if made["fits"] and made["net"]["gradient_checkpointing"]:
        how = f"{device.speed_how}, less a quarter for computing each block twice"
        slower = replace(device, speed=RECOMPUTING * device.speed, speed_how=how)
        made = plan_training(flags, corpus, slower)
    return made


def remarks(made: Figures, flags: Figures) -> list[str]:
    """What else to know, the worst first."""
    said, device = list[str](), made["device"]
    if not made["fits"]:
        larger = larger_gpus(made["memory"])
        where = f"It would on {'; '.join(larger[:3])}" if larger else "No known GPU holds it"
        said.append(
            f"DOES NOT FIT: {made['memory'] / 1e9:,.4g} GB are needed on each device, for each holds "
            f"the whole net. {where}; on {device['name']} ({device['memory'] / 1e9:.3g} GB) about "
            f"{short(made['largest_that_fits'])} parameters do."
        )
    for name in ("flops", "hours"):
        if flags["tokens"] is None and made[name] < 0.99 * (flags[name] or 0.0):
            enough = f"{short(made[name])} of {short(flags[name])} {name} are enough"
            said.append(f"{enough}: the text is too small for more than {budgets.EPOCHS:g} epochs.")
    return [
        *said,
        "An estimate. 6ND leaves attention out, the speed is taken as constant, validation, saving "
        "and failures come on top, and the rules were fitted to nets of 70M parameters and more.",
    ]


def in_comment(*words: str) -> str:
    """Words of a shell in one line, whatever they hold."""
    return " ".join(shlex.join(words).splitlines())


def config_of(made: Figures, said: list[str], output: Path, data: Path) -> str:
    """The run as a config that `lmtemplate fit` takes, the reasons in its comments."""
    ratio, best, net = made["tokens"] / made["parameters"], budgets.RATIO, made["net"]
    judged = "undertrained" if 2 * ratio < best else "overtrained" if ratio > 2 * best else "near"
    loss, epochs = made["val_loss"], made["epochs"]
    beyond = ", beyond 4 new text is better" if epochs and epochs > 4.1 else ""
    texts = {
        **{name: short(made[name]) for name in ("parameters", "tokens")},
        **{name: made[name] / 1e9 for name in ("memory", "state_memory")},
        "device_memory": made["device"]["memory"] / 1e9,
        "epochs": f"; {epochs:.3g} epochs{beyond}" if epochs else "",
        "time": duration(made["hours"] * 3600),
        "loss": f"{loss:.2f} nats per token of web text (equation 10)"
        if loss
        else "not known below 70M parameters",
        "remarks": textwrap.fill("\n".join(said), 110, initial_indent="# ", subsequent_indent="# "),
        "output": in_comment(str(output)),
        "command": in_comment("lmtemplate", *sys.argv[1:]),
        "run_dir": strict_json.dumps(f"runs/{output.stem}"),
        "path": strict_json.dumps(str(data)),
        "init_args": strict_json.dumps(net),
        "val_loss": f"{loss:.2f}" if loss else "null",
        "interval": max(1, made["max_steps"] // 10),
        "head_size": net["n_embd"] // net["n_head"],
    }
    more = {"ratio": ratio, "best": best, "judged": judged, "fewest": FEWEST_STEPS}
    return CONFIG.format(**{**made, **texts, **more})


def check_flags(flags: Figures, corpus: budgets.CorpusSize) -> None:
    """Raises ConfigError for flags that contradict each other, and for numbers not above 0."""
    given = {name: value for name, value in flags.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, float | int) and value is not False and not 0 < value < math.inf:
            raise ConfigError(f"--{name} {value:g} has to be above 0")
    for one, other in (("hours", "flops"), ("data", "vocab_size")):
        if given.keys() >= {one, other}:
            raise ConfigError(f"--{one} and --{other} both say the same; keep one")
    if given.get("block_size", 1) > corpus.longest:
        longest = f"the splits of {given['data']} have room for {corpus.longest:,} tokens at most"
        raise ConfigError(f"--block_size {given['block_size']} is too long; {longest}")
    if "output" in given and "data" not in given:
        raise ConfigError("--output needs --data: a config names the corpus it trains on")
    if "output" in given and given["output"].exists():
        raise ConfigError(f"--output {given['output']} exists and is not overwritten")


def plan(
    *,
    parameters: float | None = None,
    tokens: float | None = None,
    flops: float | None = None,
    hours: float | None = None,
    gpu: str | None = None,
    devices: int = 1,
    speed: float | None = None,
    data: Path | None = None,
    block_size: int | None = None,
    vocab_size: int | None = None,
    output: Path | None = None,
    json: bool = False,
) -> None:
    """Turn any of parameters, tokens, FLOPs and hours into the others, and into a run that fits.

    Args:
        parameters: of the net.
        tokens: to train on, repeated ones included.
        flops: to spend.
        hours: to spend.
        gpu: a name such as h100, "a100 40gb" or "RTX 4090"; without it this machine is measured.
        devices: GPUs that train together, each with the whole net; their speeds are added up.
        speed: FLOP/s that one device reaches in training, if you know it.
        data: a prepared corpus: its vocabulary and number of tokens.
        block_size: tokens of a sequence; without it, one that suits the size of the net.
        vocab_size: ids, where there is no corpus yet; without it, a size that suits the net.
        output: write the config to this file, too; needs --data.
        json: print JSON, figures unrounded, instead of the config.
    """
    flags = dict(locals())
    corpus = budgets.read_corpus(data) if data else budgets.CorpusSize(vocab_size)
    check_flags(flags, corpus)
    made = plan_here(flags, corpus)
    said = remarks(made, flags)
    if output and not made["fits"]:
        raise ConfigError(said[0])
    text = config_of(made, said, output or Path("planned.yaml"), data or Path("data/NAME"))
    if output:
        write_text(output, text)
        print(
            f"{output} is written; next: make train CONFIG={shlex.quote(str(output))}",
            file=sys.stderr,
        )
    print(to_json(made | {"remarks": said}) if json else text)
