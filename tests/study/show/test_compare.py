"""Runs beside each other: what differs, what came of it, and curves over four axes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.study.diagnose.diagnose import Examination
from lmtemplate.study.diagnose.finding import Facts, Finding
from lmtemplate.study.diagnose.verdict import Verdict
from lmtemplate.study.experiments.arms import Arm, named_arm, runs_in
from lmtemplate.study.show import compare as study
from lmtemplate.study.show.overlay import overlay
from lmtemplate.study.show.page import NONE, RunFiles, read_run
from tests.browser import needs_browser, open_offline
from tests.study.experiments.seeded import arms_of, write_arm, write_seed
from tests.study.show.test_page import (
    EVIL,
    TOKENS_PER_STEP,
    Elements,
    write_run,
)

NO_VERDICTS: list[list[str]] = [[], []]


@pytest.fixture(autouse=True)
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What is to be found; the verdict has tests of its own, and these runs are too short."""
    found: list[Finding] = []

    def examine(run: Path, allow: Sequence[str]) -> Examination:
        return Examination(read_run(run).record, Facts(), Verdict(tuple(found)), ())

    monkeypatch.setattr(study, "examine", examine)
    return found


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path / "slow", lr=0.1), write_run(tmp_path / "fast", lr=0.2)]


@pytest.fixture
def arms(folders: list[Path]) -> list[Arm]:
    return arms_of(folders)


@pytest.fixture
def runs(arms: list[Arm]) -> list[RunFiles]:
    return [arm.runs[0] for arm in arms]


def test_only_settings_that_differ_are_shown(arms: list[Arm]) -> None:
    assert study.setting_rows(arms) == [("model.optimizer.lr", ["0.1", "0.2"])]


def test_the_seed_is_a_setting_of_single_runs_and_what_no_loss_depends_on_is_none(
    tmp_path: Path,
) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_seed(tmp_path / name, seed)
        settings = tmp_path / name / "config.yaml"
        settings.write_text(f"{settings.read_text()}\nsamples: {{every: {seed}}}\n")
    arms = arms_of([tmp_path / "a", tmp_path / "b"])
    assert study.setting_rows(arms) == [("seed_everything", ["1", "2"])]


