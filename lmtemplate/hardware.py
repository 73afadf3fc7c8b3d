"""Device -> what it is, which precision suits it, and how fast it could be at best."""

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch

# Words in a GPU's name -> dense peak in TFLOP/s: 16-bit (float32 accumulation), float32; and GB of
# memory, where the name does not say them. From the makers' data sheets; the first entry counts one
# of whose choices stands in the name, in full.
PEAK_TFLOPS = [
    ("b300", 2250.0, 75.0, 288),
    ("b200", 2250.0, 75.0, 180),
    ("gb200", 2500.0, 80.0, 186),
    ("h200 nvl", 835.0, 60.0, 141),
    ("h100 nvl", 835.0, 60.0, 94),
    ("h100 pcie", 756.0, 51.0, 80),
    ("h200", 989.0, 67.0, 141),
    ("gh200", 989.0, 67.0, 96),
    ("h100|h800", 989.0, 67.0, 80),
    ("h20", 148.0, 44.0, 96),
    ("a100|a800", 312.0, 19.5, 80),
    ("a10g", 70.0, 35.0, 24),
    ("a10", 125.0, 31.2, 24),
    ("a30", 165.0, 10.3, 24),
    ("a40", 149.7, 37.4, 48),
    ("rtx 6000 ada", 364.2, 91.1, 48),
    ("a6000", 154.8, 38.7, 48),
    ("l40s", 362.0, 91.6, 48),
    ("l40", 181.0, 90.5, 48),
    ("l4", 121.0, 30.3, 24),
    ("t4", 65.0, 8.1, 16),
    ("v100", 125.0, 15.7, 16),
    ("rtx 5090", 209.5, 104.8, 32),
    ("rtx 5080", 112.6, 56.3, 16),
    ("rtx 4090", 165.2, 82.6, 24),
    ("rtx 4080", 97.5, 48.7, 16),
    ("rtx 3090", 71.0, 35.6, 24),
    ("rtx 3080", 59.5, 29.8, 10),
    ("mi355x", 2516.0, 157.3, 288),
    ("mi325x", 1307.0, 163.4, 256),
    ("mi300x", 1307.0, 163.4, 192),
    ("mi250x", 383.0, 95.7, 64),  # of each half, a device of its own
]


def _cpu_abilities() -> dict[str, object]:
    return getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch we allow


def device_name(device: torch.device) -> str:
    """What a person calls this device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return str(_cpu_abilities().get("cpu_name") or platform.processor() or "CPU")
    return {"mps": "Apple GPU"}.get(device.type, device.type)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, not by emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    able = _cpu_abilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def auto_precision(device: torch.device) -> str:
    """Lightning's name of the precision that suits the device: bf16-mixed, 16-mixed or 32-true."""
    if fast_bfloat16(device):
        return "bf16-mixed"
    return "16-mixed" if device.type == "cuda" else "32-true"


def missing_compiler(device: torch.device) -> str | None:
    """What torch.compile needs on this device and cannot find; None where nothing is missing."""
    on_cuda = device.type == "cuda"
    if on_cuda and importlib.util.find_spec("triton") is None:
        return "the package triton"
    variable, usual = ("CC", ("gcc", "clang")) if on_cuda else ("CXX", ("g++", "clang++"))
    known = [named] if (named := os.environ.get(variable)) else usual
    language = ["-x", "c"] if on_cuda else ["-x", "c++", "-std=c++20"]  # an old g++ has no C++20
    for path in filter(None, map(shutil.which, known)):
        check = [path, *language, "-fsyntax-only", os.devnull]
        if not subprocess.run(check, capture_output=True, check=False).returncode:
            return None
    return f"a compiler: {' or '.join(usual)}, or what {variable} names"


def auto_compile(device: torch.device, steps: int) -> bool:
    """Whether compiling pays; the same in a resume, so that it stays bitwise.

    On a GPU it takes 12 to 27 s and saves 10 ms a step or more. On a CPU (43 of 115 ms at 1.8M
    parameters) it has to be asked for: a kill amid compiling leaves a torn file in the compiler's
    cache, at which every later start fails.
    """
    if device.type != "cuda" or steps < 250 or missing_compiler(device):
        return False
    return torch.cuda.get_device_capability(device) >= (7, 0)  # Triton knows no GPU before Volta


def keep_compiled_code() -> None:
    """Let a second start find what the first has compiled, also after /tmp was emptied."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache/torchinductor"))


def keep_freed_memory() -> None:
    """Stop glibc from giving large freed blocks back to Linux, to ask for them again at each step.

    It saves 10,000 page faults and 15 % of a step of 1.8M parameters at a vocabulary of 4,096. Peak
    memory stays. A user who has set one of MALLOC_* has chosen already.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        ctypes.CDLL(None).mallopt(option, 2**30)


def peak_flops(name: str, precision: str) -> float | None:
    """Peak FLOP/s of a GPU at a precision (Lightning's name); None if it is not in the table."""
    words = set(name.lower().replace("-", " ").split())
    for choices, half, single, _ in PEAK_TFLOPS:
        if any(words.issuperset(choice.split()) for choice in choices.split("|")):
            return (half if "16" in precision else single) * 1e12
    return None
