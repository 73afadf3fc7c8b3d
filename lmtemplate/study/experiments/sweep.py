"""A config and what to vary -> ordinary runs in one folder, their table, a page and best.yaml.

The folder is all there is: `sweep.json` (the command), `trials.jsonl` (a line as a trial begins, and
one as it ends) and the trials' runs. The same command goes on after any kill.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmtemplate import metric_names, run_dir
from lmtemplate.errors import SIGNALS, ConfigError, LockedError, NumbersError
from lmtemplate.plain_file import at_home
from lmtemplate.record import read_lines
from lmtemplate.run_dir import to_json
from lmtemplate.study.experiments import space as spaces
from lmtemplate.study.experiments.flags import Flags, split_words
from lmtemplate.study.experiments.space import Sampler, Space
from lmtemplate.study.experiments.sweep_results import finish
from lmtemplate.study.experiments.trials import Book, Trial
from lmtemplate.study.run_files import command, open_no_link

TRIALS = 20  # of a random or tpe search, if none are asked for
MOST_JOBS = 1000
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class SweepPlan:
    """What to run, and how."""

    folder: Path
    space: Space
    sampler: Sampler
    trials: int
    jobs: int
    seed: int
    prune: bool
    words: list[str]  # of every trial's fit
    allowed: list[str]  # packages outside lmtemplate whose classes a config may name
    points: list[dict[str, str]]  # settings of each trial, where they are known before


def read_plan(words: list[str], allowed: list[str]) -> tuple[SweepPlan, bool]:
    """The plan, and whether to print JSON. What is no flag of sweep is one of fit."""
    flags: Flags = {
        "over": {"action": "append", "default": [], "help": f"KEY=SPEC: {spaces.SPEC}"},
        "run_dir": {"help": "folder of the sweep"},
        "sampler": {"help": "grid (if all is listed), random or tpe (else)"},
        "trials": {"type": int, "help": f"of random and tpe, {TRIALS} if not given"},
        "jobs": {"type": int, "default": 1, "help": "trials at a time; one for each GPU"},
        "sampler_seed": {"type": int, "default": 0, "help": "of random and tpe"},
        "prune": {"action": "store_true", "help": "end trials worse than the median"},
    }
    given, rest = split_words("sweep", words, flags)
    space = spaces.parse_space(given.over)
    sampler = spaces.choose_sampler(space, given.sampler)
    if not given.run_dir:
        raise ConfigError("a sweep needs --run_dir, a folder for its trials")
    if sampler != "grid" or given.prune:
        spaces.load_optuna()
    points = spaces.grid(space) if sampler == "grid" else []
    count = len(points) if sampler == "grid" else given.trials or TRIALS
    if count < 1 or not 1 <= given.jobs <= MOST_JOBS:
        raise ConfigError(f"--trials has to be 1 or more, --jobs from 1 to {MOST_JOBS:,}")
    folder = at_home(given.run_dir)
    chosen = (folder, space, sampler, count, given.jobs, given.sampler_seed, given.prune)
    return SweepPlan(*chosen, ["--report=false", *rest], allowed, points), given.json


def fit_words(plan: SweepPlan, trial: Trial) -> list[str]:
    """The command line of a trial, after the verb."""
    settings = [f"--{key}={value}" for key, value in trial.settings.items()]
    return [*plan.words, *settings, f"--run_dir={run_of(plan, trial)}", "--resume=auto"]


def run_of(plan: SweepPlan, trial: Trial) -> Path:
    return plan.folder / f"trial-{trial.number:03d}"


def check_first(plan: SweepPlan) -> None:
    """Raises ConfigError where already the first trial's settings are wrong."""
    from lmtemplate.cli import TrainingCLI
    from lmtemplate.fit import make_plan

    first = Trial(0, next_settings(plan, [], 0))
    cli = TrainingCLI(fit_words(plan, first), plan.allowed, "sweep")
    cli.datamodule.setup("fit")
    make_plan(cli)


def check_same(plan: SweepPlan) -> None:
    """Raises ConfigError where the folder holds another sweep; more trials and jobs are the same."""
    now = {name: value for name, value in asdict(plan).items() if name not in ("trials", "jobs")}
    now = json.loads(json.dumps(now, default=str))
    path = plan.folder / "sweep.json"
    before = run_dir.read_json(path)
    changed = sorted(name for name in now if before and before.get(name) != now[name])
    if changed:
        raise ConfigError(
            f"{plan.folder} holds a sweep with another {' and '.join(changed)}; name another folder "
            "with --run_dir"
        )
    run_dir.write_json(path, now)


def next_settings(plan: SweepPlan, trials: list[Trial], number: int) -> dict[str, str]:
    if plan.sampler == "grid":
        return plan.points[number]
    return spaces.suggest(plan.space, trials, number, plan.sampler, plan.seed)


def validations(run: Path) -> dict[int, float]:
    """Step -> validation loss, so far."""
    name = metric_names.VAL_LOSS
    return {line["step"]: line[name] for line in read_lines(run) if line["step"] and name in line}


