"""What is known of devices: peaks by name, precision by ability."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmtemplate import hardware
from lmtemplate.hardware import (
    auto_compile,
    auto_precision,
    device_name,
    missing_compiler,
    peak_flops,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA RTX A6000", 154.8),
        ("Tesla T4", 65),
        ("Tesla V100-SXM2-16GB", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_a_gpu_is_known_by_the_name_its_driver_gives(name: str, tflops: float) -> None:
    assert peak_flops(name, "bf16-mixed") == tflops * 1e12


@pytest.mark.parametrize(
    ("precision", "tflops"), [("bf16-mixed", 312), ("16-true", 312), ("32-true", 19.5)]
)
def test_the_peak_depends_on_the_precision(precision: str, tflops: float) -> None:
    assert peak_flops("NVIDIA A100-SXM4-40GB", precision) == tflops * 1e12


@pytest.mark.parametrize("name", ["", "Intel Xeon", "NVIDIA X9000", "NVIDIA H2000"])
def test_an_unknown_device_has_no_peak(name: str) -> None:
    assert peak_flops(name, "bf16-mixed") is None


def test_every_entry_of_the_table_can_be_found() -> None:
    for words, half, single in (
        (name, half, single)
        for names, half, single, _ in hardware.PEAK_TFLOPS
        for name in names.split("|")
    ):
        assert peak_flops(words, "16-mixed") == half * 1e12, words
        assert peak_flops(words, "32-true") == single * 1e12, words


@pytest.mark.parametrize("ability", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_with_fast_bfloat16_uses_it(ability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_cpu_abilities", lambda: {ability: True})
    assert auto_precision(CPU) == "bf16-mixed"


def test_a_cpu_without_fast_bfloat16_stays_at_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_cpu_abilities", dict)
    assert auto_precision(CPU) == "32-true"


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((7, 5), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")],
)
def test_a_gpu_uses_bfloat16_from_ampere_on(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert auto_precision(CUDA) == precision


def test_apples_gpu_stays_at_32_bits() -> None:
    assert auto_precision(torch.device("mps")) == "32-true"


@pytest.mark.parametrize(
    ("kind", "compiler", "capability", "steps", "compiles"),
    [
        ("cuda", True, (7, 0), 620, True),
        ("cuda", True, (9, 0), 620, True),
        ("cuda", True, (9, 0), 20, False),  # over before it is compiled
        ("cuda", True, (6, 1), 620, False),  # Triton knows no GPU before Volta
        ("cuda", False, (9, 0), 620, False),
        ("cpu", True, (9, 0), 620, False),
        ("cpu", True, (9, 0), 100_000, False),
        ("cpu", False, (9, 0), 100_000, False),
        ("mps", True, (9, 0), 100_000, False),
    ],
)
def test_a_net_is_compiled_where_the_run_is_long_enough(
    kind: str,
    compiler: bool,
    capability: tuple[int, int],
    steps: int,
    compiles: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "missing_compiler", lambda _: None if compiler else "g++")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert auto_compile(torch.device(kind), steps) == compiles


def test_compiled_code_stays_at_home_or_where_the_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    hardware.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{tmp_path}/.cache/torchinductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    hardware.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"


FAULTS = """
import os, resource, torch
from lmtemplate.hardware import keep_freed_memory
keep_freed_memory()
use = lambda: [torch.ones(4_000_000), torch.ones(2_000_000)]
for _ in range(10): use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    def faults(**more: str) -> int:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | more
        command = [sys.executable, "-c", FAULTS]
        return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)

    assert faults() < 100
    assert faults(MALLOC_TRIM_THRESHOLD_="0") > 1000  # the user's own choice wins


def test_every_device_has_a_name() -> None:
    assert device_name(CPU)
    assert device_name(torch.device("mps")) == "Apple GPU"


def test_a_torch_that_cannot_describe_the_cpu_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert auto_precision(CPU) == "32-true"
    assert device_name(CPU)


def test_a_compiler_is_looked_for_where_torch_looks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert missing_compiler(CPU) == "a compiler: g++ or clang++, or what CXX names"
    compiler = tmp_path / "my-g++"
    monkeypatch.setenv("CXX", str(compiler))
    for knows_the_standard, missing in ((0, False), (1, True)):
        compiler.write_text(f"#!/bin/sh\nexit {knows_the_standard}\n")
        compiler.chmod(0o755)
        assert (missing_compiler(CPU) is not None) == missing
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert missing_compiler(CUDA) == "the package triton"
