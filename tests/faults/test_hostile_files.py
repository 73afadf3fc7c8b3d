"""Files of a stranger -> one line and an exit code; nothing runs, is imported or written elsewhere.

Python's audit hook watches each of them (spy.py); the first test shows that it would see.
"""

import hashlib
import json
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401  # looks for fonts once, which no spy should see
import pytest
import torch
import yaml

from lmtemplate import checkpoint as files
from lmtemplate import resume
from lmtemplate.__main__ import run as run_words
from lmtemplate.data.datamodule import TokenData
from lmtemplate.data.index import fingerprint
from lmtemplate.errors import CheckpointError, DataError
from lmtemplate.record import read_record
from tests.conftest import TINY, Command, Result
from tests.faults import payloads
from tests.faults.spy import watching
from tests.runs import check_line, contents

MODULE = "open({!r}, 'w')\n"  # what canary_module.py does when it is imported
Refusal = Callable[[Path], str]
FORCE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that no file may bring about. Modules that would lie in the working directory."""
    path = tmp_path / "canary"
    for name in ("canary_module", "lmtemplate_canary", "torch_canary", "lightning_canary"):
        (tmp_path / f"{name}.py").write_text(MODULE.format(str(path)))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def nothing_in(events: list[str]) -> bool:
    """Whether nothing happened but that the manifest asked git for the commit."""
    return [line for line in events if not line.startswith("subprocess.Popen ('git'")] == []


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Break off what would never end."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def ask(command: Command, tmp_path: Path, canary: Path) -> Command:
    """Call `lmtemplate WORDS ...` and see that nothing happens."""

    def call(*words: object) -> Result:
        with watching(tmp_path) as events, within(60):
            answer = command(*words)
        assert nothing_in(events), events
        assert not canary.exists()
        return answer

    return call


@pytest.fixture
def refusal(tmp_path: Path, canary: Path) -> Callable[[Path], str]:
    """Message of `read`, which has to refuse a file; nothing happens."""

    def call(path: Path) -> str:
        with watching(tmp_path) as events, pytest.raises(CheckpointError) as refused:
            files.read(path)
        assert events == []
        assert not canary.exists()
        assert "\n" not in str(refused.value)
        assert "weights_only" not in str(refused.value)  # torch's hint to switch it off
        return str(refused.value)

    return call


def test_the_spy_would_see_what_careless_loading_does(tmp_path: Path, canary: Path) -> None:
    calls = payloads.calls(canary)
    for name, event in (
        ("posix:system", "os.system"),
        ("subprocess:Popen", "subprocess.Popen"),
        ("builtins:eval", "exec"),
        ("builtins:__import__", "import"),
        ("importlib:import_module", "exec"),
        ("pathlib:Path.touch", "pickle.find_class"),
    ):
        with watching(tmp_path) as events:
            try:
                result = pickle.loads(payloads.dumps(calls[name], 4))
            except Exception:
                result = None
            for end in ("wait", "close"):
                getattr(result, end, lambda: None)()
        assert any(line.startswith(event) for line in events), (name, events)
        sys.modules.pop("canary_module", None)
    assert canary.exists()


def test_the_spy_would_see_what_leaves_a_folder_however_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    link, outside = tmp_path / "inside/link", tmp_path / "outside"
    with watching(tmp_path / "inside") as events, watching(tmp_path) as others:
        link.symlink_to(outside)
        assert events == []
        link.write_text("x")
        outside.rename(tmp_path / "elsewhere")
        link.unlink()  # which is of that folder, whatever it points to
    assert [line.split()[0] for line in events] == ["open", "os.rename"]
    assert others == []


# ---- checkpoints


@pytest.fixture(params=["0", "1"], ids=["", "forced"])
def force(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own switch back to unpickling, off and on."""
    monkeypatch.setenv(FORCE, request.param)


NAMES = list(payloads.calls(Path("canary")))