def test_a_run_without_a_config_has_dashes(folders: list[Path], tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare")
    (bare / "config.yaml").unlink()
    arms = arms_of([*folders, bare])
    assert study.setting_rows(arms) == [("model.optimizer.lr", ["0.1", "0.2", NONE])]


def test_runs_of_one_name_are_told_apart_by_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [write_run(Path(parent, "run")) for parent in "ab"]
    assert study.labels_of(arms_of(folders)) == list(map(str, folders))


def test_a_long_name_loses_its_middle_where_it_stays_unique(tmp_path: Path) -> None:
    names = ["a" * 30 + "-lr-0.1", "a" * 30 + "-lr-0.02", "b"]
    arms = arms_of([write_run(tmp_path / name) for name in names])
    assert study.labels_of(arms) == ["a" * 17 + "…" + name[-18:] for name in names[:2]] + ["b"]
    twins = arms_of([write_run(tmp_path / ("c" * 17 + middle + "c" * 30)) for middle in "xy"])
    assert study.labels_of(twins) == [arm.name for arm in twins]


def test_the_verdict_is_the_first_fault_and_the_number_of_others(
    runs: list[RunFiles], findings: list[Finding]
) -> None:
    findings.append(Finding("undertrained", False, "", "", (0, 40)))
    assert study.verdict_of(runs[0]) == "no fault seen"
    findings.append(Finding("rate_too_high", True, "", "", (0, 40)))
    assert study.verdict_of(runs[0]) == "rate too high"
    findings.append(Finding("diverged", True, "", "", (0, 40)))
    assert study.verdict_of(runs[0]) == "rate too high (+1)"


def test_a_run_that_has_logged_nothing_has_no_verdict(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "training_metrics.jsonl").touch()
    assert study.verdict_of(read_run(tmp_path)) == NONE


def test_one_run_cannot_be_compared(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match=f"two runs or more .* got: {folders[0]}$"):
        study.compare(folders[:1])


def test_the_same_run_twice_is_refused(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"each named once, got: .*slow .*slow"):
        study.compare([folders[0], folders[0] / ".." / "slow"])


def test_a_folder_that_is_no_run_is_named(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing_here"):
        study.compare([folders[0], tmp_path / "nothing_here"])


def test_runs_of_different_tokenizers_are_told_apart(tmp_path: Path) -> None:
    arms = arms_of([write_run(tmp_path / name, tokenizer=name) for name in "ab"])
    assert "tokenizers differ" in study.notes_on(arms, ["a", "b"], NO_VERDICTS)[0]


def test_other_data_under_the_same_tokenizer_is_said(arms: list[Arm]) -> None:
    assert study.notes_on(arms, ["slow", "fast"], NO_VERDICTS) == []
    arms[0].runs[0].manifest["data"]["fingerprint"] = "another"
    assert "data differ" in study.notes_on(arms, ["slow", "fast"], NO_VERDICTS)[0]


def test_an_unfinished_run_is_named(arms: list[Arm], tmp_path: Path) -> None:
    arms = [arms[0], *arms_of([write_run(tmp_path / "young", finished=False)])]
    assert "young" in study.notes_on(arms, ["slow", "young"], NO_VERDICTS)[0]


def test_the_table_keeps_to_the_terminals_width() -> None:
    labels = [f"run-number-{n}" for n in range(9)]
    text = study.as_text([("tokens", list("123456789")), ("verdict", ["x" * 12] * 9)], labels, 60)
    assert max(map(len, text.splitlines())) <= 60
    assert re.findall(r"run-number-\d", text) == labels


def test_the_verb_prints_the_table_and_writes_the_page(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.compare(folders, output=tmp_path / "out.html")
    printed = capsys.readouterr().out
    assert re.search(r"model.optimizer.lr +0.1 +0.2\n", printed)
    assert re.search(r"best val loss +0.5000 +0.5000\n", printed)
    assert re.search(r"verdict +no fault seen +no fault seen\n", printed)
    assert Elements((tmp_path / "out.html").read_text()).count("table") == 1


def test_arms_of_seeds_are_a_column_and_a_colour_each(
    tmp_path: Path,
    findings: list[Finding],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    findings.append(Finding("too_short", False, "", "", (0, 40)))
    paths = [write_arm(tmp_path / "a", [0.0, 0.01, 0.02]), write_arm(tmp_path / "b", [-1.0] * 3)]
    study.compare(paths, output=tmp_path / "out.html")
    printed = capsys.readouterr().out
    assert re.search(r"^ +a +b\n(.+\n)*seeds +1, 2, 3 +1, 2, 3\n", printed)
    assert re.search(r"deviation +0.0100 +0.0000\n", printed)
    assert "\nb is better than a by 0.98" in printed
    assert "(3 seeds each, paired)" in printed
    assert "\na, b: too short to judge" in printed
    traces = overlay([named_arm(runs_in(path), path) for path in paths], ["a", "b"]).data
    assert [trace.showlegend for trace in traces] == [True, False, False] * 2
    assert len({trace.line.color for trace in traces}) == 2


def test_json_is_one_object_with_each_comparison_and_its_sentence(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.compare(folders, output=tmp_path / "out.html", at="tokens", json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["budget"] == 40 * TOKENS_PER_STEP
    assert told["arms"][1]["runs"] == [str(folders[1])]
    (comparison,) = told["comparisons"]
    assert comparison["better"] is None
    assert "no difference" in comparison["sentence"]
    assert f"{comparison['sentence']}</p>" in (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "`" not in comparison["sentence"]  # nothing there would render it


def test_an_effect_of_nothing_is_refused(folders: list[Path]) -> None:
    with pytest.raises(ConfigError, match="--effect 0 has to be above 0"):
        study.compare(folders, effect=0)


def test_verdicts_that_differ_between_seeds_are_counted() -> None:
    assert study.count_verdicts(["fine", "spike", "fine"]) == "fine (2 of 3), spike (1 of 3)"
    assert study.count_verdicts(["fine", "fine"]) == "fine"


@needs_browser
@pytest.mark.browser
def test_a_browser_opens_the_page_and_runs_no_name(folders: list[Path], tmp_path: Path) -> None:
    evil = write_run(tmp_path / EVIL.replace("/", "\u2215"))
    written = tmp_path / "compare.html"
    study.compare([*folders, evil], output=written)
    assert open_offline(written, tmp_path / "compare.png") == []
    assert (tmp_path / "compare.png").stat().st_size > 10_000
