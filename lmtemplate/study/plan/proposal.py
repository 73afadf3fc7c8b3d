"""Parameters and tokens -> a net, a batch, rates and steps: a config that runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmtemplate.errors import ConfigError
from lmtemplate.study.plan.scaling_laws import Budget, short

SMALLEST = (2, 64)  # layers, width: below it our nets learn little more than pairs of tokens
TOLERANCE = 0.15  # of the parameters asked for
ACTIVATION_BYTES = 8e9  # of one micro-batch
MUON_RATE = 0.02  # Muon's unit, singular values near 1, does not depend on the width
DEVICES_PER_NODE = 8
WEIGHT_DECAY = 0.1  # Brown et al. 2020, appendix B
REPEATED = 1.05  # passes from which text counts as repeated
FEWEST_STEPS = 500  # on quickstart's text 507 updates of 21 sequences beat 201 of 53


def parameter_count(vocab_size: int, n_layer: int, n_embd: int, *, tied: bool = False) -> int:
    """Of our GPT: 12 C^2 a layer, one or two tables of V x C, and C for the token shift."""
    return 12 * n_layer * n_embd**2 + (1 if tied else 2) * vocab_size * n_embd + n_embd


def vocabulary_for(parameters: float) -> int:
    """Ids that suit a net, a power of two: V ~ N^0.6.

    The line through quickstart (4,096 ids at 1.8M parameters) and GPT-2 (50,257 at 124M).
    """
    suited = 4096 * (parameters / 1.8e6) ** 0.6
    return 2 ** min(15, max(9, round(math.log2(suited))))


def block_size_for(parameters: float) -> int:
    """A context that suits a net of this size: 64 for quickstart's, 1,024 for GPT-2 small."""
    for most, block_size in ((2e6, 64), (1e7, 128), (3e7, 256), (1e8, 512), (1e9, 1024)):
        if parameters <= most:
            return block_size
    return 2048


def head_size_for(n_embd: int) -> int:
    """Channels of a head: as in quickstart (32), GPT-2 (64) and Llama (128)."""
    for most, head_size in ((64, 16), (256, 32), (1024, 64)):
        if n_embd <= most:
            return head_size
    return 128


def width_per_layer(parameters: float) -> float:
    """C / L: 32 at 1M parameters, twice as much every two decades, 128 at most.

    Between quickstart (128 / 4), GPT-2 small (768 / 12) and Llama 7B (4096 / 32). The loss depends
    on it only weakly (Kaplan et al. 2020, section 3.1).
    """
    return 32 * 2 ** min(2.0, max(0.0, (math.log10(parameters) - 6) / 2))


@dataclass(frozen=True)
class Shape:
    """Sizes of our GPT."""

    vocab_size: int
    n_layer: int
    n_embd: int
    tied: bool

    @property
    def n_head(self) -> int:
        return self.n_embd // head_size_for(self.n_embd)

    @property
    def parameters(self) -> int:
        return parameter_count(self.vocab_size, self.n_layer, self.n_embd, tied=self.tied)


def _shapes(parameters: float, vocab_size: int) -> Iterator[Shape]:
    """For each depth the width, of whole heads, nearest to what the parameters come to."""
    for tied in (False, True):
        linear = (1 if tied else 2) * vocab_size + 1
        for n_layer in range(1, 201):
            square = 12 * n_layer
            root = (math.sqrt(linear**2 + 4 * square * parameters) - linear) / (2 * square)
            head_size = head_size_for(round(root))
            heads = max(1, round(root / head_size))
            yield Shape(vocab_size, n_layer, heads * head_size, tied)


def propose_shape(parameters: float, vocab_size: int) -> Shape:
    """The net nearest to the usual proportions, within 15 % of the parameters.

    Raises ConfigError where the vocabulary alone needs more.
    """
    ideal = width_per_layer(parameters)

    def badness(shape: Shape) -> float:
        shallow = 1.0 if shape.n_layer == 1 else 0.0
        off = abs(math.log(shape.parameters / parameters))
        return abs(math.log(shape.n_embd / shape.n_layer / ideal)) + 4 * off + shallow + shape.tied

    near = [
        shape
        for shape in _shapes(parameters, vocab_size)
        if abs(shape.parameters / parameters - 1) <= TOLERANCE
    ]
    if not near:
        least = parameter_count(vocab_size, 1, 16, tied=True)
        raise ConfigError(
            f"no net of {short(parameters)} parameters has a vocabulary of {vocab_size:,} ids: its "
            f"table alone takes {short(least)} and more; give more parameters, or a smaller "
            "vocabulary (lmtemplate prepare --vocab_size)"
        )
    return min(near, key=badness)


