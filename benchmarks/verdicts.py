"""Real tiny runs of known faults, and healthy ones -> whether `lmtemplate diagnose` names them.

    python benchmarks/verdicts.py --folder runs/verdicts

trains what the folder does not hold yet, and prints a confusion matrix of each part. Thresholds
were fitted on the first two parts, and not on the third, which has other seeds, corpora, tokenizers
and settings, nor on the fourth, whose kinds were written after all rules. Runs of the fifth have the
shape of quickstart: they read their text 3.7 times, and the rate decays to the end.
"""

import argparse
import ast
import contextlib
import dataclasses
import io
import json
import math
import re
import shutil
import statistics
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from lmtemplate.__main__ import run as run_words
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data.corpus import open_corpus
from lmtemplate.errors import NumbersError
from lmtemplate.record import Record, read_record
from lmtemplate.study.diagnose import evidence
from lmtemplate.study.diagnose.artifacts import read_settings
from lmtemplate.study.diagnose.early_warning import early_fault
from lmtemplate.study.diagnose.events import read_events
from lmtemplate.study.diagnose.finding import Facts
from lmtemplate.study.diagnose.verdict import judge

WORKERS = 2
FACTS_FORMAT = 1  # of stored facts; raise it when one of them is measured in another way
HEALTHY = "healthy"
PARTS = ("first", "second", "third", "unseen", "quickstart")


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        kind: what is wrong with it.
        number: of its setting among those of the kind.
        setting: flags of `lmtemplate fit`, shortened.
        corpus: what it is trained on.
        seed: of weights and order.
        part: number in PARTS.
    """

    kind: str
    number: int
    setting: str
    corpus: str
    seed: int
    part: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.part}{self.number}-{self.corpus}-{self.seed}"

    @property
    def expected(self) -> str:
        """The name that diagnose should give it."""
        return str(SETTINGS[self.kind]["expected"])

    @property
    def shape(self) -> str:
        first = self.setting.split()[0]
        return first[1:] if first.startswith("@") else ""

    @property
    def deep(self) -> bool:
        """Whether to keep a checkpoint, and look at it."""
        is_old = self.kind in OLD
        return (
            self.shape == "tiny" or not is_old or (self.kind == HEALTHY and self.number in (2, 3))
        )


DESCRIBED: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
SETTINGS: dict[str, Any] = DESCRIBED["kinds"]
SHORT = {
    "net": "model.net",
    "opt": "model.optimizer",
    "sched": "model.schedule",
    "warmup": "model.schedule.warmup_steps",
    "steps": "trainer.max_steps",
    "val": "trainer.val_check_interval",
    "log": "trainer.log_every_n_steps",
    "batch": "data.batch_size",
    "accumulate": "trainer.accumulate_grad_batches",
    "clip": "trainer.gradient_clip_val",
    "fault": "trainer.callbacks",
    "loss": "model.loss",
}
CLASSES = ("net", "opt", "sched", "loss")  # a class comes before its settings, or would reset them

# Of each part: name -> text, seed of the grammar, tokenizer, vocabulary.
CORPORA = (
    {"grammar-1": ("grammar:8000", 1, "char", None), "early": ("sotu-tiny", 0, "bpe", 512)},
    {
        "grammar-2": ("grammar:9000", 2, "byte", None),
        "late": ("sotu-medium", 0, "char", None),
        "late-bpe": ("sotu-medium", 0, "bpe", 1000),
    },
    {
        "grammar-3": ("grammar:10000", 3, "bpe", 300),
        "code": ("python", 0, "char", None),
        "code-bpe": ("python", 0, "bpe", 700),
    },
    {
        "grammar-4": ("grammar:9000", 4, "byte", None),
        "asyncio": ("python:asyncio", 0, "bpe", 400),
        "email": ("python:email", 0, "char", None),
    },
    {
        "grammar-5": ("grammar:9000", 5, "bpe", 300),
        "sotu": ("sotu-tiny", 0, "bpe", 1000),
        "unittest": ("python:unittest", 0, "bpe", 500),
    },
)
# Shape -> number of documents, characters of each, times that each is repeated.
SHAPES = {
    "": (250, 1500, 1),
    "short": (120, 500, 1),
    "few": (8, 500, 1),
    "tiny": (16, 255, 1),
    "repeated": (60, 400, 15),
    "overlap": (100, 1500, 1),
    "half": (40, 1000, 1),
    "topics": (40, 1000, 1),
    "vowels": (250, 1500, 1),
}
SEEDS = (1, 2), (3, 4), (5, 6), (7, 8), (9, 10)
TWICE = (HEALTHY, "reread")  # kinds of which each case is trained with both seeds
OLD = DESCRIBED["without_checkpoints"]
LEFT_OUT: tuple[tuple[int, ...], ...] = ((), (1, 2), (0,), (0,), (0, 2))  # corpora, counted


def text_of(source: str, seed: int) -> str:
    """All of a text: Python's own modules, or a corpus of ours; late messages are those that
    sotu-tiny does not have.
    """
    if source.startswith("python"):
        folder = Path(ast.__file__).parent / source.partition(":")[2]
        return "\n".join(file.read_text() for file in sorted(folder.glob("*.py")))
    early = {document.name for document in open_corpus("sotu-tiny", 0)}
    return "\n".join(
        "".join(document.pieces)
        for document in open_corpus(source, seed)
        if source != "sotu-medium" or document.name not in early
    )


def documents(source: str, seed: int, shape: str) -> Iterable[str]:
    """Pieces of a text, evenly spaced."""
    count, size, times = SHAPES[shape]
    if shape == "topics":  # another text, and then this one
        yield from documents("grammar:8000" if "grammar" not in source else "sotu-tiny", 9, "half")
    whole = text_of(source, seed)
    if shape == "vowels":  # a vocabulary of three
        kinds = ("a" if letter in "aeiou" else "b" if letter.isalpha() else " " for letter in whole)
        whole = "".join(kinds)
    gap = len(whole) // count
    for number in range(count):
        text = whole[number * gap :][:size]
        for _ in range(2 if shape == "overlap" else 1):
            yield "\n".join([text] * times)


def prepare(folder: Path, name: str, shape: str) -> Path:
    """Write and tokenize a corpus, unless it is there."""
    source, seed, tokenizer, vocabulary = {k: v for part in CORPORA for k, v in part.items()}[name]
    if shape == "vowels":
        tokenizer, vocabulary = "char", None
    target = folder / "data" / f"{name}{shape}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = target.with_suffix(".jsonl")
        rows = (json.dumps({"text": text}) + "\n" for text in documents(source, seed, shape))
        lines.write_text("".join(rows))
        words = ["prepare", f"--input={lines}", f"--output={target}", f"--tokenizer={tokenizer}"]
        run_words([*words, *([f"--vocab_size={vocabulary}"] if vocabulary else [])])
    return target


def cases(part: int) -> Iterable[Case]:
    """All runs of a part."""
    for kind, settings in SETTINGS.items():
        for place, corpus in enumerate(CORPORA[part]):
            for number, setting in enumerate(settings.get(PARTS[part], ())):
                if (place + number + len(kind)) % 3 in LEFT_OUT[part] and kind not in OLD:
                    continue  # of kinds with checkpoints, which take longer
                setting = setting.replace("@quickstart", DESCRIBED["quickstart"])
                for seed in SEEDS[part] if kind in TWICE else SEEDS[part][:1]:
                    yield Case(kind, number, setting, corpus, seed, part)


def words_of(case: Case, data: Path, run: Path) -> list[str]:
    """The words of `lmtemplate fit`."""
    classes, others = list[str](), list[str]()
    for part in case.setting.split():
        key, equals, value = part.partition("=")
        first, dot, rest = key.partition(".")
        if key == "stops":
            continue
        if key == "fault":
            others.append(f"--trainer.callbacks+=faults.{value}")
        elif value == "@healthy":  # go on from the weights of a run on the same corpus
            before = run.with_name(f"{HEALTHY}-{case.part}3-{case.corpus}-{case.seed}")
            others.append(f"--{key}={resolve(before, 'latest')}")
        elif key == "model":
            classes.insert(0, f"--model=faults.{value}")
        elif equals:
            flag = f"--{SHORT.get(first, first)}{dot}{rest}={value}"
            (classes if key in CLASSES else others).append(flag)
    checkpoint = "--checkpoint.milestones=2" if case.deep else "--checkpoint=null"
    where = [f"--data.path={data}", f"--run_dir={run}", f"--seed_everything={case.seed}"]
    return [
        "fit",
        "--allow=faults",
        *where,
        *classes,
        *DESCRIBED["all"].split(),
        checkpoint,
        *others,
    ]


def stored_facts(run: Path) -> Facts | None:
    """What was measured of a run; None where that is stale: of another format or other fields."""
    file, fields = run / "facts.json", {field.name for field in dataclasses.fields(Facts)}
    stored = json.loads(file.read_text()) if file.exists() else {}
    if stored.get("format") != FACTS_FORMAT or stored["facts"].keys() | {"settings"} != fields:
        return None
    return Facts(**stored["facts"], settings=read_settings(run))


def train(job: tuple[Case, Path]) -> str:
    """One run, unless the folder holds it; what is known of it is kept beside its record."""
    case, folder = job
    torch.set_num_threads(1)
    run = folder / "runs" / case.name
    if not any((run / name).exists() for name in ("trained", "facts.json")):
        shutil.rmtree(run, ignore_errors=True)
        words = words_of(case, folder / "data" / f"{case.corpus}{case.shape}", run)
        stops = re.findall(r"stops=(\d+)", case.setting)  # a run that is resumed there
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(NumbersError):
            for stop in stops:
                run_words([*words, "--resume=auto", f"--trainer.max_steps={stop}"])
            run_words([*words, "--resume=auto"] if stops else words)
        (run / "trained").touch()
    if stored_facts(run) is None:
        # only memorising needs long samples
        samples = (4, 1000) if case.shape == "tiny" else (1, 100)
        evidence.FEWEST_SAMPLES, evidence.ALL_SAMPLES_TOKENS = samples
        facts = dataclasses.asdict(evidence.gather(run, deep=case.deep, allow=["faults"]))
        del facts["settings"]  # config.yaml has them
        (run / "facts.json").write_text(json.dumps({"format": FACTS_FORMAT, "facts": facts}))
    return case.name


def read(case: Case, folder: Path) -> tuple[Record, Facts]:
    """What a run has logged, and what else is known of it."""
    run = folder / "runs" / case.name
    facts = stored_facts(run)
    assert facts is not None  # measured just now by `train`
    return read_record(run), facts


# Of each trainer: tags of training loss, validation loss and rate, digits that it keeps.
TRAINERS = {
    "nanogpt": ("train/loss", "val/loss", "lr", 16),
    "transformers": ("train/loss", "eval/loss", "train/learning_rate", 4),
}


def as_others(record: Record, trainer: str, first: float) -> Record:
    """The curves of a run as another program would have left them in TensorBoard files.

    From this share of the run on: a log may begin late. Neither knows a loss before step 1.
    """
    train, val, rate, digits = TRAINERS[trainer]
    columns = ((train, record.train_loss), (val, record.val_loss), (rate, record.learning_rate))
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as board:
            for row in range(int(first * len(record)), len(record)):
                for tag, values in columns:
                    if not math.isnan(values[row]):
                        board.add_scalar(tag, round(values[row], digits), int(record.steps[row]))
        tags = (tag if not np.isnan(column).all() else None for tag, column in columns)
        return read_events(Path(folder), *tags)


def named(case: Case, folder: Path, how: str = "") -> list[str]:
    """All faults that are found, or healthy. `how`: all that is known, or only curves."""
    record, facts = read(case, folder)
    if how:
        facts = Facts()
    if how in TRAINERS:
        record = as_others(record, how, first=0.0)
    elif how == "late":
        record = as_others(record, "nanogpt", first=0.5)
    faults = [finding.name for finding in judge(record, facts).findings if finding.fault]
    return faults or [HEALTHY]


def warned_at(case: Case, folder: Path) -> float | None:
    """The share of the run after which an early warning appears; None if it never does."""
    record, facts = read(case, folder)
    known = Facts(warmup_steps=facts.warmup_steps, vocab_size=facts.vocab_size)
    for rows in range(1, len(record) + 1):
        steps, loss = record.steps[:rows], record.train_loss[:rows]
        if early_fault(steps, loss, record.initial_val_loss or math.inf, known):
            return float(steps[-1] / (facts.max_steps or math.nan))
    return None


def report(found: Sequence[tuple[Case, list[str]]]) -> None:
    """Print the matrix of what was named first, and its sums."""
    for kind in {case.kind: None for case, _ in found}:
        names = Counter(first for case, (first, *_) in found if case.kind == kind)
        right = names.pop(SETTINGS[kind]["expected"], 0)
        others = ", ".join(f"{name} {count}" for name, count in names.most_common())
        total = right + sum(names.values())
        print(f"{kind:<23}{SETTINGS[kind]['expected']:<24}{right:>4} of {total:<4}{others}")
    faults = [(case, names) for case, names in found if case.expected != HEALTHY]
    well = [(case, names) for case, names in found if case.expected == HEALTHY]
    right = sum(names[0] == case.expected for case, names in faults)
    several = sum(len(names) > 1 for _, names in faults)
    accused = sum(names != [HEALTHY] for _, names in well)
    print(f"faults named right: {right} of {len(faults)} ({right / max(1, len(faults)):.1%})")
    print(f"beside another one: {several} of {len(faults)}")
    print(f"healthy accused:    {accused} of {len(well)} ({accused / max(1, len(well)):.1%})")


def report_warnings(cases: Sequence[Case], folder: Path) -> None:
    """Print when early warnings appeared, and how many healthy runs got one."""
    high = [warned_at(case, folder) for case in cases if case.expected == "learning_rate_too_high"]
    said = [share for share in high if share is not None]
    well = [warned_at(case, folder) for case in cases if case.expected == HEALTHY]
    when = f", after {statistics.median(said):.0%} of the run in the median" if said else ""
    print(f"early warning, rate too high: {len(said)} of {len(high)}{when}")
    print(
        f"early warning, healthy:       {sum(share is not None for share in well)} of {len(well)}"
    )


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--part", type=int, choices=range(len(PARTS)), help="only one of the five")
    parser.add_argument("--kinds", default=",".join(SETTINGS), help="some of them")
    views = ("", "curves", *TRAINERS, "late")
    parser.add_argument("--view", default="", choices=views, help="what is known of a run")
    parser.add_argument("--wrong", action="store_true", help="list the runs that are misnamed")
    asked = parser.parse_args()
    folder = asked.folder.resolve()
    for part in range(len(PARTS)) if asked.part is None else (asked.part,):
        some = [case for case in cases(part) if case.kind in asked.kinds.split(",")]
        with contextlib.redirect_stdout(io.StringIO()):
            for corpus, shape in sorted({(case.corpus, case.shape) for case in some}):
                prepare(folder, corpus, shape)
        with get_context("fork").Pool(WORKERS) as pool:
            for number, name in enumerate(pool.imap(train, [(case, folder) for case in some]), 1):
                print(f"\r{number} of {len(some)} {name:<40}", end="", file=sys.stderr, flush=True)
        found = [(case, named(case, folder, asked.view)) for case in some]
        print(f"\n{PARTS[part]} part ({', '.join(CORPORA[part])}): {len(found)} runs")
        report(found)
        report_warnings(some, folder)
        for case, names in found:
            if asked.wrong and names[0] != case.expected:
                print(f"  {case.name}: {', '.join(names)} ({case.setting})")


if __name__ == "__main__":
    main()
