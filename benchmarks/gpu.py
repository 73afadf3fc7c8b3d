"""One GPU -> speed, time to loss and right numbers on it, beside nanoGPT; one table at the end.

    make bench BENCH=gpu ARGS="--nanogpt ../nanoGPT --data enwik8"   # all rows, under 10 minutes on an H200
    make bench BENCH=gpu ARGS="--only quickstart syncs"              # some of them
    make bench BENCH=gpu ARGS="--nanogpt ../nanoGPT --dry"           # toy sizes, on any machine

Each row is one or more processes with a time limit; one that fails says why and stops no other.
With --notes the lab notes of configs/gpt2_124m.yaml get what was measured.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.against_nanogpt import ROOT, prepare, train_nano, train_ours
from benchmarks.gpu_session import TOY, NotRunError, Session, printed
from lmtemplate.checkpoint import files
from lmtemplate.record import LINES, read_record

NOTES = ROOT / "configs" / "gpt2_124m.yaml"
NANO_LARGE = "--gradient_accumulation_steps=1 --eval_interval=100000 --eval_iters=1 --dropout=0.0"
NANO_ENWIK8 = "config/train_shakespeare_char.py --eval_iters=20 --dropout=0.0"


def ceiling(session: Session) -> str:
    shown = session.run("-m", "benchmarks.gpu_work", "ceiling", session.size(8192, 256))
    session.found["ceiling"] = printed("ceiling", shown)
    return f"{session.found['ceiling'] / 1e12:.0f} TFLOP/s"


def nanogpt_124m(session: Session) -> str:
    _ = session.random_tokens
    shown = session.nano(f"{NANO_LARGE} --max_iters={session.size(100, 20)}")
    times = [float(ms) / 1000 for ms in re.findall(r"^iter .* time ([\d.]+)ms", shown, re.M)]
    per_step = session.size(32 * 1024, 32)
    rate = per_step / statistics.median(times[len(times) // 2 :])
    text = session.figure(rate, per_step, shown)
    session.found["nanogpt_124m"] = rate
    return text


def gpt2_124m(session: Session) -> str:
    return session.speed("gpt2_124m", session.random_tokens, steps=session.size(100, 10))


def batch_64(session: Session) -> str:
    batch = f"--data.batch_size={session.size(64, 4)}"
    return session.speed("batch_64", session.random_tokens, batch, steps=session.size(50, 10))


def accumulate_8(session: Session) -> str:
    more = "--trainer.accumulate_grad_batches=8"
    return session.speed("accumulate_8", session.random_tokens, more, steps=session.size(20, 5))


def gpt_muon(session: Session) -> str:
    more = ["--model.net=GPT", "--model.net.n_layer=12", "--model.net.n_head=12"]
    more += ["--model.net.n_embd=768", "--model.optimizer=MuonAdamW"]
    toy = TOY if session.dry else []  # the new net starts from its own sizes
    text = session.speed(
        "gpt_muon", session.random_tokens, *more, *toy, steps=session.size(100, 10)
    )
    other = session.found.get("gpt2_124m")
    return text + (f", {session.found['gpt_muon'] / other:.2f}x GPT2 with AdamW" if other else "")


def quickstart(session: Session) -> str:
    """`make train` twice: from an empty cache of compiled code, and from a full one."""
    steps, told = session.size(620, 10), list[str]()
    more = ["--report=true", f"--trainer.val_check_interval={session.size(124, 5)}"]
    for name in ("cold", "warm"):
        start = time.monotonic()
        run, _ = session.fit(name, session.with_checkpoints, *more, steps=steps)
        told.append(f"{time.monotonic() - start:.0f} s {name}")
    summary = json.loads((run / "summary.json").read_text())
    rate = session.found["quickstart"] = summary["tokens_per_second"]
    step = 1000 * summary["tokens"] / summary["step"] / rate
    return f"{rate:,.0f} tokens/s, {step:.2f} ms a step; all of it in {', '.join(told)}"


def tax(session: Session) -> str:
    """What fit adds to a plain loop over the same batches, for a small net and a large one."""
    told, toy = list[str](), TOY if session.dry else []
    for name, flags, tokens in (
        ("quickstart", session.quick, 16 * 64),
        ("gpt2_124m", session.random_tokens, session.size(32 * 1024, 32)),
    ):
        if name not in session.found:
            raise NotRunError(f"needs the row {name}")
        steps = session.size(100, 30)
        own = [flag for flag in flags if not flag.startswith("--allow")]  # a word of the verb
        words = [*own, f"--trainer.max_steps={steps}", *toy]
        shown = session.run("-m", "benchmarks.gpu_work", "plain", steps, *words)
        plain, ours = 1000 * printed("plain", shown), 1000 * tokens / session.found[name]
        told.append(f"{name} {ours - plain:+.2f} ms over {plain:.2f}")
    return "; ".join(told)


def enwik8(session: Session) -> str:
    """nanoGPT's steps, and half as many of the config's; who has which loss after which time."""
    if session.nanogpt is None or session.data is None:
        raise NotRunError("needs --nanogpt and --data")
    folder, steps = session.folder / "enwik8", session.size(4000, 20)
    folder.mkdir()
    bits = prepare(
        session.data, folder, "--tokenizer=byte", "--val_ratio=0.05", "--test_ratio=0.05"
    )
    flags, more = NANO_ENWIK8, ["--config=configs/enwik8.yaml", "--report=false"]
    if session.dry:
        flags += " --device=cpu --compile=False --n_layer=2 --n_head=2 --n_embd=32 --batch_size=2"
        more += [*TOY, "--data.max_val_blocks=8", "--data.batch_size=2"]
    blocks = session.size(2000, 8)
    nano = train_nano(session.nanogpt, folder, flags, steps, blocks, session.limit)
    ours = train_ours(folder, "run", *more, steps=steps // 2, limit=session.limit)
    _, loss, seconds = ours.validations[-1]
    text = f"ours {loss * bits:.4f} bits per byte after {seconds:.0f} s ({ours.whole:.0f} in all)"
    return f"{text}; nanoGPT {nano.loss * bits:.4f} after {nano.training:.0f} ({nano.whole:.0f})"


def text_124m(session: Session) -> str:
    raise NotRunError("longer than this call: 124M on a large text of yours, both for some hours")


def syncs(session: Session) -> str:
    """Waits for the GPU from one logging step to the next, with a NaN in one gradient."""
    first, last = (210, 290) if not session.dry else (11, 19)
    more = [f"--trainer.log_every_n_steps={session.size(100, 10)}", "--allow=benchmarks"]
    more += ["--trainer.callbacks+=benchmarks.gpu_work.CountSyncs"]
    more += [f"--trainer.callbacks.first={first}", f"--trainer.callbacks.last={last}"]
    _, shown = session.fit("syncs", session.quick, *more, steps=session.size(300, 20))
    told = [line for line in shown.splitlines() if line.startswith(("syncs", "finite"))]
    return f"{'; '.join(told)}; {shown.count('update skipped')} updates skipped"


def precision(session: Session) -> str:
    """bf16-mixed against 32-true: the curves of quickstart's first steps."""
    records = []
    for kind in ("bf16-mixed", "32-true"):
        more = f"--trainer.precision={kind}"
        run, _ = session.fit(kind, session.quick, more, steps=session.size(250, 10))
        records.append(read_record(run))
    half, full = records
    apart = np.abs(half.train_loss - full.train_loss).max()
    last = f"validation {half.val_loss[-1]:.4f} and {full.val_loss[-1]:.4f}"
    return f"{last}, training at most {apart:.4f} apart"