class Runner:
    """Trains trials in processes of their own, some at a time."""

    def __init__(self, plan: SweepPlan, book: Book) -> None:
        if not spaces.are_chosen(book.trials, plan.space, plan.points):
            # they become words of a command line, where a stranger's could allow any package
            raise ConfigError(f"{book.path} has settings of another sweep; name another --run_dir")
        self.plan, self.book = plan, book
        self.children: dict[int, subprocess.Popen[bytes]] = {}  # slot -> process
        self.is_over, self.starting, self.gpus = False, threading.Lock(), 0
        if plan.jobs > 1:
            import torch

            self.gpus = torch.cuda.device_count()

    def environment(self, slot: int) -> dict[str, str]:
        """Jobs share the cores evenly, and each has a GPU where there are several."""
        plan, own = self.plan, dict[str, str]()
        if plan.jobs > 1:
            own["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // plan.jobs))
        if self.gpus > 1:
            own["CUDA_VISIBLE_DEVICES"] = str(slot % self.gpus)
        return {**os.environ, **own}

    def attempt(self, trial: Trial, slot: int) -> tuple[int, str, bool]:
        """Run fit to its end; returns its exit code, its last words, and whether it was pruned."""
        run, pruned, judged = run_of(self.plan, trial), False, 0
        log = self.plan.folder / "logs" / f"{run.name}.txt"
        log.parent.mkdir(exist_ok=True)
        with open(log, "a+", encoding="utf-8", errors="replace", opener=open_no_link) as file:
            allow = [word for name in self.plan.allowed for word in ("--allow", name)]
            words = command("fit", *fit_words(self.plan, trial), *allow)
            options = {"stdout": file, "stderr": file, "env": self.environment(slot)}
            with self.starting:  # so that `stop` sees every child
                if self.is_over:
                    return SIGNALS["SIGTERM"], "", False
                child = self.children[slot] = subprocess.Popen(words, **options)  # type: ignore[call-overload]
            while child.poll() is None:
                time.sleep(POLL_SECONDS)
                losses = validations(run) if self.plan.prune and not pruned else {}
                if len(losses) > judged:
                    judged, others = len(losses), [t for t in self.book.trials if t is not trial]
                    if pruned := spaces.is_hopeless(self.plan.space, others, losses):
                        child.terminate()
            file.seek(max(0, file.tell() - 2000))
            said = [line for line in file.read().splitlines() if line.startswith("error: ")]
        return child.returncode, (said or [""])[-1], pruned

    def train(self, trial: Trial, slot: int) -> None:
        """Train a trial to its end, and write down what came of it."""
        while True:
            code, said, pruned = self.attempt(trial, slot)
            if code != LockedError.exit_code or self.is_over:
                break
            print(f"trial {trial.number + 1}: waiting for a process that trains it", flush=True)
            time.sleep(10 * POLL_SECONDS)
        if self.is_over or (code in SIGNALS.values() and not pruned) or code < 0:
            return  # stopped from outside: it goes on the next time
        trial.losses = validations(run_of(self.plan, trial))
        trial.loss = min(trial.losses.values(), default=None)
        failed = code not in (0, NumbersError.exit_code) and not pruned
        diverged = code == NumbersError.exit_code or trial.loss is None
        trial.state = "pruned" if pruned else "failed" if failed or diverged else "complete"
        self.book.write(trial)
        shown = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
        loss = f"exit code {code}" if trial.loss is None else f"val/loss {trial.loss:.4f}"
        why = said.removeprefix("error: ") if said and trial.state == "failed" else loss
        told = f"trial {trial.number + 1}/{self.plan.trials} {shown}: {trial.state}, {why}"
        print(told, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Let the trials save and end; they go on the next time."""
        with self.starting:
            self.is_over = True
        for child in self.children.values():
            if child.poll() is None:
                child.terminate()

    def run(self) -> None:
        """All trials that have not ended, in the order of their numbers."""
        plan, trials = self.plan, self.book.trials
        waiting = [trial for trial in trials if trial.state is None]
        free, running = set(range(plan.jobs)), dict[Future[None], int]()
        with ThreadPoolExecutor(plan.jobs) as pool:
            try:
                while True:
                    while free and (waiting or len(trials) < plan.trials):
                        if not waiting:
                            settings = next_settings(plan, trials, len(trials))
                            trials.append(Trial(len(trials), settings))
                            self.book.write(trials[-1])
                            waiting = [trials[-1]]
                        slot = min(free)
                        free.remove(slot)
                        running[pool.submit(self.train, waiting.pop(0), slot)] = slot
                    if not running:
                        return
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        free.add(running.pop(done))
                        done.result()
            except BaseException:
                self.stop()
                raise


def end(number: int, _: Any) -> None:
    sys.exit(128 + number)


def sweep(words: list[str], allowed: list[str]) -> None:
    """Train a run for each point of a grid or a search, and say which is best.

    Args:
        words: of the command line, after the verb.
        allowed: packages outside lmtemplate whose classes a config may name.
    """
    plan, as_json = read_plan(words, allowed)
    with run_dir.lock(plan.folder):
        check_first(plan)
        check_same(plan)
        book = Book(plan.folder)
        signal.signal(signal.SIGTERM, end)
        Runner(plan, book).run()
        results = finish(plan.folder, plan.space, book.trials, allowed)
    print(to_json(results.as_json()) if as_json else results.text())
