"""Any of parameters, tokens, FLOPs, hours and money -> the others, each with how it came about."""

import difflib
import math
from dataclasses import dataclass

from lmtemplate.errors import ConfigError
from lmtemplate.hardware import PEAK_TFLOPS, peak_flops

TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022, table 3
PASSES = 4.0  # over the same text, before new text is clearly better: Muennighoff et al. 2023
HOUR = 3600.0


def short(number: float) -> str:
    """7e9 -> "7B", 1.5e12 -> "1.5T": three figures."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def power(number: float) -> str:
    """4.2e22 -> "4.2e22": three figures."""
    return f"{number:.2e}".replace("e+", "e").replace(".00e", "e").replace("0e", "e")


def rate(speed: float) -> str:
    """FLOP/s: 4.96e14 -> "496 TFLOP/s", 4.3e10 -> "43 GFLOP/s"."""
    return f"{speed / 1e12:.3g} TFLOP/s" if speed >= 1e12 else f"{speed / 1e9:.3g} GFLOP/s"


def span(seconds: float) -> str:
    """9.2 -> "9.2 s", 1e6 -> "11.6 days"."""
    for size, unit in ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * size:
            digits = ",.0f" if seconds >= 100 * size else ".3g"
            return f"{seconds / size:{digits}} {unit}"
    return f"{seconds:.3g} s"


def training_flops(parameters: float, tokens: float) -> float:
    """6 N D: 2 forward, 4 backward, per parameter and token (Kaplan et al. 2020, section 2.1)."""
    return 6.0 * parameters * tokens


def estimated_loss(parameters: float, tokens: float) -> float:
    """Nats per token of MassiveText that a well-trained net comes to (Hoffmann et al. 2022,
    equation 10); fitted to nets of 70M parameters and more."""
    return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28


def gpu_peak(name: str) -> float:
    """16-bit FLOP/s of a GPU by its name. Raises ConfigError, with close names, if not known."""
    peak = peak_flops(name, "16")
    if peak is None:
        known = [" ".join(words) for words, _, _ in PEAK_TFLOPS]
        close = difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.5)
        raise ConfigError(
            f"--gpu {name!r} is not in the table; "
            + (f"close: {', '.join(close)}" if close else f"there are: {', '.join(known)}")
            + " (or give --speed, the FLOP/s that it reaches)"
        )
    return peak


@dataclass(frozen=True)
class Machine:
    """Devices that train together.

    Args:
        speed: FLOP/s that one of them reaches in training.
        how: where that figure is from.
        devices: how many.
        price_per_hour: of one of them, in any money.
    """

    speed: float
    how: str
    devices: int = 1
    price_per_hour: float | None = None

    def hours(self, flops: float) -> float:
        return flops / (self.speed * self.devices * HOUR)

    def money(self, flops: float) -> float | None:
        if self.price_per_hour is None:
            return None
        return self.hours(flops) * self.devices * self.price_per_hour

    def flops_for_hours(self, hours: float) -> float:
        return hours * HOUR * self.devices * self.speed

    def flops_for_money(self, money: float) -> float:
        """Raises ConfigError where no price is known."""
        if self.price_per_hour is None:
            raise ConfigError("--money buys nothing without a price; give --price_per_hour")
        return money / self.price_per_hour * HOUR * self.speed


@dataclass(frozen=True)
class Budget:
    """What is trained on how much, and why so."""

    parameters: float
    tokens: float
    parameters_how: str
    tokens_how: str

    @property
    def flops(self) -> float:
        return training_flops(self.parameters, self.tokens)


def _free(
    tokens: float | None, flops: float | None, ratio: float, fresh: float | None
) -> tuple[float, str]:
    """Tokens to train on where the net follows from them, and why so many."""
    if tokens is not None:
        return tokens, "as asked"
    best = math.inf if flops is None else math.sqrt(flops / 6 * ratio)
    if fresh is not None and best > PASSES * fresh:
        return PASSES * fresh, f"{PASSES:g} passes over the {short(fresh)} tokens of the text"
    if flops is None:
        raise ConfigError(
            "nothing to plan from; give --parameters, --tokens, --flops, --hours, --money or --data"
        )
    return best, f"{ratio:g} per parameter (Hoffmann et al. 2022), within the FLOPs"


def solve(
    parameters: float | None,
    tokens: float | None,
    flops: float | None,
    *,
    ratio: float = TOKENS_PER_PARAMETER,
    fresh: float | None = None,
    smallest: float = 0.0,
) -> Budget:
    """Balance model and data. Raises ConfigError where none or all three are given.

    Args:
        parameters: N, if chosen.
        tokens: D to train on, repeats included, if chosen.
        flops: 6 N D, if limited.
        ratio: D / N where one follows from the other.
        fresh: different tokens there are; None for any number. A D that is free stays within
            PASSES times as many.
        smallest: parameters below which a net that follows from its tokens does not fall.
    """
    if parameters is not None and tokens is not None:
        if flops is not None:
            raise ConfigError(
                "--parameters and --tokens already fix the FLOPs, and with them hours and money; "
                "drop one of the three"
            )
        return Budget(parameters, tokens, "as asked", "as asked")
    if parameters is not None and flops is not None:
        return Budget(parameters, flops / 6 / parameters, "as asked", "FLOPs / 6 / parameters")
    if tokens is not None and flops is not None:
        return Budget(flops / 6 / tokens, tokens, "FLOPs / 6 / tokens", "as asked")
    if parameters is not None:
        # as if the FLOPs were those of the best ratio
        free, how = _free(None, training_flops(parameters, ratio * parameters), ratio, fresh)
        return Budget(parameters, free, "as asked", how.removesuffix(", within the FLOPs"))
    free, how = _free(tokens, flops, ratio, fresh)
    if free / ratio >= smallest:
        return Budget(free / ratio, free, f"tokens / {ratio:g} (Hoffmann et al. 2022)", how)
    if flops is not None and training_flops(smallest, free) > flops:
        free, how = flops / 6 / smallest, "FLOPs / 6 / parameters"
    return Budget(smallest, free, "the smallest net that suits the vocabulary", how)