def resume(session: Session) -> str:
    """SIGTERM in the middle, compiled, and on: are the weights those of the run left alone?"""
    flags, steps = session.with_checkpoints, session.size(1500, 60)
    whole, _ = session.fit("whole", flags, steps=steps)
    stopped = session.folder / "stopped"
    words = session.words(stopped, flags, steps)
    command = [sys.executable, "-m", "lmtemplate", "fit", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    record, end = stopped / "checkpoints" / LINES, time.monotonic() + session.limit
    try:
        while time.monotonic() < end and process.poll() is None:
            if record.exists() and len(record.read_bytes().splitlines()) > 5:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.02)
        code = process.wait(session.limit)
    finally:
        process.kill()  # if it did not end by itself
    step = read_record(stopped).steps[-1]
    session.fit("stopped", flags, "--resume=must", steps=steps)
    paths = [run / "checkpoints" / files.file_name(steps) for run in (whole, stopped)]
    one, other = (files.read(path)["state_dict"] for path in paths)
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    same = f"{sum(torch.equal(one[name], other[name]) for name in one)} of {len(one)} tensors equal"
    return f"exit {code} at step {step:,} of {steps:,}; {same}, at most {apart:.2g} apart"


def out_of_memory(session: Session) -> str:
    """A batch that no GPU holds: its exit code and its line."""
    more = ["--data.batch_size=50000", "--model.net.n_embd=1024", "--model.net.n_head=16"]
    more += ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    words = ["fit", *session.quick, f"--run_dir={session.folder / 'oom'}", *more]
    if session.dry:
        return session.run("-m", "lmtemplate", *words, *TOY, "--data.batch_size=1e9", code=2)[-200:]
    return f"exit 6: {session.run('-m', 'lmtemplate', *words, code=6).strip()[-200:]}"


