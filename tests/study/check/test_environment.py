"""What is wrong with the environment is said with the variable or package, and with what to do."""

import errno
import importlib.metadata
import math
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from lmtemplate.study.check import environment


def lines(status: str, check: Callable[[], object]) -> list[str]:
    """What a check says of one status."""
    said: list[environment.Check] = list(check())  # type: ignore[call-overload]
    return [f"{one.subject}: {one.text}" for one in said if one.status == status]


def pretend(monkeypatch: pytest.MonkeyPatch, package: str, found: str | None) -> None:
    """Let a package be installed in this version, or not at all."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name != package:
            return real(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_what_the_tests_run_with_is_within_the_ranges() -> None:
    assert lines("problem", environment.versions) == []
    (packages,) = [
        line for line in lines("ok", environment.versions) if line.startswith("packages")
    ]
    assert f"torch {torch.__version__}" in packages
    assert f"PyYAML {yaml.__version__}" in packages


@pytest.mark.parametrize(
    ("package", "found", "message"),
    [
        ("lightning", "2.6.2", r"lightning: 2\.6\.2 was malware; .*'lightning<2\.7,>=2\.6\.6'"),
        ("lightning", "2.6.3", r"lightning: 2\.6\.3 was malware"),
        ("lightning", "2.6.5", r"lightning: 2\.6\.5; type: pip install"),
        ("lightning", "2.7.0", r"lightning: 2\.7\.0; type: pip install"),
        ("torch", "2.9.1+cu128", r"torch: 2\.9\.1\+cu128; type: pip install 'torch>=2\.10'"),
        ("tqdm", None, r"tqdm: not installed; type: pip install 'tqdm"),
    ],
)
def test_a_package_out_of_its_range_is_a_problem(
    package: str, found: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, package, found)
    (problem,) = lines("problem", environment.versions)
    assert re.search(message, problem)


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.platform, "python_version", lambda: "3.10.14")
    assert lines("problem", environment.versions) == ["python: 3.10.14; install one that is >=3.11"]


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    (warning,) = lines("warning", environment.threads)
    assert "4096 for" in warning


@pytest.mark.parametrize(
    ("visible", "seen", "status"),
    [("", 0, "warning"), ("0,1", 0, "problem"), ("0,7", 1, "problem"), ("1", 1, "ok")],
)
def test_hidden_devices_name_the_variable(
    visible: str, seen: int, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**30, 2**36))
    found = [line for line in lines(status, environment.devices) if line.startswith("GPU")]
    assert len(found) == (status != "ok")
    assert all("CUDA_VISIBLE_DEVICES" in line for line in found)
    gpus = [line for line in lines("ok", environment.devices) if line.startswith("cuda")]
    text = "NVIDIA H100 PCIe, bf16-mixed, 756 TFLOP/s at most, 1.0 of 64.0 GiB free"
    assert gpus == [f"cuda:{number}: {text}" for number in range(seen)]


def test_a_gpu_that_torch_cannot_see_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(environment.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    (warning,) = lines("warning", environment.devices)
    assert "torch sees no GPU" in warning


def test_a_probe_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.probe(tmp_path)
    assert list(tmp_path.iterdir()) == []

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        environment.probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ("tmp", "ok", "GB free"),
        (None, "ok", "GB free"),
        ("nowhere", "problem", "cannot be written"),
    ],
)
def test_the_temporary_folder_is_tried(
    asked: str | None,
    status: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.delenv("TMPDIR", raising=False)
    if asked is not None:
        monkeypatch.setenv("TMPDIR", str(tmp_path / asked))
    monkeypatch.setattr(environment, "TEMPORARY_BYTES", 0)
    (found,) = lines(status, environment.temporary)
    assert message in found


def test_little_temporary_room_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(environment, "TEMPORARY_BYTES", 2**80)
    assert "GB free; compiling may fail: set TMPDIR" in lines("warning", environment.temporary)[0]


def test_a_trial_step_starts_at_the_loss_of_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "TRIAL_BATCH", 1)
    monkeypatch.setattr(environment, "BLOCK", 8)
    monkeypatch.setattr(environment, "VOCABULARY", 50)
    (line,) = lines("ok", environment.trial_step)
    assert f"loss {math.log(50):.3f}" in line
    assert "1 x 8 tokens on" in line


def test_a_device_that_computes_nonsense_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "BLOCK", 8)
    monkeypatch.setattr(torch.Tensor, "item", lambda _: math.nan)
    (problem,) = lines("problem", environment.trial_step)
    assert "loss nan; NaN or inf" in problem