@pytest.mark.parametrize("name", NAMES)
def test_a_call_in_a_checkpoint_is_refused_by_name(
    canary: Path, tmp_path: Path, refusal: Refusal, name: str
) -> None:
    call = payloads.calls(canary)[name]
    payloads.archive(tmp_path / "x.ckpt", payloads.dumps({"state_dict": {"net.a": call}}))
    assert "refused" in refusal(tmp_path / "x.ckpt")


@pytest.mark.parametrize("place", payloads.PLACES)
def test_a_call_is_found_wherever_it_stands(
    canary: Path, tmp_path: Path, refusal: Refusal, place: str
) -> None:
    content = payloads.PLACES[place](payloads.calls(canary)["posix:system"])
    payloads.archive(tmp_path / "x.ckpt", payloads.dumps(content))
    assert "contains the global posix.system" in refusal(tmp_path / "x.ckpt")


def vouch_for(path: Path) -> None:
    """Whoever can write a hostile file can write its checksum, too."""
    files._write_sums(path.parent, {path.name: files.file_sha256(path)})


@pytest.mark.usefixtures("force")
@pytest.mark.parametrize("known", [False, True], ids=["", "with its checksum"])
@pytest.mark.parametrize("container", payloads.CONTAINERS)
def test_no_format_that_torch_takes_gets_past(
    canary: Path, tmp_path: Path, refusal: Refusal, container: str, known: bool
) -> None:
    path = tmp_path / "x.ckpt"
    payloads.CONTAINERS[container](path, payloads.calls(canary)["posix:system"])
    if known:
        vouch_for(path)
    refusal(path)


@pytest.mark.parametrize("known", [False, True], ids=["", "with its checksum"])
@pytest.mark.parametrize("liar", payloads.LIARS)
def test_a_file_that_lies_about_itself_is_refused(
    tmp_path: Path, refusal: Refusal, liar: str, known: bool
) -> None:
    path = tmp_path / "x.ckpt"
    payloads.LIARS[liar](path)
    if known:
        vouch_for(path)
    refusal(path)


def test_a_file_without_a_lie_is_read(tmp_path: Path) -> None:
    """What refuses everything proves nothing: the same archive, with honest sizes."""
    data = payloads.tensor_of(4, 0, (2, 2), (2, 1))
    payloads.archive(tmp_path / "x.ckpt", data, **{"data/0": bytes(16)})
    assert torch.equal(files.read(tmp_path / "x.ckpt")["state_dict"]["a"], torch.zeros(2, 2))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a run, to make hostile."""
    return shutil.copytree(trained, tmp_path / "run")


LAST = "checkpoints/step-000000004.ckpt"

READERS: dict[str, Callable[[Path], list[object]]] = {
    "generate": lambda run: ["generate", run],
    "validate": lambda run: ["validate", run],
    "resume": lambda run: [
        *("fit", "--config", run / "config.yaml", "--resume=must", "--run_dir", run)
    ],
    "init_from": lambda run: [
        *("fit", "--config", run / "config.yaml", "--init_from", run / LAST),
        *("--run_dir", run.with_name("new")),
    ],
}


class Touch:
    """Pickles as a call that leaves the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.canary}",)


# the places where each reader looks; all others: test_a_call_is_found_wherever_it_stands
LOOKED_AT = {
    "generate": "config",
    "validate": "evil",
    "resume": "optimizer_states",
    "init_from": "loops",
}


