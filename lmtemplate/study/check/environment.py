"""This machine -> checks: versions, devices, threads, encoding, TMPDIR, clock, one trial step.

Everything foreign is imported inside the check that needs it: a package that is missing or broken
is a problem to be told, not a crash.
"""

import importlib.metadata
import locale
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "problem"]

PACKAGE = Path(__file__).parents[1]
MALWARE = {"lightning": ("2.6.2", "2.6.3")}
LITTLE = 200_000_000  # bytes of temporary room that compiling and workers may want
BATCH, BLOCK, VOCABULARY = 16, 256, 4096  # of the trial step, as in a run of the defaults


@dataclass(frozen=True)
class Check:
    """What came of one, in a line: what was looked at, how it is, for a problem what to do."""

    status: Status
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.status:<8} {self.subject:<12} {self.text}"


def _requirements() -> tuple[str, list[str]]:
    """Range of Python, and of each package: of pyproject.toml, or of the installed package."""
    project = PACKAGE.parent / "pyproject.toml"
    if project.is_file():
        content = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return content["requires-python"], content["dependencies"]
    told = importlib.metadata.metadata("lmtemplate")
    needed = importlib.metadata.requires("lmtemplate") or []
    return told["Requires-Python"], [one for one in needed if "extra ==" not in one]


def versions() -> Iterator[Check]:
    """Python and every package against the ranges that the project states."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, needed = _requirements()
    fits = SpecifierSet(python).contains(platform.python_version(), prereleases=True)
    yield Check(
        "ok" if fits else "problem",
        "python",
        platform.python_version() + ("" if fits else f"; install one that is {python}"),
    )
    sound = []
    for requirement in map(Requirement, needed):
        name, wanted = requirement.name, f"'{requirement.name}{requirement.specifier}'"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check("problem", name, f"not installed; type: pip install {wanted}")
            continue
        if found in MALWARE.get(name, ()):
            advice = f"was malware; remove it, change the passwords and keys of {platform.node()}"
            yield Check("problem", name, f"{found} {advice}, and pip install {wanted}")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Check("problem", name, f"{found}; type: pip install {wanted}")
        else:
            sound.append(f"{name} {found}")
    yield Check("ok", "packages", ", ".join(sound))


def devices() -> Iterator[Check]:
    """Each device with the precision that suits it and its peak; GPUs that are not seen."""
    import torch

    from lmtemplate.hardware import auto_precision, device_name, peak_flops

    count = torch.cuda.device_count()
    for number in range(count):
        device = torch.device("cuda", number)
        name, precision = device_name(device), auto_precision(device)
        peak = peak_flops(name, precision)
        speed = f"{peak / 1e12:,.0f} TFLOP/s at most" if peak else "peak unknown, so no MFU"
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
        text = f"{name}, {precision}, {speed}, {free:.1f} of {total:.1f} GiB free"
        yield Check("ok", str(device), text)
    if torch.backends.mps.is_available():
        device = torch.device("mps")
        yield Check("ok", "mps", f"{device_name(device)}, {auto_precision(device)}")
    device = torch.device("cpu")
    yield Check("ok", "cpu", f"{device_name(device)}, {auto_precision(device)}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [one for one in visible.split(",") if one.strip()]
        if not named:
            yield Check("warning", "GPU", "CUDA_VISIBLE_DEVICES is empty, which hides every GPU")
        elif count < len(named):
            text = f"CUDA_VISIBLE_DEVICES={visible} names {len(named)} devices, torch sees {count}"
            yield Check("problem", "GPU", f"{text}; unset it, or name those of nvidia-smi -L")
    elif not count and shutil.which("nvidia-smi"):
        text = "nvidia-smi is here, but torch sees no GPU; install a torch built for its driver"
        yield Check("warning", "GPU", f"{text} ({torch.__version__} is for CPU or another)")


def threads() -> Iterator[Check]:
    """How many threads a step on the CPU takes, and who says so."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked is not None and not re.fullmatch(r"\s*[1-9]\d*\s*(,\s*[1-9]\d*\s*)*", asked):
        text = f"OMP_NUM_THREADS={asked!r} is not a number of threads; unset it, or set {cores}"
        yield Check("problem", "threads", text)
        return
    text = f"{torch.get_num_threads()} for {cores} cores"
    many = torch.get_num_threads() > (cores or 1)
    hint = "; more threads than cores are slower: lower OMP_NUM_THREADS" if many else ""
    yield Check("warning" if many else "ok", "threads", text + hint)


