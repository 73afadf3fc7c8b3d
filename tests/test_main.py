"""Words of the command line -> a verb's module, called; mistakes -> one line and an exit code."""

import inspect
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmtemplate import __main__ as program
from lmtemplate import __version__, errors
from lmtemplate.__main__ import LOG, take_allowed, verbs
from lmtemplate.errors import ConfigError, DataError
from lmtemplate.models import GPT
from lmtemplate.optimizers import AdamW, MuonAdamW
from tests.conftest import Command

HEAVY = {"torch", "lightning", "jsonargparse", "numpy", "tensorboard", "torchmetrics"}


def imported_by(*words: str) -> set[str]:
    """Top-level packages in memory after `lmtemplate WORDS ...`, in a process of its own."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('lmtemplate', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "print('modules', *{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("modules ")[2].split())


def test_help_lists_every_verb_on_one_screen(command: Command) -> None:
    lines = command("--help").out.splitlines()
    assert len(lines) <= 36
    assert max(len(line) for line in lines if "lmtemplate" not in line) <= 96  # as long as its name
    for verb in verbs():
        assert sum(line.startswith(f"  {verb} ") for line in lines) == 1


def test_no_words_show_the_help(command: Command) -> None:
    assert command() == command("--help")
    assert command().code == 0


def test_the_version_is_the_package_s(command: Command) -> None:
    for flag in ("--version", "-V"):
        assert command(flag).out.strip() == __version__


def test_help_imports_nothing_heavy() -> None:
    assert not imported_by("--help") & HEAVY


def test_prepare_does_not_import_lightning(tmp_path: Path) -> None:
    words = ("--input", "grammar:10", "--output", str(tmp_path / "data"), "--tokenizer", "byte")
    assert not imported_by("prepare", *words) & {"lightning", "tensorboard", "torchmetrics"}


def test_the_verbs_that_scripts_rely_on_are_there() -> None:
    assert {"prepare", "fit", "validate", "test", "generate"} <= set(verbs())


def test_an_unknown_verb_names_those_that_exist(command: Command) -> None:
    mistake = command("trian")
    assert mistake.code == 2
    assert "'trian'" in mistake.error
    assert all(verb in mistake.error for verb in verbs())


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian", "fit"),
        ("Fit", "fit"),
        ("prepair", "prepare"),
        ("resume", "fit --config RUN/config.yaml --run_dir RUN --resume must"),
    ],
)
def test_a_misspelt_verb_is_answered_with_the_one_meant(
    command: Command, typed: str, meant: str
) -> None:
    assert f"no verb {typed!r}; did you mean {meant}? (there are: " in command(typed).error


def test_a_word_like_no_verb_is_answered_with_all(command: Command) -> None:
    assert "no verb 'xyz' (there are: prepare, " in command("xyz").error


def test_a_rank_that_is_no_number_is_named_before_lightning_sees_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "abc")
    mistake = command("fit")
    assert mistake.code == 2
    assert "LOCAL_RANK=abc" in mistake.error
    assert command("--version").code == 0


@pytest.mark.parametrize("verb", verbs())
def test_each_verb_explains_itself(command: Command, verb: str) -> None:
    shown = command(verb, "--help")
    assert shown.code == 0
    assert f"lmtemplate {verb}" in shown.out


def test_allow_is_taken_out_of_the_words_in_both_spellings() -> None:
    words = ["--config", "a.yaml", "--allow", "mine", "--allow=yours", "--x", "1"]
    assert take_allowed(words) == (["mine", "yours"], ["--config", "a.yaml", "--x", "1"])


@pytest.mark.parametrize("words", [["--allow"], ["--allow", "a.b"], ["--allow="]])
def test_allow_wants_the_name_of_a_package(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="top-level package"):
        take_allowed(words)


def run_main(monkeypatch: pytest.MonkeyPatch, ending: BaseException) -> int:
    """Exit code of the entry point when the verb ends like this."""

    def end(words: list[str]) -> None:
        raise ending

    monkeypatch.setattr(program, "run", end)
    with pytest.raises(SystemExit) as stopped:
        program.main()
    return int(stopped.value.code or 0)


def test_a_mistake_is_one_line_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, DataError("no text; give some")) == 8
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "error: no text; give some\n")


def test_an_interrupt_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, KeyboardInterrupt()) == 130


def test_a_reader_that_goes_away_ends_it_as_it_ends_other_programs() -> None:
    ear, mouth = os.pipe()
    os.close(ear)
    words = [sys.executable, "-m", "lmtemplate", "--help"]
    ended = subprocess.run(words, stdout=mouth, stderr=subprocess.PIPE, check=False)
    os.close(mouth)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.slow
def test_help_of_a_module_that_is_run_names_the_program() -> None:
    words = [sys.executable, "-m", "lmtemplate", "fit", "--model.net.help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=False)
    assert shown.stdout.startswith("usage: lmtemplate ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["net.help"], GPT),
        (["optimizer.help", "--config=configs/quickstart.yaml"], AdamW),
        (["optimizer.help", "MuonAdamW"], MuonAdamW),
    ],
)
def test_help_on_a_key_is_that_of_a_class_that_it_takes(
    words: list[str], kind: type, command: Command
) -> None:
    shown = command("fit", f"--model.{words[0]}", *words[1:])
    assert shown.code == 0
    for setting in inspect.signature(kind).parameters:
        assert f"{words[0].removesuffix('help')}{setting} " in shown.out


@pytest.mark.parametrize("closed", ["1", "2", "1 2"])
def test_closed_streams_end_nothing(closed: str) -> None:
    streams = " ".join(f"{number}>&-" for number in closed.split())
    script = f"exec {sys.executable} -m lmtemplate --help {streams}"
    ended = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_where_an_error_cannot_be_printed_its_exit_code_is_still_there() -> None:
    with open("/dev/full", "wb") as full:
        words = [sys.executable, "-m", "lmtemplate", "prepare", "--for_config", "nope.yaml"]
        assert subprocess.run(words, stdout=full, stderr=full, check=False).returncode == 2


# ---- errors that nobody expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_full_disk_behind_standard_output_is_named(tmp_path: Path, buffered: str) -> None:
    words = [sys.executable, "-m", "lmtemplate", "--help"]
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered, "PYTHONPATH": os.getcwd()}
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, env=environment, cwd=tmp_path, text=True
        )
    message = "error: cannot write standard output: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (5, message)
    assert not any(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def no_own_code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The errors that these tests raise are not of a user's own code."""
    if "own_code" not in request.node.name:
        monkeypatch.setattr("lmtemplate.errors.own_line", lambda _: None)


