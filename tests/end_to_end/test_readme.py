"""The README's and the docs' code blocks -> commands that work, code that compiles."""

import ast
import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from lmtemplate.__main__ import verbs
from lmtemplate.data.formats import PRESETS
from tests.conftest import Command, needs_study
from tests.test_makefile import commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
SETTING_UP = {"git", "cd", "source", "pip", "python", "python3", "export", "torchrun"}

SMALL = [
    *("--model.net.n_layer=1", "--model.net.n_head=2", "--model.net.n_embd=16"),
    *("--data.block_size=16", "--data.batch_size=4", "--data.max_val_blocks=8"),
]
SHORT = {
    "fit": [
        *SMALL,
        *("--trainer.accelerator=cpu", "--trainer.val_check_interval=2"),
        *("--model.schedule.warmup_steps=0", "--samples.max_new_tokens=5"),
        *("--report=false", "--pictures=null"),  # drawn at low priority: slow on a busy machine
    ],
    "generate": ["--max_new_tokens=5"],
    "temperature": ["--max_new_tokens=5"],
    "landscape": ["--grid=5", "--windows=2"],
    "find-lr": [*SMALL, "--trainer.accelerator=cpu", "--steps=20"],
}

NEEDS_TOOLS = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("git")), reason="needs make and git"
)
pytestmark = [NEEDS_TOOLS, needs_study]  # the pages show verbs of study/


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def shell_lines(page: Path) -> list[list[str]]:
    """Words of every command in the page's bash blocks; comments left out, long lines joined."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def behind(words: list[str]) -> list[list[str]]:
    """The commands of lmtemplate behind what a page says to type."""
    return [words[1:]] if words[0] == "lmtemplate" else commands(*words[1:])


def shortened(words: list[str]) -> list[str]:
    """The same command, on a model so small and for so long that it takes a second."""
    steps = "--trainer.max_steps=6" if "must" in words else "--trainer.max_steps=4"
    return [*words, *SHORT.get(words[0], []), *([steps] if words[0] == "fit" else [])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_is_a_verb_or_a_target_with_configs_that_are_there(page: Path) -> None:
    for words in shell_lines(page):
        assert words[0] in {"make", "lmtemplate", *SETTING_UP}
        for verb, *flags in behind(words) if words[0] in ("make", "lmtemplate") else []:
            assert verb in verbs(), words
            for flag, value in pairwise(flags):
                if flag == "--config" and value.startswith("configs/"):
                    assert (ROOT / value).is_file(), words


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs(
    page: Path, command: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the page's order, where a preset stands for a smaller text and anything for one's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    for preset in PRESETS:
        shutil.copytree(corpus, f"data/{preset}")
    if page.parent.name == "course":  # which begins with `make train`
        assert command(*shortened(behind(["make", "train"])[-1])).code == 0
    for typed in shell_lines(page):
        for words in behind(typed) if typed[0] in ("make", "lmtemplate") else []:
            words = [
                part for word in words for part in re.sub(r"^(--\w+)=", r"\1\0", word).split("\0")
            ]
            if "--input" in words:
                source = Path(words[words.index("--input") + 1])
                if not source.exists() and str(source) not in PRESETS:
                    source.mkdir(parents=True)
                    for number in range(9):
                        text = f"Once there were {number} texts. " * 99
                        (source / f"{number}.txt").write_text(text)
            result = command(*shortened(words))
            expected = int("not healthy" in result.out)  # what diagnose says of a page's bad run
            assert result.code == expected, f"{shlex.join(typed)}: {result.error}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_code_is_sound(page: Path) -> None:
    for code in blocks(page, "python"):
        ast.parse(code)
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "SECURITY.md"], ids=lambda page: page.stem)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:lmtemplate|configs|docs|tests)/[\w/.-]+)`", text)
    places = [*(page.parent / link for link in links), *(ROOT / name for name in named)]
    assert [str(path) for path in places if not path.exists()] == []
