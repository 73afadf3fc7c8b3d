"""Secrets in configs, on the command line, in the environment -> in no file that a run leaves."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from lmtemplate import __main__ as program
from lmtemplate.__main__ import LOG
from tests.conftest import TINY, Command, Result, needs_study

# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "api_key": "Canary-of-a-name-1",
    "password": "Canary-of-a-name-2",
    "client_secret": "Canary-of-a-name-3",
    "credentials": "Canary-of-a-name-4",
    "hf_token": "Canary-of-a-name-5",
    "a": "sk" + "-proj-Canary0123456789abcdef",
    "b": "gh" + "p_Canary0123456789abcdefABCDEF012345",
    "c": "hf" + "_Canary0123456789abcdefABCDEF",
    "d": "AK" + "IACANARY0123456789",
    "e": "Bearer Canary.0123456789",
    "f": "https://me:Canary0123@host/path",
}

PACKAGE = f"""
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

class Uploader(Callback):
    def __init__(self, {", ".join(f"{name}: str = ''" for name in SECRETS)}, region: str = "here"):
        self.given = [{", ".join(SECRETS)}]

    def on_fit_start(self, trainer, pl_module):
        assert all("anary" in value.lower() for value in self.given), self.given

class Board(CSVLogger):
    def __init__(self, save_dir: str, api_key: str, headers: dict):
        super().__init__(save_dir)
        assert "Canary" in api_key
"""


def leaks(folder: Path) -> list[str]:
    """What `grep -rail canary` finds: names of files that hold any of the secrets."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if b"canary" in path.read_bytes().lower()]


@pytest.fixture
def own(
    corpus: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Result]]:
    """`own(*words)` trains with a callback and a logger that take secrets, in tmp_path / "run"."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/uploads.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setenv("SOME_SERVICE_API_KEY", "Canary-of-the-environment")
    monkeypatch.chdir(tmp_path)
    callback = {"class_path": "uploads.Uploader", "init_args": {**SECRETS, "region": "there"}}
    logger = {
        "class_path": "uploads.Board",
        "init_args": {
            "save_dir": str(tmp_path / "run"),
            "api_key": SECRETS["api_key"],
            "headers": {"Authorization": SECRETS["e"], "X-Token": "Canary-of-a-header"},
        },
    }
    config = {"trainer": {"callbacks": [callback], "logger": [logger]}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))

    def call(*words: object) -> Result:
        fixed = ["fit", "--allow=uploads", "--config", "mine.yaml", "--data.path", corpus, *TINY]
        everything = [str(word) for word in (*fixed, "--run_dir=run", *words)]
        monkeypatch.setattr(sys, "argv", ["lmtemplate", *everything])
        return command(*everything)

    yield call
    sys.modules.pop("uploads", None)


def draw_here(words: list[str]) -> AbstractContextManager[None]:
    """The process that draws the curves, as a call in this one."""
    program.run(words[words.index("lmtemplate") + 1 :])
    return nullcontext()


@pytest.mark.slow
@needs_study
def test_no_file_of_a_run_holds_a_secret(
    own: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lmtemplate.study.show.closing.subprocess", SimpleNamespace(Popen=draw_here)
    )
    more = ["--trainer.callbacks.api_key", "Canary-on-the-command-line"]
    more += ["--trainer.callbacks.password=Canary-on-the-command-line"]
    assert own("--report=true", *more).code == 0
    left = {path.name for path in (tmp_path / "run").rglob("*")}
    drawn = {path.name for path in (tmp_path / "run").rglob("*.png")}
    assert {"config.yaml", "manifest.json", "report.html", "SHA256SUMS"} <= left
    assert drawn
    assert leaks(tmp_path / "run") == []
    assert "SOME_SERVICE_API_KEY" not in (tmp_path / "run/manifest.json").read_text()
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    (callback,) = kept["trainer"]["callbacks"]
    hidden = dict.fromkeys(SECRETS, "***") | {"e": "Bearer ***", "f": "https://***@host/path"}
    assert callback["init_args"] == {**hidden, "region": "there"}


@pytest.mark.slow
def test_a_resumed_run_takes_the_secrets_from_where_it_is_told(
    own: Callable[..., Result], tmp_path: Path
) -> None:
    assert own("--trainer.max_steps=4").code == 0
    again = own("--resume=must")
    assert again.code == 0
    assert "Canary" not in again.out
    assert leaks(tmp_path / "run") == []


def test_a_crash_log_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def crash(words: list[str]) -> None:
        raise RuntimeError(f"401 for {words[-1]} with {SECRETS['a']} at {SECRETS['f']}")

    monkeypatch.setattr(program, "run", crash)
    monkeypatch.setattr("lmtemplate.errors.own_line", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["lmtemplate", "fit", "--x.api_key", SECRETS["api_key"]])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 70
    assert (tmp_path / LOG).is_file()
    assert leaks(tmp_path) == []
    assert "Canary" not in capsys.readouterr().err


def test_the_search_would_find_a_secret(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/events").write_bytes(b"\0\xffCanary\0")
    assert leaks(tmp_path) == [str(tmp_path / "deep/events")]
