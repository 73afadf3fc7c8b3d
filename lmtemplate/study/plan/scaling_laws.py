"""Parameters, tokens, FLOPs -> loss, learning rate, batch and sizes of a net, by published fits."""

import math
from typing import TypedDict

from lmtemplate.errors import ConfigError


def estimated_loss(parameters: float, tokens: float) -> float | None:
    """1.69 + 406.4 / N^0.34 + 410.7 / D^0.28 nats per token (Hoffmann et al. 2022, equation 10).

    Fitted to well-trained nets of 70M to 16B parameters on MassiveText; None for smaller ones.
    """
    if parameters < 7e7:
        return None
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def adamw_lr(flops: float) -> float:
    """Peak learning rate of AdamW: 0.3118 C^-0.125 (Bi et al. 2024, equation 1)."""
    return 0.3118 * flops**-0.1250


def batch_tokens(flops: float) -> float:
    """Tokens of one step: 0.2920 C^0.3271 (Bi et al. 2024, equation 1)."""
    return 0.2920 * flops**0.3271


def vocabulary_for(parameters: float) -> int:
    """Ids that suit a net, a power of two: V ~ N^0.6.

    The line through quickstart (4,096 ids at 1.8M parameters) and GPT-2 (50,257 at 124M).
    """
    return 2 ** min(15, max(9, round(math.log2(4096 * (parameters / 1.8e6) ** 0.6))))


def block_size_for(parameters: float) -> int:
    """A context that suits a net of this size: 64 for quickstart's, 1,024 for GPT-2 small."""
    for most, block_size in ((2e6, 64), (1e7, 128), (3e7, 256), (1e8, 512), (1e9, 1024)):
        if parameters <= most:
            return block_size
    return 2048


def width_per_layer(parameters: float) -> float:
    """C / L: 32 at 1M parameters, doubled every two decades, at most 128.

    Between quickstart (128 / 4), GPT-2 small (768 / 12) and Llama 7B (4096 / 32). The loss depends
    on it only weakly (Kaplan et al. 2020, section 3.1).
    """
    return 32 * 2 ** min(2.0, max(0.0, (math.log10(parameters) - 6) / 2))


def parameter_count(vocab_size: int, n_layer: int, n_embd: int) -> int:
    """Of our GPT: 12 C^2 a layer, two tables of V x C, and C for the token shift."""
    return 12 * n_layer * n_embd**2 + 2 * vocab_size * n_embd + n_embd


class Sizes(TypedDict):
    """Sizes of our GPT, as its constructor names them."""

    n_layer: int
    n_head: int
    n_embd: int


def net_sizes(parameters: float, vocab_size: int) -> Sizes:
    """Depth, heads and width of our GPT in usual proportions, within 15 % of the parameters
    (25 % below two million).

    Widths are eighths of a power of two, and heads have 64 channels, 128 from a width of 2,048 on,
    as in GPT-2 and Llama; toys have heads of 8.
    Raises ConfigError where the vocabulary leaves fewer than 16 channels.
    """
    widths = [*range(16, 64, 8), 64, 128, 192, 256, 320, 384, 448]
    widths += [eighths * 2**power for power in range(6, 15) for eighths in range(8, 16)]

    def depth(width: int) -> int:
        tables = parameter_count(vocab_size, 0, width)
        return max(2, round((parameters - tables) / (12 * width**2)))

    def misfit(width: int) -> float:
        """How far the net is from the parameters, which count tenfold, and from usual proportions."""
        size = parameter_count(vocab_size, depth(width), width) / parameters
        shape = width / depth(width) / width_per_layer(parameters)
        return math.hypot(10 * math.log(size), math.log(shape))

    width = min(widths, key=misfit)
    if parameter_count(vocab_size, 2, widths[0]) > parameters:
        raise ConfigError(
            f"no net of {parameters:,.0f} parameters has a vocabulary of {vocab_size:,} ids; give "
            f"{parameter_count(vocab_size, 2, widths[0]):,} parameters or more, or a smaller "
            "vocabulary (lmtemplate prepare --vocab_size)"
        )
    head_size = 8 if width < 64 else 64 if width < 2048 else 128
    return {"n_layer": depth(width), "n_head": width // head_size, "n_embd": width}