def encoding() -> Iterator[Check]:
    """Whether text of any language can be read, printed and named."""
    found = {
        "locale": locale.getpreferredencoding(False),
        "output": getattr(sys.stdout, "encoding", None) or "utf-8",
        "file names": sys.getfilesystemencoding(),
    }
    wrong = [f"{of} {name}" for of, name in found.items() if name.lower() not in ("utf-8", "utf8")]
    if wrong:
        yield Check("problem", "encoding", f"{', '.join(wrong)}; type: export PYTHONUTF8=1")
    else:
        yield Check("ok", "encoding", "UTF-8")


def probe(folder: Path) -> None:
    """Write, sync, rename and remove a file, as a checkpoint's write does. Raises OSError."""
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
    asked = os.environ.get("TMPDIR")
    try:
        folder = Path(tempfile.gettempdir())
        probe(folder)
    except OSError as error:
        text = f"no temporary folder can be written ({error.strerror}); set TMPDIR to one that can"
        yield Check("problem", "TMPDIR", text)
        return
    free = shutil.disk_usage(folder).free
    if asked and Path(asked).resolve() != folder.resolve():
        text = f"TMPDIR={asked} cannot be written, {folder} is used; set it to a folder that can"
        yield Check("problem", "TMPDIR", text)
    elif free < LITTLE:
        text = f"{folder} has {free / 1e6:,.0f} MB free; compiling may fail: set TMPDIR elsewhere"
        yield Check("warning", "TMPDIR", text)
    elif hasattr(os, "ST_NOEXEC") and os.statvfs(folder).f_flag & os.ST_NOEXEC:
        text = f"{folder} is noexec; compiling fails there: set TMPDIR, or --model.compile false"
        yield Check("warning", "TMPDIR", text)
    else:
        yield Check("ok", "TMPDIR", f"{folder}, {free / 1e9:,.1f} GB free")


def clock() -> Iterator[Check]:
    """Whether now is later than the code: logs and TensorBoard order by time."""
    newest = max(path.stat().st_mtime for path in PACKAGE.rglob("*.py"))
    ahead = newest - time.time()
    now = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    if ahead > 60:  # a file server's clock may differ a little
        text = f"{now}, {ahead / 3600:,.1f} h before the newest file of {PACKAGE}; set the clock"
        yield Check("problem", "clock", text)
    else:
        yield Check("ok", "clock", now)


def default_checkpoint_bytes() -> int:
    """Size of a checkpoint of the default model: weights and two moments, in float32."""
    import torch

    from lmtemplate.models.gpt import GPT

    with torch.device("meta"):
        parameters = GPT(VOCABULARY, BLOCK).parameter_count()
    return 12 * parameters


def _peak_memory(device_type: str) -> str:
    """Peak of this process so far, in words."""
    import torch

    if device_type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 1e6:,.0f} MB of the GPU"
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (1e6 if sys.platform == 'darwin' else 1e3):,.0f} MB with Python and torch"


def trial_step() -> Iterator[Check]:
    """One forward and backward of the default model: the first is slow, the second is timed."""
    import torch
    from torch.nn import functional as F

    from lmtemplate.models.gpt import GPT

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = GPT(VOCABULARY, BLOCK).to(device)
    tokens = torch.randint(VOCABULARY, (BATCH, BLOCK + 1), device=device)
    for _attempt in range(2):
        start = time.perf_counter()
        logits = net(tokens[:, :-1])  # (B, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        loss.backward()
        value = loss.item()  # waits for the device
        seconds = time.perf_counter() - start
    finite = all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    text = f"{BATCH} x {BLOCK} tokens on {device}: {seconds:.3f} s, loss {value:.3f}"
    if not (finite and 0 < value < 100):
        yield Check("problem", "step", f"{text}, not finite: the device or torch is broken")
    else:
        yield Check("ok", "step", f"{text}, memory {_peak_memory(device.type)}")
