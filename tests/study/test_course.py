"""The course's quiz and figures, beside what `diagnose` and the formulas say."""

import re
import runpy
from pathlib import Path

import pytest

from lmtemplate.study.diagnose.verdict import judge

COURSE = Path(__file__).parents[2] / "docs/course"
pytestmark = pytest.mark.skipif(not COURSE.exists(), reason="docs/course is deleted")


def table(page: str) -> list[list[str]]:
    """Cells of all tables of a page."""
    lines = (COURSE / page).read_text(encoding="utf-8").splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]


def test_the_answers_of_the_quiz_are_what_diagnose_says() -> None:
    answers = {row[0]: row[1].strip("`") for row in table("quiz-answers.md") if len(row[0]) == 1}
    runs = runpy.run_path(str(COURSE / "draw.py"))["quiz"]()
    faults = {
        letter: [finding.name for finding in judge(*run).findings if finding.fault]
        for letter, run in runs.items()
    }
    assert len(runs) == 6
    assert faults == {letter: [name] for letter, name in answers.items()}


def test_the_steps_that_the_quiz_names_are_those_of_the_verdict() -> None:
    runs = runpy.run_path(str(COURSE / "draw.py"))["quiz"]()
    said = {row[0]: row[2] for row in table("quiz-answers.md") if len(row[0]) == 1}
    for letter, run in runs.items():
        evidence = judge(*run).findings[0].says
        for number in re.findall(r"(?:step |from )(\d[\d.]*\d)", said[letter]):
            assert number in evidence, letter


def test_the_quiz_does_not_give_its_answers_away() -> None:
    answers = {row[1].strip("`") for row in table("quiz-answers.md") if len(row[0]) == 1}
    asked = (COURSE / "quiz.md").read_text(encoding="utf-8")
    assert "](quiz-answers.md)" in asked
    assert len(answers) == 6
    assert not [name for name in answers if name in asked]


def test_the_rates_of_the_bowl_leave_the_shares_that_the_page_states() -> None:
    draw = runpy.run_path(str(COURSE / "draw.py"))
    shares = {row[0].split(" ")[0]: row[1] for row in table("3-landscape.md")[2:]}
    for rate in ("0.005", "0.100", "0.102"):
        assert draw["descent"](float(rate))[1] == pytest.approx(float(shares[rate]))
    assert draw["descent"](0.05)[1] == pytest.approx(0)


@pytest.mark.slow
def test_the_packers_reach_what_the_page_states(capsys: pytest.CaptureFixture[str]) -> None:
    page = (COURSE / "7-compression.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    exec(code, {})
    printed = dict(re.findall(r"^(.+?)  +([\d.]+) bits", capsys.readouterr().out, re.M))
    stated = {row[0]: row[1] for row in table("7-compression.md")}
    assert set(printed) == {"gzip", "xz", "xz, after the training text"}
    for name, bits in printed.items():
        assert float(stated[name]) == pytest.approx(
            float(bits), abs=0.02
        )  # versions of zlib differ


def test_the_pictures_are_drawn(tmp_path: Path) -> None:
    draw = runpy.run_path(str(COURSE / "draw.py"))
    draw["save"](draw["draw_rates"](), tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
