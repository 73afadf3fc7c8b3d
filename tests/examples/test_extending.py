"""docs/extending.md: what it shows trains, and what it names is there."""

import math
import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY, Command
from tests.runs import check_line, curve

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def blocks(section: str, language: str) -> list[str]:
    """What a section shows in this language; `mine` is renamed, for Python imports a name once."""
    found = re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], re.DOTALL)
    return [re.sub(r"\bmine\b", module_of(section), text) for text in found]


def module_of(section: str) -> str:
    return section.lower().replace(" ", "_")


YAML = [(name, n) for name in SECTIONS for n in range(len(blocks(name, "yaml")))]


def test_every_file_that_it_names_is_there() -> None:
    named = set(re.findall(r"(?:examples|lmtemplate|configs)/[\w/.]+\.\w+", PAGE))
    assert {name for name in named if not (ROOT / name).is_file()} == set()
    stems = {Path(name).stem for name in named}
    assert {path.stem for path in (ROOT / "examples").glob("*.*")} <= stems


def test_every_section_of_the_table_is_there() -> None:
    for title, anchor in re.findall(r"^\| \[(.+?)\]\(#(.+?)\)", PAGE, re.MULTILINE):
        section = next(name for name in SECTIONS if name.lower() == title.lower())
        assert anchor == section.lower().replace(" ", "-")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("section", "number"), YAML)
def test_what_it_shows_trains(
    command: Command, corpus: Path, folder: Path, section: str, number: int
) -> None:
    module = module_of(section)
    for code in blocks(section, "python"):
        (folder / f"{module}.py").write_text(code)
    text = blocks(section, "yaml")[number]
    (folder / "own.yaml").write_text(text)
    taken = [flag for flag in TINY if not flag.startswith("--model.")]
    size = ["--model.net.n_layer=1", "--model.net.n_head=2", "--model.net.n_embd=32"]
    own_net = "net" in yaml.safe_load(text).get("model", {})
    warmup = (
        [] if "warmup_steps" in text or "torch.optim.lr" in text else ["--model.schedule=Constant"]
    )
    words = ["--config", "own.yaml", "--data.path", corpus, *taken, *warmup]
    words += [] if own_net else size
    allow = ["--allow", module, "--allow", "schedulefree"]
    allow += ["--allow", "lightning"] if "lightning.pytorch" in text else []
    flags = ["--trainer.max_steps=24", "--run_dir", "run"]
    result = command("fit", *words, *flags, *allow)
    assert result.code == 0, result


@pytest.mark.slow
def test_its_data_trains_and_is_learned(command: Command, folder: Path) -> None:
    (folder / "digits.py").write_text(blocks("Data", "python")[0])
    size = ["--model.net.n_layer=1", "--model.net.n_head=2", "--model.net.n_embd=32"]
    short = [f for f in TINY if "max_val_blocks" not in f and "block_size" not in f]
    config = ["--config", ROOT / "configs/quickstart.yaml"]  # its path is not this data's
    words = [*config, "--data.class_path=digits.Digits", "--allow=digits", *short, *size]
    words += ["--data.block_size=16", "--trainer.limit_val_batches=4"]
    result = command("fit", *words, "--run_dir=run")
    assert result.code == 0, result
    losses = [loss for _, loss in curve(Path("run"), "val/loss")]
    assert losses[0] == pytest.approx(math.log(10), rel=1e-3)
    assert losses[-1] < 1  # each digit says the next one
    wrong = command("fit", *words, "--run_dir=other", "--data.path=x")
    assert "unknown setting 'data.path'" in check_line(wrong, 2)


@pytest.mark.slow
def test_its_corpus_format_prepares_paragraphs(command: Command, folder: Path) -> None:
    (folder / "paragraphs.py").write_text(blocks("A corpus format", "python")[0])
    (folder / "texts").mkdir()
    (folder / "texts/one.txt").write_text("\n\n".join(f"paragraph {n}" for n in range(40)))
    words = ["--input=texts", "--output=data", "--tokenizer=byte", "--format=paragraphs.read"]
    result = command("prepare", *words, "--allow=paragraphs")
    assert result.code == 0, result
    assert re.search(r"^train +32\b", result.out, re.MULTILINE)