# Name of a row -> what it measures, and the aim.
ROWS: dict[str, tuple[Callable[[Session], str], str]] = {
    "ceiling": (ceiling, "product of 8,192 x 8,192 matrices in bf16"),
    "nanogpt_124m": (nanogpt_124m, "nanoGPT, compiled, 124M, 32 x 1,024 tokens"),
    "gpt2_124m": (gpt2_124m, "GPT2 of that size (aim: 1.25x, 68 % of the ceiling)"),
    "gpt_muon": (gpt_muon, "GPT with MuonAdamW (aim: 0.95x GPT2 with AdamW)"),
    "quickstart": (
        quickstart,
        "quickstart in fit, and all of make train (aim: 250,000, 20 s warm)",
    ),
    "syncs": (syncs, "waits between logging steps, and a NaN that is skipped (aim: 0)"),
    "enwik8": (
        enwik8,
        "enwik8: half as many steps as nanoGPT (aim: as good in half its time)",
    ),
    "tax": (tax, "Lightning's and the callbacks' part (aim: 0.5 ms, and 1 %)"),
    "batch_64": (batch_64, "GPT2, batch 64"),
    "accumulate_8": (accumulate_8, "GPT2, 8 batches of 32 a step (aim: no slower a token)"),
    "resume": (resume, "SIGTERM and resume, compiled (aim: equal)"),
    "precision": (precision, "bf16 and float32 (aim: the same curve)"),
    "out_of_memory": (out_of_memory, "too large a batch (aim: its line, exit 6)"),
    "text_124m": (text_124m, "124M on a larger text (aim: nanoGPT's loss in half its time)"),
}


def measure(session: Session, name: str) -> str:
    """A row's figure, or why there is none."""
    if not torch.cuda.is_available() and not session.dry:
        return "not run: no CUDA device"
    try:
        return ROWS[name][0](session)
    except NotRunError as reason:
        return f"not run: {reason}"
    except subprocess.TimeoutExpired as late:
        return f"not run: a process took more than {late.timeout:.0f} s"
    except (Exception, SystemExit) as error:  # no row costs another one its figure
        return f"not run: {type(error).__name__}: {error}"[:300]


def write_notes(figures: dict[str, str]) -> None:
    """Put the speed into the lab note of configs/gpt2_124m.yaml, if it was measured."""
    if not figures.get("gpt2_124m", "not run").startswith("not run"):
        device = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {date.today()}"
        text = f"#   result    {figures['gpt2_124m']} (batch 32; {device});"
        old = NOTES.read_text(encoding="utf-8")
        NOTES.write_text(re.sub(r"#   result .*?;", text, old, count=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--data", type=Path, help="enwik8, or another text of that kind")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), help="some rows")
    parser.add_argument("--notes", action="store_true", help="write the config's lab note")
    parser.add_argument("--dry", action="store_true", help="toy sizes: does every row run?")
    asked = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        nanogpt = asked.nanogpt.resolve() if asked.nanogpt else None
        session = Session(Path(temporary), nanogpt, asked.data, asked.dry)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{temporary}/compiled"  # empty at first
        for name in asked.only:
            begin = time.monotonic()
            figures[name] = measure(session, name)
            print(f"{name}: {figures[name]} ({time.monotonic() - begin:.0f} s)", file=sys.stderr)
    print("\n| row (--only) | what | figure |\n| --- | --- | --- |")
    for name in ROWS:
        print(f"| {name} | {ROWS[name][1]} | {figures.get(name, 'not run')} |")
    if asked.notes and not asked.dry:
        write_notes(figures)


if __name__ == "__main__":
    main()
