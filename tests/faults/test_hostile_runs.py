"""A run of a stranger: best.json, links, record, manifest -> nothing they say is trusted."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmtemplate.__main__ import run as run_words
from lmtemplate.checkpoint import resume
from lmtemplate.record import read_record
from tests.conftest import Command, Result, needs_study
from tests.faults.conftest import READERS
from tests.faults.spy import watching
from tests.runs import check_line, contents

pytestmark = [needs_study, pytest.mark.slow]

BEST = {
    "a path": '{"step": "../../../x", "val_loss": 1.0, "file": "../../../x"}',
    "no such step": '{"step": -1, "val_loss": 1.0}',
    "no object": "[1, 2]",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("content", BEST.values(), ids=BEST)
def test_best_json_cannot_name_another_file(ask: Command, run: Path, content: str) -> None:
    (run / "checkpoints/best.json").write_text(content)
    check_line(ask("generate", run), 3)


def test_the_file_that_best_json_names_is_not_what_is_read(ask: Command, run: Path) -> None:
    best = {"step": 4, "val_loss": 1.0, "file": "../../../etc/passwd", "initial_val_loss": "x"}
    (run / "checkpoints/best.json").write_text(json.dumps(best))
    sound = {"file": "step-000000004.ckpt", "initial_val_loss": None}
    assert resume.read_best(run) == {**best, **sound}
    assert ask("generate", run, "--max_new_tokens=1").code == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../x  " + b"0" * 64 + b"\n"])
def test_a_list_of_checksums_that_is_none_counts_as_missing(
    ask: Command, run: Path, content: bytes
) -> None:
    (run / "checkpoints/SHA256SUMS").write_bytes(content)
    assert ask("generate", run, "--max_new_tokens=1").code == 0


@pytest.mark.parametrize("content", ["[" * 100_000, '{"step": "x"}'])
def test_files_of_a_run_that_make_no_sense_cannot_crash_a_resume(
    ask: Command, run: Path, content: str
) -> None:
    for name in ("summary.json", "manifest.json", "checkpoints/best.json"):
        (run / name).write_text(content)
    assert ask(*READERS["resume"](run), "--trainer.max_steps=5").code == 0
    assert json.loads((run / "manifest.json").read_text())  # an object again
    assert resume.read_best(run)


LINKS = [
    "config.yaml",
    ".config.yaml.tmp",
    ".manifest.json.tmp",
    ".summary.json.tmp",
    "checkpoints/.SHA256SUMS.tmp",
    "checkpoints/.best.json.tmp",
    "checkpoints/.step-000000008.ckpt.tmp",
    "checkpoints/milestones/.step-000000008.ckpt.tmp",
    "checkpoints/training_metrics.jsonl",
    "checkpoints/.training_metrics.json.tmp",
]


@pytest.fixture
def go_on(ask: Command, run: Path, canary: Path) -> Callable[[list[str]], tuple[Result, list[str]]]:
    """Resume a run in which these names lead to the canary; also what happened outside of it."""

    def call(links: list[str]) -> tuple[Result, list[str]]:
        words = [*READERS["resume"](run), "--trainer.max_steps=8"]
        config = shutil.copy(run / "config.yaml", run.with_name("config.yaml"))
        words[words.index("--config") + 1] = config
        for link in links:
            (run / link).unlink(missing_ok=True)
            (run / link).symlink_to(canary)
        with watching(run) as events:
            answer = ask(*words)
        started = ("subprocess.Popen", "ctypes.dlopen (None,)")
        return answer, [line for line in events if not line.startswith(started)]

    return call


Going = Callable[[list[str]], tuple[Result, list[str]]]


@pytest.mark.parametrize("link", LINKS)
def test_a_link_in_a_run_leads_no_write_out_of_it(go_on: Going, run: Path, link: str) -> None:
    answer, outside = go_on([link])
    check_line(answer, 2)
    assert "is a link that leaves" in answer.error
    assert outside == []


def test_a_lock_that_is_a_link_is_refused(go_on: Going, run: Path) -> None:
    before = contents(run)
    answer, outside = go_on([".lock"])
    check_line(answer, 5)
    assert outside == []
    assert contents(run) == before


# ---- records and manifests


LINES = {
    "no JSON": "canary",
    "deep": "[" * 100_000,
    "a step in words": '{"step": "../../x", "train/loss": 1.0}',
    "a large step": '{"step": 99999999999999999999999999, "train/loss": 1.0}',
    "a loss in words": '{"step": 900, "train/loss": "__import__(\'os\').system(\'x\')"}',
    "no number": '{"step": 902, "train/loss": NaN, "val/loss": Infinity}',
    "samples in a list": '{"step": 903, "samples": ["a"]}',
    "no epoch can be below 0": '{"step": 904, "train/loss": 1.0, "data/epoch": -1e9}',
    "tokens of nowhere": '{"step": 906, "train/loss": 1.0, "data/tokens": -1e299}',
    "a rate beyond any axis": '{"step": 908, "train/loss": 1.0, "optim/lr": 1e299}',
    "an epoch in words": '{"step": 905, "train/loss": 1.0, "data/epoch": "x"}',
    "bad names in a number": '{"step": 907, "nonfinite": 5}',
    "no UTF-8": "\udcff",
}


def add_lines(run: Path, *lines: str) -> None:
    record = run / "checkpoints/training_metrics.jsonl"
    text = record.read_text() + "".join(f"{line}\n" for line in lines)
    record.write_text(text, encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_that_makes_no_sense_is_left_out_of_a_record(run: Path, line: str) -> None:
    before = read_record(run)
    add_lines(run, line)
    after = read_record(run)
    assert after.steps.tolist() == before.steps.tolist()
    assert after.train_loss.tolist() == before.train_loss.tolist()
    assert after.samples == before.samples


@pytest.mark.parametrize("verb", ["summary", "diagnose", "report"])
def test_a_record_of_a_stranger_is_read(ask: Command, run: Path, verb: str) -> None:
    add_lines(run, *LINES.values())
    check_line(ask(verb, run), 0)


SCRIPT = "</script><script>canary()</script><img src=x onerror=canary()>"


def test_a_page_shows_what_a_run_says_and_runs_none_of_it(ask: Command, run: Path) -> None:
    named = run.rename(run.with_name("<script>canary()<"))
    entry = {"step": 4, "samples": {SCRIPT: SCRIPT}, SCRIPT: 1.0}
    with (named / "checkpoints/training_metrics.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")
    for name in ("summary.json", "manifest.json"):
        content = json.loads((named / name).read_text())
        changes = {"stop_message": SCRIPT, "started": SCRIPT, "command": [SCRIPT], "git": {}}
        (named / name).write_text(json.dumps({**content, **changes}))
    (named / "config.yaml").write_text(f"# {SCRIPT}\n" + (named / "config.yaml").read_text())
    check_line(ask("report", named), 0)
    page = (named / "report.html").read_text()
    assert "canary()" in page
    assert "<script>canary" not in page
    assert "<img src=x" not in page


RECORD = "checkpoints/training_metrics.jsonl"


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json", "summary.json", RECORD])
def test_a_page_shows_no_file_that_a_link_leads_to(ask: Command, run: Path, name: str) -> None:
    secret = run.with_name("secret")
    secret.write_text('{"password": "canary of a secret"}')
    (run / name).unlink()
    (run / name).symlink_to(secret)
    check_line(ask("report", run), 2)
    shown = ask("verify", run)
    assert "canary of a secret" not in f"{shown.out}{shown.error}"
    assert "canary of a secret" not in "".join(page.read_text() for page in run.glob("*.html"))


MANIFESTS: dict[str, Any] = {
    "a list": [1],
    "settings in words": {"settings": "os.system"},
    "no hardware": {"hardware": None},
    "threads of an attacker": {"hardware": {"threads": "1 LD_PRELOAD=canary"}},
    "more threads than there are": {"hardware": {"threads": 10**6}},
    "fewer threads than none": {"hardware": {"threads": -1}},
    "a class of a stranger": {"net": "canary_module.Thing"},
    "a callback of a stranger": {"callbacks": [{"class_path": "canary_module.Thing"}]},
    "another corpus": {"path": "../../canary"},
    "a corpus in the network": {"path": "https://127.0.0.1:9/canary"},
}


@pytest.mark.parametrize("said", MANIFESTS.values(), ids=MANIFESTS)
def test_reproduce_does_not_rely_on_a_manifest(
    ask: Command, run: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child process that trains again is a call in this one here, so that the spy sees it."""

    def in_here(settings: Any, again: Path, threads: Any, allow: list[str]) -> int:
        assert 0 < threads < 10**6
        config = again.with_name("again.yaml")
        config.write_text(yaml.safe_dump(settings))
        run_words(["fit", "--config", str(config), "--run_dir", str(again), "--report=false"])
        return 0

    monkeypatch.setattr("lmtemplate.study.check.reproduce.repeat", in_here)
    manifest = json.loads((run / "manifest.json").read_text())
    if isinstance(said, dict):
        manifest.update(said)
        if "net" in said:
            manifest["settings"]["model"]["net"] = {"class_path": said["net"]}
        if "callbacks" in said:
            manifest["settings"]["trainer"]["callbacks"] = said["callbacks"]
        if "path" in said:
            manifest["settings"]["data"]["path"] = said["path"]
    (run / "manifest.json").write_text(json.dumps(manifest if isinstance(said, dict) else said))
    check_line(ask("reproduce", run), 0, 1, 2, 3, 8)
