"""A stranger's folder of several runs -> no word of a command line, no write through a link."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmtemplate.checkpoint.files import damage
from lmtemplate.cli_words import read_config
from lmtemplate.data.tokenizer import load_tokenizer
from lmtemplate.errors import CheckpointError, ConfigError, UserError
from lmtemplate.run_dir import read_json
from tests.conftest import needs_study

pytestmark = needs_study

pytest.importorskip("lmtemplate.study", reason="study/ is deleted")

from lmtemplate.study.check.doctor import run_directory  # noqa: E402
from lmtemplate.study.check.reproduce import other_changes, recorded_settings  # noqa: E402
from lmtemplate.study.experiments.arms import runs_in  # noqa: E402
from lmtemplate.study.experiments.ledger import ledger, read_ledger, seeds_in_ledger  # noqa: E402
from lmtemplate.study.experiments.scaling import read_ladder  # noqa: E402
from lmtemplate.study.experiments.space import Trial  # noqa: E402
from lmtemplate.study.experiments.sweep import Book, Runner, read_plan  # noqa: E402
from lmtemplate.study.experiments.uncommitted import Uncommitted  # noqa: E402
from lmtemplate.study.run_files import DIFF, append_line, check_kinds, read_checked  # noqa: E402
from lmtemplate.study.show import page  # noqa: E402
from lmtemplate.study.show.plots import plot, save  # noqa: E402
from lmtemplate.study.understand.snapshots import snapshot_files  # noqa: E402
from tests.study.experiments.seeded import write_seed  # noqa: E402

SOUND = {"number": 0, "settings": {"lr": "1"}, "state": None, "loss": None, "losses": {}}

# What a line of trials.jsonl says beside SOUND.
SETTINGS: dict[str, dict[str, str]] = {
    "a package to allow": {"lr": "1", "allow": "canary_module"},
    "another key": {"trainer.callbacks": "canary_module.Thing"},
    "a class as value": {"lr": "torch.distributed.launcher.api.elastic_launch"},
    "no key": {},
}


@pytest.mark.parametrize("value", ["1.5", "1e0", "9" * 5_000, "0" * 5_000 + "1", ""])
def test_a_trial_of_whole_numbers_holds_no_other(tmp_path: Path, value: str) -> None:
    plan, _ = read_plan(["--over=data.batch_size=1..4", f"--run_dir={tmp_path}"], [])
    line = {**SOUND, "settings": {"data.batch_size": value}}
    (tmp_path / "trials.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match="settings of another sweep"):
        Runner(plan, Book(tmp_path))


@pytest.mark.parametrize("over", ["lr=1,2", "lr=0.5..2"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_trial_of_a_stranger_adds_no_flag_to_a_sweep(
    tmp_path: Path, over: str, settings: dict[str, str]
) -> None:
    plan, _ = read_plan([f"--over={over}", f"--run_dir={tmp_path}"], [])
    (tmp_path / "trials.jsonl").write_text(json.dumps({**SOUND, "settings": settings}) + "\n")
    with pytest.raises(ConfigError, match="settings of another sweep"):
        Runner(plan, Book(tmp_path))


def test_a_trial_of_the_same_sweep_goes_on(tmp_path: Path) -> None:
    for over in ("lr=1,2", "lr=0.5..2"):
        plan, _ = read_plan([f"--over={over}", f"--run_dir={tmp_path}"], [])
        (tmp_path / "trials.jsonl").write_text(json.dumps(SOUND) + "\n")
        assert Runner(plan, Book(tmp_path)).book.trials == [Trial(0, {"lr": "1"})]


TRIALS: list[Any] = [
    [],
    {},
    {**SOUND, "number": "x"},
    {**SOUND, "number": None},
    {**SOUND, "number": -1},
    {**SOUND, "number": 7},
    {**SOUND, "settings": ["lr"]},
    {**SOUND, "state": "done"},
    {**SOUND, "state": "complete"},
    {**SOUND, "losses": {"x": 1.0}},
    {**SOUND, "losses": {"1": "x"}},
    {**SOUND, "losses": {"-1": 1.0}},
    {**SOUND, "settings": {"lr": 1.0}},
    {**SOUND, "settings": {"lr": None}},
    {**SOUND, "more": 1},
]


@pytest.mark.parametrize("line", TRIALS, ids=str)
def test_a_line_that_is_no_trial_is_named(tmp_path: Path, line: Any) -> None:
    (tmp_path / "trials.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match=r"trials\.jsonl is damaged"):
        Book(tmp_path)


LADDER = {"points": [{"n_embd": 8, "steps": 9}] * 6, "parameters": 5, "tokens": 6}


@pytest.mark.parametrize(
    "change",
    [
        {"points": [{"allow": "canary_module"}] * 6},
        {"points": [{"n_embd": "8 --allow=canary_module", "steps": 9}] * 6},
        {"points": [{"n_embd": 0, "steps": 9}] * 6},
        {"points": []},
        {"tokens": None},
        {"parameters": -5},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_ladder_of_a_stranger_is_sizes_and_nothing_else(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "ladder.json"
    path.write_text(json.dumps(LADDER))
    assert read_ladder(path) == LADDER
    path.write_text(json.dumps({**LADDER, **change}))
    with pytest.raises(CheckpointError, match=r"ladder\.json is damaged"):
        read_ladder(path)


class Figure:
    """What matplotlib would draw."""

    def savefig(self, file: Any, **_: Any) -> None:
        file.write(b"a picture")


def picture(folder: Path, link: Callable[[Path], None]) -> None:
    link(folder / f".curve.png.{os.getpid()}.tmp")
    save(Figure(), folder / "curve.png")  # type: ignore[arg-type]


def book(folder: Path, link: Callable[[Path], None]) -> None:
    trials = Book(folder)
    link(folder / "trials.jsonl")
    trials.write(Trial(0, {}))


def log(folder: Path, link: Callable[[Path], None]) -> None:
    plan, _ = read_plan(["--over=lr=1,2", f"--run_dir={folder}"], [])
    (folder / "logs").mkdir()
    link(folder / "logs" / "trial-000.txt")
    Runner(plan, Book(folder)).attempt(Trial(0, {"lr": "1"}), 0)


WRITES = [picture, book, log]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_a_link_where_a_file_is_written_leads_nothing_out(
    tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    target = tmp_path / "target"
    target.write_text("")
    (tmp_path / "run").mkdir()
    with pytest.raises((OSError, UserError)):
        write(tmp_path / "run", lambda path: path.symlink_to(target))
    assert target.read_text() == ""


@pytest.mark.parametrize("write", WRITES[1:], ids=lambda write: write.__name__)
def test_a_pipe_where_a_file_is_written_is_refused(
    tmp_path: Path, write: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match="it is no plain file"):
        write(tmp_path / "run", os.mkfifo)


OPENS: dict[str, Callable[[Path], object]] = {
    "arm": runs_in,
    "trials": Book,
    "doctor": lambda run: [*run_directory(run)],
    "plot": plot,
    "reproduce": recorded_settings,
}


@pytest.mark.parametrize("name", OPENS)
def test_a_folder_that_is_a_link_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "all" / "runs").mkdir(parents=True)
    (tmp_path / "all" / "runs" / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="checkpoints is a link that leaves"):
        OPENS[name](tmp_path / "all" / ("runs" if name in ("doctor", "plot", "reproduce") else ""))


READS: dict[str, Callable[[Path], object]] = {
    "a JSON file": read_json,
    "a config": read_config,
    "a tokenizer": load_tokenizer,
    "trials": lambda path: Book(path.parent),
    "a checkpoint": lambda path: (damage(path), snapshot_files(path.parents[1])),
}


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device here")
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_link_to_a_device_which_never_ends_is_not_read(
    tmp_path: Path, read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("pathlib.Path.open", "pathlib.Path.read_text", "zipfile.ZipFile"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("it was read"))
    names = {"trials": "trials.jsonl", "a checkpoint": "checkpoints/step-000000004.ckpt"}
    path = tmp_path / names.get(next(k for k, v in READS.items() if v is read), "file.json")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("/dev/zero")
    with suppress(UserError):
        read(path)


def test_text_that_is_no_utf_8_ends_neither_a_resume_nor_a_sweep(tmp_path: Path) -> None:
    for name in (DIFF, "trials.jsonl"):
        (tmp_path / name).write_bytes(b"\xff\n")
    trainer: Any = SimpleNamespace(
        is_global_zero=True, default_root_dir=str(tmp_path), global_step=4
    )
    Uncommitted(most_bytes=0).on_train_start(trainer, trainer)
    with pytest.raises(ConfigError, match=r"trials\.jsonl is damaged"):
        Book(tmp_path)


LEDGER_LINES = [
    {"run": "x", "settings": {"seed_everything": [1]}},
    {"run": "x", "settings": {"seed_everything": {}}},
    {"run": "x", "changed": {"a": json.loads("[" * 900 + "]" * 900)}},
]


@pytest.mark.parametrize("line", LEDGER_LINES, ids=["a list", "a mapping", "deep"])
def test_a_ledger_of_a_stranger_is_read_up_to_such_a_line(tmp_path: Path, line: Any) -> None:
    run = write_seed(tmp_path / "runs" / "a", 1)
    append_line(tmp_path / "runs/ledger.jsonl", json.dumps(line))
    assert len(seeds_in_ledger(page.read_run(run))) == 0
    assert read_ledger(tmp_path / "runs/ledger.jsonl")[0] == []


def test_a_ledger_is_sorted_by_what_its_program_wrote(tmp_path: Path) -> None:
    for name, value in (("a", "1"), ("b", '"x"')):
        append_line(tmp_path / "ledger.jsonl", f'{{"run": "{name}", "mine": {value}}}')
    with pytest.raises(ConfigError, match="no such key"):
        ledger(tmp_path, sort="mine")


def test_a_command_to_copy_holds_what_a_run_says_as_one_word(tmp_path: Path) -> None:
    run = tmp_path / "a; b"
    run.mkdir()
    (run / DIFF).write_bytes(b"\xff a diff")
    for commit in ("$(touch canary); x", ".", "--force", "main"):
        (line,) = other_changes(run, commit)
        assert f"git checkout COMMIT; git apply '{run / DIFF}'" in line


def test_what_nests_too_deep_or_is_too_small_is_named_with_its_file(tmp_path: Path) -> None:
    deep = json.loads("[" * 400 + "]" * 400)
    for content, kinds, says in (
        ({"a": deep}, {}, "nests too deep"),
        (deep, {}, "nests too deep"),
        (5, {}, "its content is not a mapping"),
        ({"a": 0}, {"a": 1}, "a is not a whole number from 1 on"),
    ):
        with pytest.raises(CheckpointError, match=says):
            check_kinds(content, kinds, tmp_path / "file")
    (tmp_path / "x.json").write_text(json.dumps({"a": 1}))
    assert read_checked(tmp_path / "x.json", {"a": 1}) == {"a": 1}
