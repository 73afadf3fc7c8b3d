"""From a run directory or event files to sentences, JSON and an exit code."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from lmtemplate.errors import CheckpointError, ConfigError
from lmtemplate.plug import not_allowed
from lmtemplate.record import Record
from lmtemplate.study.diagnose import diagnose as diagnose_module
from lmtemplate.study.diagnose import evidence as facts
from lmtemplate.study.diagnose.diagnose import diagnose, examine, sentences, verdict_sentences
from lmtemplate.study.diagnose.finding import Facts, Finding, Phase
from lmtemplate.study.diagnose.verdict import Verdict

NOTE = Finding("undertrained", False, "It saw 2 tokens per parameter.", "", (1, 12))
FAULT = Finding("learning_rate_too_high", True, "The loss rose.", "Halve the rate.", (4, 12))
SPIKE = Finding("spike_recovered", False, "The loss rose once.", "", (6, 6))
PHASES = (Phase("fast fall", 1, 4, "most is learned here"), Phase("slow fall", 4, 12, "the rest"))
HEALTHY = Verdict((NOTE, SPIKE), PHASES)
ILL = Verdict((FAULT, NOTE))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ALL_SAMPLES_TOKENS", 100)
    monkeypatch.setattr(facts, "FEWEST_SAMPLES", 2)


@pytest.fixture
def verdict(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the verdict; how it is found is not what is tested here."""

    def give(given: Verdict) -> None:
        monkeypatch.setattr(diagnose_module, "judge", lambda record, facts: given)

    return give


def said_of(run: Path, capsys: pytest.CaptureFixture[str], **flags: Any) -> tuple[int, str]:
    capsys.readouterr()
    try:
        diagnose(run, **flags)
    except SystemExit as end:
        return int(end.code or 0), capsys.readouterr().out
    return 0, capsys.readouterr().out


def test_faults_come_first_then_phases_then_notes() -> None:
    assert verdict_sentences(Verdict((NOTE, FAULT), PHASES)) == [
        "verdict: not healthy: 1 fault",
        "  learning rate too high: The loss rose. Try: Halve the rate.",
        "  steps 1 to 4, fast fall: most is learned here",
        "  steps 4 to 12, slow fall: the rest",
        "  note, undertrained: It saw 2 tokens per parameter.",
    ]
    assert verdict_sentences(Verdict((FAULT, FAULT)))[0] == "verdict: not healthy: 2 faults"
    assert verdict_sentences(Verdict(()))[0] == "verdict: no fault seen"


@pytest.mark.slow
def test_a_run_is_explained_in_lines_of_100_characters(
    finished: Path, verdict: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(HEALTHY)
    code, text = said_of(finished, capsys)
    assert code == 0
    assert text.startswith("verdict: no fault seen\n")
    assert all(len(line) <= 100 for line in text.splitlines())
    words = " ".join(text.split())
    for expected in (
        "Loss decreasing over time ",
        "Validation loss improving ",
        "Predictions getting better ",
        "Model generating reasonable text ",
        f"guessing evenly (ln V) {math.log(257):.2f}, token frequencies ",
    ):
        assert expected in words
    assert "not checked" not in words


def test_the_exit_code_is_one_for_a_fault(
    finished: Path, verdict: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(ILL)
    code, text = said_of(finished, capsys, quick=True)
    assert code == 1
    assert "learning rate too high: The loss rose." in text


@pytest.mark.slow
def test_json_is_one_strict_object_and_says_the_same(
    finished: Path, verdict: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(HEALTHY)
    code, text = said_of(finished, capsys, json=True)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads(text, parse_constant=refuse)
    assert code == 0
    assert content["healthy"] is True
    names = [finding["name"] for finding in content["findings"]]
    assert names == ["undertrained", "spike_recovered"]
    assert [phase["first_step"] for phase in content["phases"]] == [1, 4]
    assert len(content["checks"]) == 4
    assert content["baselines"]["uniform"] == math.log(257)
    assert content["facts"]["parameters"] == examine(finished, deep=False).facts.parameters
    assert content["missing"] == []
    code, text = said_of(finished, capsys, json=True, quick=True)
    assert "the weights" in " ".join(json.loads(text)["missing"])
    verdict(ILL)
    code, text = said_of(finished, capsys, json=True, quick=True)
    assert (code, json.loads(text)["healthy"]) == (1, False)


def test_a_quick_look_loads_no_weights(
    finished: Path, verdict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict(HEALTHY)
    monkeypatch.setattr("lmtemplate.study.diagnose.artifacts.read", None)
    assert examine(finished, deep=False).facts.copied_tokens is None


def test_what_is_missing_is_said(finished: Path, verdict: Any, tmp_path: Path) -> None:
    verdict(HEALTHY)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "config.yaml").unlink()
    examination = examine(run)
    assert examination.facts.bigram_loss is None
    assert "not checked: without the corpus: " in sentences(examination)


def test_a_model_that_could_not_be_loaded_is_said_in_the_headline(
    finished: Path, verdict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ConfigError(f"the net: {not_allowed('mine.Bigram')}")

    verdict(HEALTHY)
    monkeypatch.setattr("lmtemplate.study.diagnose.artifacts.open_model", refuse)
    headline = sentences(examine(finished)).splitlines()[0]
    assert headline == "verdict: no fault seen; the model was not checked: add --allow mine"


def test_of_a_run_that_goes_on_it_is_said_that_it_has_not_ended(
    finished: Path, verdict: Any, tmp_path: Path
) -> None:
    verdict(HEALTHY)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "summary.json").unlink()
    ended, goes_on = ({*examine(one, deep=False).missing} for one in (finished, run))
    assert goes_on - ended == {"what is still to come: this run has not ended"}


@pytest.mark.slow
def test_a_shard_that_went_bad_costs_only_what_it_held(
    finished: Path, corpus: Path, verdict: Any, tmp_path: Path
) -> None:
    verdict(HEALTHY)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    data = Path(shutil.copytree(corpus, tmp_path / "data"))
    (data / "tokenizer.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(corpus), str(data)))
    (reason,) = examine(run).missing
    assert "tokenizer.json cannot be read" in reason


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no record"):
        diagnose(tmp_path)


def test_event_files_are_judged_by_their_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[Record, Facts]] = []

    def judge(record: Record, known: Facts) -> Verdict:
        seen.append((record, known))
        return ILL

    monkeypatch.setattr(diagnose_module, "judge", judge)
    with SummaryWriter(str(tmp_path)) as board:
        for step in range(10):
            board.add_scalar("loss", 5.0 - step / 4, step)
    words = {"events": tmp_path, "train_loss": "loss", "val_loss": None, "lr": None}
    code, text = said_of(None, capsys, **words)  # type: ignore[arg-type]
    ((record, known),) = seen
    assert code == 1
    assert record.train_loss[-1] == 2.75
    assert known == Facts()
    assert "Loss decreasing over time ✓ 5.00 -> 2.75" in text
    assert "not checked: everything but the curves" in text


def test_a_run_and_event_files_are_not_judged_together(tmp_path: Path) -> None:
    for words in ({}, {"run": tmp_path, "events": tmp_path}):
        with pytest.raises(ConfigError, match="not both"):
            diagnose(**words)