def test_an_error_of_own_code_names_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    assert run_main(monkeypatch, NameError("no such name")) == 1
    line = capsys.readouterr().err
    assert re.match(r"error: \S*test_main.py:\d+: NameError: no such name; the traceback", line)


def test_an_error_of_a_chosen_part_names_its_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    monkeypatch.setitem(errors.CHOSEN, __file__, "model.metrics (mine.yaml:3): Mean")
    assert run_main(monkeypatch, RuntimeError("of another shape")) == 2
    says = "error: model.metrics (mine.yaml:3): Mean does not fit: RuntimeError: of another shape"
    assert capsys.readouterr().err.startswith(says)


def test_an_error_without_a_file_is_no_fault_of_a_sound_output(
    monkeypatch: pytest.MonkeyPatch, workplace: Path
) -> None:
    assert run_main(monkeypatch, OSError(5, "Input/output error")) == 70


@pytest.fixture
def workplace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A working directory for one command line that holds secrets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lmtemplate", "fit", "--x.api_key", "hush", "--n", "1"])
    return tmp_path


def test_a_fault_of_the_program_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    assert run_main(monkeypatch, KeyError("no\nsuch key for hush")) == 70
    (log,) = workplace.iterdir()
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: unexpected KeyError: 'no\\nsuch key for ***'" in line
    assert line.endswith(f"the traceback is in {log}")
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert "'--x.api_key', '***', '--n', '1'" in text
    assert "hush" not in text


def test_a_second_fault_adds_to_the_file(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    for error in (KeyError("one"), ValueError("two")):
        run_main(monkeypatch, error)
    text = (workplace / LOG).read_text()
    assert text.index("KeyError: 'one'") < text.index("ValueError: two")


def test_a_link_of_the_file_s_name_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    (workplace / LOG).symlink_to(workplace / "mine.txt")
    assert run_main(monkeypatch, KeyError("x")) == 70
    assert not (workplace / "mine.txt").exists()
    assert "the traceback is in no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
    ids=["device", "machine", "Python"],
)
def test_too_little_memory_is_one_line_and_exit_6(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workplace: Path,
    error: Exception,
) -> None:
    assert run_main(monkeypatch, error) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert "too little memory; lower data.batch_size" in line
    assert LOG in line


@pytest.mark.parametrize(
    "error",
    [
        OverflowError("cannot fit 'int' into an index-sized integer"),
        RuntimeError("value cannot be converted to type float without overflow"),
        ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
    ],
)
def test_a_number_that_nothing_holds_is_a_mistake_of_the_settings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workplace: Path,
    error: Exception,
) -> None:
    assert run_main(monkeypatch, error) == 2
    says = f"error: a number of the settings or of a file is too large: {type(error).__name__}: "
    assert capsys.readouterr().err.startswith(says)


def test_a_missing_package_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    missing = ModuleNotFoundError("No module named 'plotly'", name="plotly")
    assert run_main(monkeypatch, missing) == 1
    assert "the package plotly is missing; type: make install" in capsys.readouterr().err


def test_a_file_that_the_system_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    assert run_main(monkeypatch, PermissionError(13, "Permission denied", "/a/b")) == 5
    assert "error: Permission denied: /a/b; the traceback is in" in capsys.readouterr().err


def test_a_flag_that_is_there_twice_is_not_half_forgotten(command: Command) -> None:
    told = command("doctor", "--data", "a", "--data=b")
    assert (told.code, told.error) == (2, "--data (command line) is there twice; keep one")


@pytest.mark.parametrize("has_folder", [False, True])
def test_a_child_finds_no_module_in_a_folder_where_its_parent_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_folder: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path[1:], *([str(tmp_path)] if has_folder else [])])
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr(sys, "argv", ["lmtemplate", "--version"])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    program.main()
    assert os.environ["GOMP_SPINCOUNT"] == "0"  # before torch is there
    assert os.environ["PYTHONSAFEPATH"] == ("" if has_folder else "1")