@pytest.mark.usefixtures("force")
@pytest.mark.parametrize(("reader", "place"), LOOKED_AT.items())
def test_no_verb_runs_what_a_checkpoint_holds(
    ask: Command, run: Path, canary: Path, reader: str, place: str
) -> None:
    sound = torch.load(run / LAST, weights_only=True)
    torch.save({**sound, place: Touch(canary)}, run / LAST)
    vouch_for(run / LAST)
    message = check_line(ask(*READERS[reader](run)), 3)
    assert "contains the global posix.system" in message


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what a checkpoint says, in plain types."""
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    vouch_for(path)


CLASSES: list[Any] = [
    "os.system",
    "posix.system",
    "builtins.eval",
    "subprocess.Popen",
    "importlib.import_module",
    "canary_module.Thing",
    "lmtemplate_canary.Thing",
    "lmtemplate.__main__.main",
    "lmtemplate.run.Lock",
    "lmtemplate.checkpoint.os.system",
    "lmtemplate.models.base.LanguageModel",
    "lmtemplate.models.canary.Thing",
    "torch.nn.Linear",
    "lmtemplate",
    "lmtemplate.",
    "..lmtemplate.models.GPT",
    "",
    "\0",
    5,
    None,
    ["os.system"],
]


@pytest.mark.parametrize("class_path", CLASSES, ids=str)
def test_a_checkpoint_cannot_name_a_class_of_its_choice(
    ask: Command, run: Path, class_path: Any
) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["config"]["model"]["net"]["class_path"] = class_path

    rewrite(run / LAST, change)
    check_line(ask("generate", run), 2, 3)


SETTINGS: list[Any] = [
    ["a"],
    "n_layer",
    {"n_layer": "two"},
    {"n_layer": -1},
    {"n_embd": 2**40, "n_head": 1},
    {"canary": 1},
    {"vocab_size": 10**30},
    {5: 5},
    None,
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_checkpoint_cannot_crash_the_net_it_describes(
    ask: Command, run: Path, settings: Any
) -> None:
    def change(checkpoint: dict[str, Any]) -> None:
        checkpoint["config"]["model"]["net"]["init_args"] = settings

    rewrite(run / LAST, change)
    check_line(ask("generate", run), 2, 3)


DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "no config": {"config": {}},
    "a config of other things": {"config": {"model": {"net": [1, 2]}, "early_stopping": 5}},
    "no length": {"length": {}},
    "another length": {"length": {"limit": "max_seconds", "value": "x", "canary": 1}},
    "a tokenizer of nothing": {"tokenizer": ""},
    "a tokenizer of much": {"tokenizer": "[" * 100_000},
    "a tokenizer of another kind": {"tokenizer": '{"model": {"type": "canary"}}'},
    "no size": {"vocab_size": -1},
    "another size": {"block_size": 2**62},
}


@pytest.mark.parametrize("reader", ["generate", "resume"])
@pytest.mark.parametrize("said", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_what_a_checkpoint_says_of_its_run_is_not_relied_on(
    ask: Command, run: Path, said: dict[str, Any], reader: str
) -> None:
    rewrite(run / LAST, lambda checkpoint: checkpoint.update(said))
    answer = ask(*READERS[reader](run))
    harmless = {"length"}
    check_line(answer, *([0] if harmless & said.keys() else []), 2, 3, 8)


NEEDED = {
    "generate": ["config", "tokenizer", "global_step", "vocab_size"],
    "validate": ["tokenizer", "global_step"],
    "resume": ["config", "tokenizer", "length", "global_step", "vocab_size"],
    "init_from": ["tokenizer", "global_step"],
}


@pytest.mark.parametrize(
    ("reader", "key"), [(reader, key) for reader, keys in NEEDED.items() for key in keys]
)
def test_a_checkpoint_that_says_less_than_ours_is_refused(
    ask: Command, run: Path, key: str, reader: str
) -> None:
    rewrite(run / LAST, lambda checkpoint: checkpoint.pop(key))
    check_line(ask(*READERS[reader](run)), 3)


REMOTE = [
    "http://127.0.0.1:9/canary.ckpt",
    "https://127.0.0.1:9/canary.ckpt",
    "HTTPS://127.0.0.1:9/canary.ckpt",
    "file:///etc/passwd",
    "s3://canary/x.ckpt",
    "hf://canary/x.ckpt",
    "simplecache::https://127.0.0.1:9/canary.ckpt",
    "\\\\127.0.0.1\\share\\canary.ckpt",
    "//127.0.0.1/share/canary.ckpt",
    "x" * 300,
    "a\0b",
    "/dev/zero",
    "/dev/stdin",
    ".",
    "",
]


@pytest.mark.parametrize("address", REMOTE, ids=[address[:20] for address in REMOTE])
def test_only_a_file_is_a_checkpoint(ask: Command, run: Path, address: str) -> None:
    check_line(ask("generate", run, f"--checkpoint={address}"), 2, 3)
    words = READERS["init_from"](run)
    words[words.index("--init_from") + 1] = address or "."
    check_line(ask(*words), 2, 3)
    assert not run.with_name("new").exists()


# ---- best.json, checksums, and other files of a run


BEST = [
    '{"step": "../../../x", "val_loss": 1.0, "file": "../../../x"}',
    '{"step": -1, "val_loss": 1.0}',
    '{"step": 1e400, "val_loss": 1.0}',
    '{"step": 99999999999999999999999, "val_loss": 1.0}',
    '{"step": true, "val_loss": NaN}',
    '{"step": null}',
    '{"val_loss": "x", "step": 4}',
    '{"file": "/etc/passwd"}',
    "[1, 2]",
    "5",
    "",
    "\0",
    "[" * 100_000,
    "9" * 5000,
]


@pytest.mark.parametrize("content", BEST, ids=[content[:24] for content in BEST])
def test_best_json_cannot_name_another_file(ask: Command, run: Path, content: str) -> None:
    (run / "checkpoints/best.json").write_text(content)
    check_line(ask("generate", run), 3)


def test_the_file_that_best_json_names_is_not_what_is_read(ask: Command, run: Path) -> None:
    best = {"step": 4, "val_loss": 1.0, "file": "../../../etc/passwd"}
    (run / "checkpoints/best.json").write_text(json.dumps(best))
    assert resume.read_best(run) == {**best, "file": "step-000000004.ckpt"}
    assert ask("generate", run, "--max_new_tokens=1").code == 0


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\xff\xfe", b"a b c\n", b"\0" * 99, b"../../x  " + b"0" * 64 + b"\n"]
)
def test_a_list_of_checksums_that_is_none_counts_as_missing(
    ask: Command, run: Path, content: bytes
) -> None:
    (run / "checkpoints/SHA256SUMS").write_bytes(content)
    assert ask("generate", run, "--max_new_tokens=1").code == 0


@pytest.mark.parametrize("content", ["[]", "5", '"x"', "[" * 100_000, "{", '{"step": "x"}'])
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
        return answer, [line for line in events if "subprocess.Popen" not in line]

    return call


Going = Callable[[list[str]], tuple[Result, list[str]]]


def test_links_in_a_run_lead_no_write_out_of_it(go_on: Going, run: Path) -> None:
    answer, outside = go_on(LINKS)
    assert answer.code == 0
    assert outside == []
    assert not [link for link in LINKS if (run / link).is_symlink()]  # each was in the way
    assert (run / "checkpoints/step-000000008.ckpt").is_file()


def test_a_lock_that_is_a_link_is_refused(go_on: Going, run: Path) -> None:
    before = contents(run)
    answer, outside = go_on([".lock"])
    check_line(answer, 5)
    assert outside == []
    assert contents(run) == before


# ---- configs


def bomb(kind: str) -> str:
    """A few lines of YAML that come to 2 million things once somebody walks through them; each
    line more would make it ten times as many.
    """
    first = "a0: &a0 [x, x]" if kind == "list" else "a0: &a0 {x: 1, y: 2}"
    rows = [first]
    for level in range(1, 7):
        one = ", ".join([f"*a{level - 1}"] * 10)
        named = ", ".join(f"k{n}: *a{level - 1}" for n in range(10))
        rows.append(f"a{level}: &a{level} " + (f"[{one}]" if kind == "list" else f"{{{named}}}"))
    return "\n".join(rows)


YAMLS: dict[str, str] = {
    "apply": "model: !!python/object/apply:os.system ['touch canary']",
    "new": "model: !!python/object/new:subprocess.Popen [['touch', 'canary']]",
    "name": "model: {net: !!python/name:os.system}",
    "module": "model: {net: !!python/module:canary_module}",
    "object": "trainer: !!python/object:canary_module.Thing {}",
    "tuple": "run_dir: !!python/tuple [a, b]",
    "tag of one's own": "model: !canary {a: 1}",
    "tag directive": "%TAG ! tag:yaml.org,2002:python/\n---\nmodel: !name:os.system x",
    "bomb of lists": bomb("list"),
    "bomb of mappings": bomb("dict"),
    "bomb of callbacks": f"{bomb('list')}\ntrainer: {{callbacks: *a6}}",
    "bomb of settings": f"{bomb('dict')}\nmodel: {{net: {{init_args: *a6}}}}",
    "a mapping in itself": "model: &a {net: *a}",
    "2,000 lists in each other": "model: " + "[" * 2_000 + "]" * 2_000,
    "2,000 mappings in each other": "model: " + "{a: " * 2_000 + "1" + "}" * 2_000,
    "two documents": "model: {}\n---\nmodel: {}",
    "a number of many digits": "seed_everything: " + "9" * 10_000,
    "a key of many kinds": "? [1, 2]\n: 3",
    "a key that is null": "~: 3",
    "a date that is none": "run_dir: 2020-99-99",
    "a NUL": "run_dir: a\0b",
    "a name with NUL": 'run_dir: "a\\0b"',
    "another config": "config: /etc/passwd",
    "a config of the network": "config: https://127.0.0.1:9/canary.yaml",
    "settings from the network": "trainer: https://127.0.0.1:9/canary.yaml",
    "a net from the network": "model: {net: 'https://127.0.0.1:9/canary.yaml'}",
    "data from the network": "data: {path: 'https://127.0.0.1:9/canary'}",
    "weights from the network": "init_from: https://127.0.0.1:9/canary.ckpt",
    "a file of another protocol": "trainer: 'filecache::https://127.0.0.1:9/canary.yaml'",
    "allow in the config": "allow: canary_module\nmodel: {net: {class_path: canary_module.Thing}}",
    "a module like ours": "model: {net: {class_path: lmtemplate_canary.Thing}}",
    "a module like torch": "model: {net: {class_path: torch_canary.Thing}}",
    "a function of torch": "model: {net: {class_path: torch.hub.load, init_args: {repo: canary}}}",
    "a part of the module os": "model: {net: {class_path: lmtemplate.run.os.system}}",
    "os through torch": "samples: {class_path: torch.serialization.os.system}",
    "a callable": "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.LambdaCallback, "
    "init_args: {setup: os.system}}}",
    "a callable of a stranger": "trainer: {callbacks: {class_path: "
    "lightning.pytorch.callbacks.LambdaCallback, init_args: {setup: canary_module.thing}}}",
}


@pytest.fixture
def ask_with(ask: Command, corpus: Path, tmp_path: Path) -> Callable[..., Result]:
    """Start a run with these settings."""

    def call(text: str, *more: str) -> Result:
        (tmp_path / "mine.yaml").write_text(text)
        words = ["fit", "--data.path", corpus, "--run_dir", tmp_path / "run", *TINY]
        answer = ask(*words, "--config", tmp_path / "mine.yaml", *more)
        assert not (tmp_path / "run").exists()
        return answer

    return call


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_a_config_makes_nothing_but_settings(ask_with: Callable[..., Result], text: str) -> None:
    check_line(ask_with(text), 2, 3, 5, 8)


@pytest.mark.parametrize(
    "name", ["apply", "bomb of settings", "settings from the network", "a module like ours"]
)
def test_looking_at_a_config_makes_nothing_either(
    ask_with: Callable[..., Result], name: str
) -> None:
    check_line(ask_with(YAMLS[name], "--print_config"), 2)


# ---- prepared corpora


@pytest.fixture
def prepared(corpus: Path, tmp_path: Path) -> Path:
    """A copy of a corpus, to make hostile."""
    return shutil.copytree(corpus, tmp_path / "data")


Change = Callable[[dict[str, Any]], Any]
Refuses = Callable[..., None]


def say(prepared: Path, change: Change) -> None:
    """Let an index say something else; its fingerprint is right."""
    index = json.loads((prepared / "index.json").read_text())
    change(index)
    index["fingerprint"] = fingerprint(index)
    (prepared / "index.json").write_text(json.dumps(index))


@pytest.fixture
def refuses(prepared: Path, tmp_path: Path, canary: Path) -> Refuses:
    """All that a run opens of a corpus is opened, and refused in a line; nothing happens."""

    def call(change: Change | None = None) -> None:
        if change is not None:
            say(prepared, change)
        with watching(tmp_path) as events, within(60), pytest.raises(DataError) as refused:
            TokenData(prepared, block_size=16).setup("fit")
        assert events == []
        assert not canary.exists()
        check_line(Result(refused.value.exit_code, "", str(refused.value)), 8)

    return call


def first_shard(index: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = index["splits"]["train"]["shards"][0]
    return entry


SHARD_NAMES: list[Any] = [
    "../outside.bin",
    "/etc/passwd",
    "a/../../outside.bin",
    "..",
    ".",
    "",
    "train_000000.bin\0.txt",
    "C:\\outside.bin",
    "\\\\127.0.0.1\\share\\x.bin",
    "http://127.0.0.1:9/canary.bin",
    "con",
    "x" * 300,
    "val_000000.bin",
    "index.json",
    ["train_000000.bin"],
    7,
    None,
]


@pytest.mark.parametrize("name", SHARD_NAMES, ids=[str(name)[:24] for name in SHARD_NAMES])
def test_an_index_cannot_name_a_file_outside_its_folder(
    refuses: Refuses, prepared: Path, tmp_path: Path, name: Any
) -> None:
    shutil.copy(prepared / "train_000000.bin", tmp_path / "outside.bin")
    refuses(lambda index: first_shard(index).update(file=name))


INDICES: dict[str, Change] = {
    "tokens in words": lambda index: first_shard(index).update(tokens="1000"),
    "tokens below 0": lambda index: first_shard(index).update(tokens=-1),
    "tokens beyond all": lambda index: first_shard(index).update(tokens=10**30),
    "tokens that are a list": lambda index: first_shard(index).update(tokens=[1]),
    "tokens that are infinite": lambda index: first_shard(index).update(tokens=float("inf")),
    "objects for tokens": lambda index: index.update(dtype="object"),
    "no kind of number": lambda index: index.update(dtype=["uint16"]),
    "floats for tokens": lambda index: index.update(dtype="float64"),
    "a vocabulary in words": lambda index: index.update(vocab_size="257"),
    "a vocabulary below 0": lambda index: index.update(vocab_size=-257),
    "a vocabulary beyond memory": lambda index: index.update(vocab_size=2**62),
    "no splits": lambda index: index.update(splits={}),
    "splits in a list": lambda index: index.update(splits=["train", "val"]),
    "no shards": lambda index: index["splits"]["train"].update(shards=[]),
    "a split of another name": lambda index: index["splits"].update({"../x": {}}),
    "a tokenizer elsewhere": lambda index: index["tokenizer"].update(file="../tokenizer.json"),
    "a tokenizer of the system": lambda index: index["tokenizer"].update(file="/etc/passwd"),
    "a tokenizer that is none": lambda index: index.update(tokenizer="byte"),
    "no tokenizer": lambda index: index.pop("tokenizer"),
    "an end outside": lambda index: index.update(eot_id=10**6),
    "sums that are none": lambda index: first_shard(index).update(crc32="canary"),
    "sums by the million": lambda index: first_shard(index).update(crc32="00000000 " * 10**5),
    "a checksum that is none": lambda index: first_shard(index).update(sha256=5),
    "bytes that are none": lambda index: index["splits"]["val"].update(bytes=0.5),
}


@pytest.mark.parametrize("change", INDICES.values(), ids=INDICES)
def test_an_index_that_makes_no_sense_is_refused(refuses: Refuses, change: Change) -> None:
    refuses(change)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\0", "null", '"x"', "[[]]"]
)
def test_an_index_that_is_none_is_refused(refuses: Refuses, prepared: Path, content: str) -> None:
    (prepared / "index.json").write_text(content)
    refuses()


@pytest.mark.parametrize("name", ["train_000000.bin", "val_000000.bin"])
@pytest.mark.parametrize("kind", ["link to another file", "fifo", "folder", "device"])
def test_a_shard_is_a_file_of_its_folder(
    refuses: Refuses, prepared: Path, tmp_path: Path, name: str, kind: str
) -> None:
    shard = prepared / name
    shard.rename(tmp_path / "outside.bin")
    if kind == "fifo":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    else:
        target = Path("/dev/zero") if kind == "device" else tmp_path / "outside.bin"
        shard.symlink_to(target)
    refuses()


TOKENIZERS = {
    "deep": "[" * 100_000,
    "a number": "5",
    "no model": '{"model": null}',
    "an unknown model": '{"model": {"type": "canary"}}',
    "a model of nothing": '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "ids beyond memory": '{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel",'
    '"vocab":{"a":4294967295,"<eos>":0},"unk_token":"a"}}',
    "merges that do not fit": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
    "another kind": '{"kind": "canary"}',
    "characters in a list": '{"kind": "char", "characters": ["a"]}',
    "half a character": '{"kind": "char", "characters": "\\ud800"}',
}


@pytest.mark.parametrize("content", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_that_makes_no_sense_is_refused(
    refuses: Refuses, prepared: Path, content: str
) -> None:
    (prepared / "tokenizer.json").write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    refuses(lambda index: index["tokenizer"].update(sha256=digest))


@pytest.mark.parametrize(
    "change", [INDICES["objects for tokens"], INDICES["a tokenizer of the system"]]
)
def test_a_refused_corpus_ends_a_run_before_it_has_a_directory(
    ask: Command, prepared: Path, change: Change
) -> None:
    say(prepared, change)
    run = prepared.with_name("run")
    check_line(ask("fit", "--data.path", prepared, *TINY, "--run_dir", run), 8)
    assert not run.exists()


# ---- records and manifests


LINES = {
    "no JSON": "canary",
    "deep": "[" * 100_000,
    "a step in words": '{"step": "../../x", "train/loss": 1.0}',
    "a step below 0": '{"step": -5, "train/loss": 1.0, "optim/lr": 0.1}',
    "a step beyond all": '{"step": 1e999, "train/loss": 1.0}',
    "a large step": '{"step": 99999999999999999999999999, "train/loss": 1.0}',
    "a loss in words": '{"step": 900, "train/loss": "__import__(\'os\').system(\'x\')"}',
    "a loss that is a list": '{"step": 901, "train/loss": [1, 2], "val/loss": {}}',
    "no number": '{"step": 902, "train/loss": NaN, "val/loss": Infinity}',
    "a yes": '{"step": true, "train/loss": true}',
    "samples in a list": '{"step": 903, "samples": ["a"]}',
    "samples of numbers": '{"step": 904, "samples": {"a": 5}}',
    "an epoch in words": '{"step": 905, "train/loss": 1.0, "data/epoch": "x"}',
    "an epoch without end": '{"step": 906, "train/loss": 1.0, "data/epoch": 1e999}',
    "bad names in a number": '{"step": 907, "nonfinite": 5}',
    "steps backwards": '{"step": 3, "train/loss": 1.0}\n{"step": 2, "train/loss": 1.0}',
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


MANIFESTS: dict[str, Any] = {
    "a list": [1],
    "no settings": {},
    "settings in words": {"settings": "os.system"},
    "settings in a list": {"settings": [["a", 1]]},
    "settings of nothing": {"settings": {}},
    "no hardware": {"hardware": None},
    "threads with NUL": {"hardware": {"threads": "1\0"}},
    "threads of an attacker": {"hardware": {"threads": "1 LD_PRELOAD=canary"}},
    "no data": {"data": None},
    "no versions": {"versions": None, "git": None},
    "resumed in words": {"resumed": "often"},
    "a class of a stranger": {"net": "canary_module.Thing"},
    "a class of the system": {"net": "os.system"},
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
        config = again.with_name("again.yaml")
        config.write_text(yaml.safe_dump(settings))
        run_words(["fit", "--config", str(config), "--run_dir", str(again), "--report=false"])
        return 0

    monkeypatch.setattr("lmtemplate.study.reproduce.repeat", in_here)
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
