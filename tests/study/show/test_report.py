"""One file that explains a run: its verdict, what it cost, what it wrote, and no foreign script."""

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.record import read_record
from lmtemplate.study.diagnose.diagnose import Examination
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase
from lmtemplate.study.diagnose.sanity_checks import SanityCheck
from lmtemplate.study.diagnose.verdict import Verdict
from lmtemplate.study.show import report as study
from lmtemplate.study.show.page import RunFiles, read_run
from tests.browser import needs_browser, open_offline
from tests.study.show.test_page import EVIL, INITIAL, LOSSES, Elements, write_run

FAULT = Finding("loss_turns", True, "It turned at step 30.", "dropout & fewer passes.", (30, 40))
NOTE = Finding("undertrained", False, "4 tokens per parameter.", "", (0, 40))
PHASE = Phase("descent", 0, 20, "fast")
CHECK = SanityCheck("Loss decreasing", True, "4 -> 0.5")


@pytest.fixture(autouse=True)
def examination(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examination:
    """What was found; the verdict has tests of its own, and these runs are too short for one."""
    record = read_run(write_run(tmp_path / "examined")).record
    found = Examination(record, Facts(), Verdict((FAULT, NOTE), (PHASE,)), (CHECK,))
    monkeypatch.setattr(study, "examine", lambda run, allow: found)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def built(run: Path, examination: Examination) -> str:
    return study.write_report(run, examination).read_text(encoding="utf-8")


def test_the_command_that_made_the_run_works_when_typed(run: Path) -> None:
    words = ["fit", "--run_dir", "runs/a run's", "--model.net", "mine.Net", "--allow", "mine"]
    files = replace(read_run(run), manifest={"command": ["/x/lmtemplate/__main__.py", *words]})
    assert shlex.split(dict(study.figure_rows(files))["command"]) == ["lmtemplate", *words]
    assert dict(study.figure_rows(replace(files, manifest={})))["command"] == study.NONE


def test_a_run_that_went_on_is_told_with_its_last_command_and_time(run: Path) -> None:
    again = [
        {"step": 300 * n, "started": f"day {n}", "command": ["/x", "fit", f"{n}"]} for n in (1, 2)
    ]
    manifest = {"started": "day 0", "command": ["/x", "fit", "0"], "resumed": again}
    assert study.when(manifest) == "day 0; resumed 2 times, last at step 600, day 2;"
    assert study.when({"started": "day 0"}) == "day 0"
    rows = dict(study.figure_rows(replace(read_run(run), manifest=manifest)))
    assert rows["command"] == "lmtemplate fit 2"


def test_parts_of_the_improvement_lie_on_lines_between_new_bests(run: Path) -> None:
    # 4 -> 2 at step 10, 1 at 20, 0.5 at 30, no better after: 80 % of 3.5 is 2.8, 98 % is 3.43
    expected = [0, 10 + 10 * (2.8 - 2.0) / 1.0, 20 + 10 * (3.43 - 3.0) / 0.5, 30]
    assert study.steps_at(read_run(run)) == pytest.approx(expected)


@pytest.mark.parametrize("initial", [4.0, 3.3])  # of 3.3, rounded parts add up to 39
def test_the_parts_of_the_cost_add_up_to_the_run(run: Path, initial: float) -> None:
    files = read_run(run)
    costs = study.costs_of(
        replace(files, record=replace(files.record, initial_val_loss=initial)), 3600.0
    )
    assert costs is not None
    parts = [[float(c.strip("s% ").replace(",", "")) for c in row[1:]] for row in costs["rows"]]
    steps, tokens, seconds, share, money = map(sum, zip(*parts, strict=True))
    assert (tokens, money) == pytest.approx((4000, 20))  # a unit of money for each second
    assert share == pytest.approx(100, abs=0.2)
    assert (steps, seconds) == (40, pytest.approx(20, abs=2))  # rounded


def test_money_is_named_only_where_there_is_a_price(run: Path) -> None:
    assert "money" not in (study.costs_of(read_run(run), None) or {})["head"]


@pytest.mark.parametrize("price", [-1, math.inf, math.nan])
def test_a_price_that_is_none_is_refused(run: Path, price: float) -> None:
    with pytest.raises(ConfigError, match="is no price"):
        study.report(run, price_per_hour=price)


@pytest.mark.parametrize("initial", [None, 0.1])
def test_without_an_improvement_there_is_no_cost_of_it(run: Path, initial: float | None) -> None:
    files = read_run(run)
    files = replace(files, record=replace(files.record, initial_val_loss=initial))
    assert study.costs_of(files, None) is None


def test_samples_begin_with_the_untrained_model(run: Path) -> None:
    (rows,) = study.samples_of(read_run(run)).values()
    assert [name for name, _ in rows] == ["untrained", *(f"step {step}" for step in LOSSES)]
    assert rows[0][1] == "The text of step 0"


def test_the_verdict_stands_in_sentences(run: Path, examination: Examination) -> None:
    text = built(run, examination)
    assert "Verdict: not healthy" in text
    said = "<b>fault: loss turns.</b> It turned at step 30. Try: dropout &amp; fewer passes."
    assert said in text
    assert "<b>note: undertrained.</b> 4 tokens per parameter.</li>" in text
    assert "<b>descent</b>, steps 0 to 20: fast" in text
    row = r"Loss decreasing</div></th><td>✓</td><td>4 -&gt; 0.5</td>"
    assert re.search(row, text)


@pytest.mark.slow
def test_the_report_stands_in_the_run_directory(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert str(run / "report.html") in capsys.readouterr().out
    for word in ("Verdict", "Curves", "Samples", "cost", "seed_everything: 1", "tokenizer_sha256"):
        assert word in text
    assert f"From {INITIAL:.4f} to {min(LOSSES.values()):.4f} nats" in text


@pytest.mark.slow
def test_a_run_that_has_logged_nothing_is_not_called_healthy(
    examination: Examination, tmp_path: Path
) -> None:
    lines = tmp_path / "new" / "checkpoints" / "training_metrics.jsonl"
    lines.parent.mkdir(parents=True)
    lines.touch()
    record = read_record(tmp_path / "new")
    empty = replace(examination, record=record, verdict=Verdict(()))
    assert "<h2>Verdict: nothing was logged yet</h2>" in built(tmp_path / "new", empty)


@pytest.mark.slow
def test_output_names_another_file(run: Path, tmp_path: Path) -> None:
    study.report(run, output=tmp_path / "other.html")
    assert (tmp_path / "other.html").is_file()
    assert not (run / "report.html").exists()


@pytest.mark.slow
def test_a_killed_run_has_a_report(tmp_path: Path, examination: Examination) -> None:
    run = write_run(tmp_path / "killed", finished=False)
    (run / "manifest.json").unlink()
    (run / "config.yaml").unlink()
    assert "not finished" in built(run, examination)


@pytest.mark.slow
def test_what_a_run_wrote_is_never_markup(
    run: Path, tmp_path: Path, examination: Examination
) -> None:
    evil = write_run(
        tmp_path / EVIL.replace("/", "\u2215"), prompt=EVIL, sample=f"</td>{EVIL}", tokenizer=EVIL
    )
    (evil / "config.yaml").write_text(f"run_dir: '</pre>{EVIL}'")
    harmless, other = (
        Elements(built(run, examination)),
        Elements(built(evil, examination)),
    )
    assert [tag for tag, _ in other.found] == [tag for tag, _ in harmless.found]


def test_steps_of_a_fault_are_shaded(run: Path) -> None:
    files: RunFiles = read_run(run)
    shapes = study.page.curve_figure(files, [FAULT.steps]).layout.shapes
    assert [(shape.x0, shape.x1) for shape in shapes] == [(30, 40)]
    assert np.isin([30, 40], files.record.steps).all()


@needs_browser
@pytest.mark.browser
def test_a_browser_opens_the_report_without_a_complaint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", prompt=EVIL, sample=EVIL)
    study.report(run, price_per_hour=2.0)
    assert open_offline(run / "report.html", tmp_path / "report.png") == []
    assert (tmp_path / "report.png").stat().st_size > 10_000