def adamw_rate(flops: float) -> float:
    """Peak learning rate of AdamW: 0.3118 C^-0.125 (Bi et al. 2024, equation 1)."""
    return 0.3118 * flops**-0.1250


def batch_tokens(flops: float) -> float:
    """Tokens of one update: 0.2920 C^0.3271 (Bi et al. 2024, equation 1)."""
    return 0.2920 * flops**0.3271


@dataclass(frozen=True)
class Proposal:
    """A run, ready to be written as a config."""

    shape: Shape
    block_size: int
    batch_size: int
    accumulate: int
    devices: int
    steps: int
    tokens_per_step_how: str
    adamw_lr: float
    passes: float | None  # over the text; None if it is not known how much there is

    @property
    def tokens_per_step(self) -> int:
        return self.block_size * self.batch_size * self.accumulate * self.devices

    @property
    def repeated(self) -> bool:
        return self.passes is not None and self.passes > REPEATED

    @property
    def dropout(self) -> float:
        """Worth it when text repeats (Xue et al. 2023), a brake when it does not."""
        return 0.1 if self.repeated else 0.0

    @property
    def warmup_steps(self) -> int:
        """A twentieth of the run, 2,000 (Bi et al. 2024) at most."""
        return min(2000, self.steps // 20)

    def config(self, path: str, run_dir: str) -> dict[str, Any]:
        """The settings of `lmtemplate fit`.

        Args:
            path: of the prepared corpus.
            run_dir: where the run leaves everything.
        """
        shape = self.shape
        fewest = -(-self.devices // DEVICES_PER_NODE)
        nodes = next(n for n in range(fewest, self.devices + 1) if self.devices % n == 0)
        net = {"n_layer": shape.n_layer, "n_head": shape.n_head, "n_embd": shape.n_embd}
        rates = {"lr": MUON_RATE, "adamw_lr": float(f"{self.adamw_lr:.2g}")}
        decay = {"weight_decay": WEIGHT_DECAY, "adamw_weight_decay": WEIGHT_DECAY}
        trainer: dict[str, Any] = {"max_steps": self.steps}
        trainer["val_check_interval"] = max(1, self.steps // 10)
        trainer.update(gradient_clip_val=1.0, devices=self.devices // nodes)
        return {
            "run_dir": run_dir,
            "data": {"path": path, "block_size": self.block_size, "batch_size": self.batch_size},
            "model": {
                "net": {
                    "class_path": "lmtemplate.models.GPT",
                    "init_args": {**net, "tied": shape.tied, "dropout": self.dropout},
                },
                "optimizer": {
                    "class_path": "lmtemplate.optimizers.MuonAdamW",
                    "init_args": rates | decay,
                },
                "schedule": {
                    "class_path": "lmtemplate.schedules.WarmupCosine",
                    "init_args": {"warmup_steps": self.warmup_steps, "floor_ratio": 0.1},
                },
            },
            "tokens_per_step": self.tokens_per_step,
            "trainer": trainer if nodes == 1 else trainer | {"num_nodes": nodes},
        }


def propose(
    budget: Budget,
    vocab_size: int,
    *,
    block_size: int | None = None,
    devices: int = 1,
    fresh: float | None = None,
) -> Proposal:
    """A run that spends the budget.

    Args:
        budget: parameters and tokens.
        vocab_size: V.
        block_size: T; None for one that suits the size.
        devices: that share a step.
        fresh: different tokens there are, if known.
    """
    shape = propose_shape(budget.parameters, vocab_size)
    block_size = block_size or block_size_for(budget.parameters)
    per_step, how = batch_tokens(budget.flops), "near 0.2920 FLOPs^0.3271 (Bi et al. 2024)"
    if per_step > budget.tokens / FEWEST_STEPS:
        per_step, how = budget.tokens / FEWEST_STEPS, f"so that there are {FEWEST_STEPS} steps"
    per_device = max(1, round(per_step / block_size / devices))
    # a block's activations (Korthikanti et al. 2022, equation 1, without attention's own)
    # and the logits with their gradient
    per_token = 34 * shape.n_embd * shape.n_layer + 8 * vocab_size
    fitting = max(1, int(ACTIVATION_BYTES / per_token / block_size))
    accumulate = -(-per_device // fitting)
    batch_size = -(-per_device // accumulate)
    updates = budget.tokens / (block_size * batch_size * accumulate * devices)
    return Proposal(
        shape,
        block_size,
        batch_size,
        accumulate,
        devices,
        max(1, round(updates)),
        how,
        adamw_rate(budget.flops),
        None if fresh is None else budget.tokens / fresh,
    )
