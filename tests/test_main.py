"""Words of the command line -> a verb's module, called; mistakes -> one line and an exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmtemplate import __main__ as program
from lmtemplate import __version__
from lmtemplate.__main__ import RANKS, VERBS, take_allowed
from lmtemplate.errors import ConfigError, DataError
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
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 96
    for verb in VERBS:
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
    assert {"prepare", "fit", "validate", "test", "generate"} <= set(VERBS)


def test_an_unknown_verb_names_those_that_exist(command: Command) -> None:
    mistake = command("trian")
    assert mistake.code == 2
    assert "'trian'" in mistake.error
    assert all(verb in mistake.error for verb in VERBS)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("trian", "fit"),
        ("train", "fit"),
        ("fitt", "fit"),
        ("Fit", "fit"),
        ("PREPARE", "prepare"),
        ("sumary", "summary"),
    ],
)
def test_a_misspelt_verb_is_answered_with_the_one_meant(
    command: Command, typed: str, meant: str
) -> None:
    assert f"no verb {typed!r}; did you mean {meant}? (there are: " in command(typed).error


def test_a_word_like_no_verb_is_answered_with_all(command: Command) -> None:
    assert "no verb 'xyz' (there are: prepare, " in command("xyz").error


@pytest.mark.parametrize("name", RANKS)
@pytest.mark.parametrize("verb", ["fit", "validate", "schedule"])
def test_a_rank_that_is_no_number_is_named_before_lightning_sees_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    monkeypatch.setenv(name, "abc")
    mistake = command(verb)
    assert mistake.code == 2
    assert f"{name}=abc" in mistake.error
    assert command("--version").code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(command: Command, verb: str) -> None:
    shown = command(verb, "--help")
    assert shown.code == 0
    assert f"lmtemplate {verb}" in shown.out


def test_a_setting_is_explained_by_the_docstring_of_the_function(command: Command) -> None:
    shown = " ".join(command("generate", "x", "--help").out.split())
    assert "below 1 sharpens the distribution, above 1 flattens it" in shown


def test_an_unknown_flag_is_one_line_and_exit_2(command: Command) -> None:
    mistake = command("prepare", "--inputt", "x")
    assert mistake.code == 2
    assert "inputt" in mistake.error
    assert "lmtemplate prepare --help" in mistake.error
    assert "\n" not in mistake.error


def test_a_flag_of_the_wrong_type_is_one_line_and_exit_2(command: Command, tmp_path: Path) -> None:
    mistake = command("generate", tmp_path, "--max_new_tokens", "many")
    assert mistake.code == 2
    assert "max_new_tokens" in mistake.error
    assert "\n" not in mistake.error


FLAGS = [
    ("generate RUN --temprature 1", "no flag --temprature; did you mean --temperature?"),
    ("generate RUN --max-new-token=1", "no flag --max-new-token; did you mean --max_new_tokens?"),
    ("plan --token 5", "no flag --token; did you mean --tokens?"),
    ("prepare --tokenizr char", "no flag --tokenizr; did you mean --tokenizer?"),
    ("summary RUN --zzz", "no flag --zzz (see"),
    ("prepare books", "'books' is not a flag; did you mean --input books?"),
    ("plot RUN another", "'another' is not a flag (see"),
    ("generate --run RUN", "RUN is a word, not a flag: lmtemplate generate RUN"),
    ("plan --tokens 1B", "--tokens: expected a number or null, got 1B; write 1000000000"),
    ("plan --flops abc", "--flops: expected a number or null, got abc (see"),
    ("prepare --vocab_size 1e4", "expected a whole number or null, got 1e4; write 10000 (see"),
    ("prepare --seed abc", "--seed: expected a whole number, got abc"),
    ("generate RUN --temperature hot", "--temperature: expected a number, got hot"),
    ("generate RUN --temperature nan", "--temperature: expected a number, got nan"),
    ("generate RUN --max_new_tokens 1e3", "expected a whole number, got 1000.0; write 1000 (see"),
    ("generate RUN --device gpu", "--device: expected one of auto, cpu, cuda, mps, got gpu"),
]


@pytest.mark.parametrize(("words", "says"), FLAGS, ids=[words for words, _ in FLAGS])
def test_a_wrong_flag_is_said_in_plain_words(command: Command, words: str, says: str) -> None:
    mistake = command(*words.split())
    assert mistake.code == 2
    assert says in mistake.error
    assert mistake.error.endswith(f"(see lmtemplate {words.split()[0]} --help)")


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


@pytest.mark.parametrize("closed", ["1", "2", "1 2"])
def test_closed_streams_end_nothing(closed: str) -> None:
    streams = " ".join(f"{number}>&-" for number in closed.split())
    script = f"exec {sys.executable} -m lmtemplate --help {streams}"
    ended = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


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
    assert "error: unexpected KeyError: 'no\\nsuch key for ***' (__main__.py:" in line
    assert line.endswith(f"the traceback is in {log}")
    text = log.read_text()
    assert "Traceback (most recent call last)" in text
    assert "'--x.api_key', '***', '--n', '1'" in text
    assert "hush" not in text


def test_a_second_fault_adds_to_the_file(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    for error in (KeyError("one"), ValueError("two")):
        run_main(monkeypatch, error)
    text = (workplace / program.CRASH_LOG).read_text()
    assert text.index("KeyError: 'one'") < text.index("ValueError: two")


def test_the_file_goes_elsewhere_where_the_working_directory_takes_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path
) -> None:
    (workplace / program.CRASH_LOG).symlink_to(workplace / "mine.txt")  # is not followed
    (workplace / "temporary").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(workplace / "temporary"))
    assert run_main(monkeypatch, KeyError("x")) == 70
    assert not (workplace / "mine.txt").exists()
    assert str(workplace / "temporary" / program.CRASH_LOG) in capsys.readouterr().err
    (workplace / "temporary" / program.CRASH_LOG).unlink()
    (workplace / "temporary").rmdir()
    assert run_main(monkeypatch, KeyError("x")) == 70
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
    assert program.CRASH_LOG in line


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
