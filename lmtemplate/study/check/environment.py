"""This environment -> checks: versions, devices, threads, TMPDIR, one trial step.

Packages are imported inside the check that needs them: one that is missing or broken is a problem
to report, not a crash.
"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "problem"]
SIGNS = {"ok": "✓", "warning": "!", "problem": "✗"}
PROJECT = Path(__file__).parents[3] / "pyproject.toml"
MALWARE = {"lightning": ("2.6.2", "2.6.3")}
TEMPORARY_BYTES = 200_000_000  # room that compiling and workers may need
TRIAL_BATCH, BLOCK, VOCABULARY = 16, 256, 4096  # of the trial step, as in a run of the defaults


@dataclass(frozen=True)
class Check:
    """Result of one check: its subject, what was found and, for a problem, what to do."""

    status: Status
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{SIGNS[self.status]} {self.subject:<11} {self.text}"


def judged(
    sound: bool, subject: str, text: str, advice: str, otherwise: Status = "problem"
) -> Check:
    """What was found, and the advice where it is not sound."""
    return Check("ok", subject, text) if sound else Check(otherwise, subject, f"{text}; {advice}")


def versions() -> Iterator[Check]:
    """Python and every package against the ranges that pyproject.toml states."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    wanted, found, sound = project["requires-python"], platform.python_version(), list[str]()
    fits = SpecifierSet(wanted).contains(found, prereleases=True)
    yield judged(fits, "python", found, f"install one that is {wanted}")
    for requirement in map(Requirement, project["dependencies"]):
        name, install = requirement.name, f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check("problem", name, f"not installed; type: {install}")
            continue
        if found in MALWARE.get(name, ()):
            advice = f"was malware; remove it, change the passwords and keys of {platform.node()}"
            yield Check("problem", name, f"{found} {advice}, and {install}")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Check("problem", name, f"{found}; type: {install}")
        else:
            sound.append(f"{name} {found}")
    yield Check("ok", "packages", ", ".join(sound))


def devices() -> Iterator[Check]:
    """Each device with its precision and peak; GPUs that torch does not see."""
    import torch

    from lmtemplate.hardware import auto_precision, device_name, peak_flops

    count = torch.cuda.device_count()
    for device in (torch.device("cuda", number) for number in range(count)):
        name, precision = device_name(device), auto_precision(device)
        peak = peak_flops(name, precision)
        speed = f"{peak / 1e12:,.0f} TFLOP/s at most" if peak else "peak unknown, so no MFU"
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        text = f"{name}, {precision}, {speed}, {free:.1f} of {total:.1f} GiB free"
        yield Check("ok", str(device), text)
    for kind in ["mps"] * torch.backends.mps.is_available() + ["cpu"]:
        device = torch.device(kind)
        yield Check("ok", kind, f"{device_name(device)}, {auto_precision(device)}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        yield Check("warning", "GPU", "CUDA_VISIBLE_DEVICES is empty, which hides every GPU")
    elif visible is not None and count < len(visible.split(",")):
        text = f"CUDA_VISIBLE_DEVICES={visible}, but torch sees {count} GPUs"
        yield Check("problem", "GPU", f"{text}; unset it, or name those of nvidia-smi -L")
    elif visible is None and not count and shutil.which("nvidia-smi"):
        text = "nvidia-smi is here, but torch sees no GPU; install a torch built for its driver"
        yield Check("warning", "GPU", f"{text} ({torch.__version__} is for CPU or another)")


def threads() -> Iterator[Check]:
    """Threads of a step on the CPU."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{torch.get_num_threads()} for {cores} cores"
    advice = "more threads than cores are slower: lower OMP_NUM_THREADS"
    yield judged(torch.get_num_threads() <= (cores or 1), "threads", text, advice, "warning")


def probe(folder: Path) -> None:
    """Write, sync, rename and remove a file, as the write of a checkpoint does. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=".probe-", dir=folder)
    path = Path(name)
    try:
        os.write(handle, b"lmtemplate")
        os.fsync(handle)
        path = path.rename(path.with_suffix(".renamed"))
    finally:
        os.close(handle)
        path.unlink()


def temporary() -> Iterator[Check]:
    """Where compilers and worker processes put files; checkpoints never pass through it."""
    folder = Path(os.environ.get("TMPDIR") or tempfile.gettempdir())
    try:
        probe(folder)
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror}); set TMPDIR to a folder that can"
        yield Check("problem", "TMPDIR", text)
        return
    free, advice = shutil.disk_usage(folder).free, "compiling may fail: set TMPDIR to another"
    text = f"{folder}, {free / 1e9:,.1f} GB free"
    yield judged(free >= TEMPORARY_BYTES, "TMPDIR", text, advice, "warning")


def trial_step() -> Iterator[Check]:
    """One forward and backward of the default GPT: the first is slow, the second is timed."""
    import torch
    from torch.nn import functional as F

    from lmtemplate.models.gpt import GPT

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = GPT(VOCABULARY, BLOCK).to(device)
    tokens = torch.randint(VOCABULARY, (TRIAL_BATCH, BLOCK + 1), device=device)
    for _ in range(2):
        start = time.perf_counter()
        logits = net(tokens[:, :-1])  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        value = loss.item()  # waits for the device
        seconds = time.perf_counter() - start
    finite = all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    text = f"the default GPT, {TRIAL_BATCH} x {BLOCK} tokens on {device}: {seconds:.3f} s, "
    text += f"loss {value:.3f}"
    sound = finite and 0 < value < 100
    yield judged(sound, "step", text, "NaN or inf: the device or torch is broken")


CHECKS = (versions, devices, threads, temporary, trial_step)
