"""`lmtemplate plan`: a table that adds up, JSON, and a config that trains."""

import json
from pathlib import Path

import pytest
import yaml

from lmtemplate.cli import TrainingCLI
from tests.conftest import Command
from tests.runs import load


def row(text: str, name: str) -> list[str]:
    """The words after a row's name."""
    (found,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
    return found.removeprefix(name).split()


def test_the_table_turns_parameters_into_everything_else(command: Command) -> None:
    words = ["--parameters", "7e9", "--gpu", "a100", "--devices", "8", "--price_per_hour", "2"]
    shown = command("plan", *words).out
    assert row(shown, "tokens")[0] == "140B"
    assert row(shown, "FLOPs")[0] == "5.88e21"
    assert row(shown, "speed")[:2] == ["125", "TFLOP/s"]
    hours = 5.88e21 / (0.4 * 312e12 * 8) / 3600
    assert row(shown, "time")[:2] == [f"{hours / 24:.3g}", "days"]
    assert row(shown, "money")[0] == f"{hours * 8 * 2:,.0f}"
    assert "An estimate" in shown


@pytest.mark.parametrize(
    "limit",
    [("--flops", 5.88e21), ("--hours", 13_087.6), ("--money", 26_175.2), ("--tokens", 140e9)],
)
def test_each_of_the_others_turns_into_7b_parameters(
    limit: tuple[str, float], command: Command
) -> None:
    shown = command("plan", *limit, "--gpu", "a100", "--price_per_hour", "2", "--json")
    assert json.loads(shown.out)["budget"]["parameters"] == pytest.approx(7e9, rel=1e-3)


def test_two_of_three_pin_the_third(command: Command) -> None:
    shown = command("plan", "--parameters", "1e9", "--tokens", "1e9", "--speed", "1e12", "--json")
    assert json.loads(shown.out)["budget"]["hours"] == pytest.approx(6e18 / 1e12 / 3600)


@pytest.mark.parametrize(
    ("tokens", "verdict"), [("1e9", "undertrained"), ("2e10", "near"), ("1e11", "overtrained")]
)
def test_the_ratio_is_judged(tokens: str, verdict: str, command: Command) -> None:
    shown = command("plan", "--parameters", "1e9", "--tokens", tokens, "--speed", "1e12").out
    assert row(shown, "per parameter")[1].rstrip(":") == verdict


def test_a_small_text_gives_a_smaller_model_more_passes_and_dropout(
    command: Command, corpus: Path
) -> None:
    words = ["--hours", "10", "--speed", "1e12"]
    free = json.loads(command("plan", *words, "--json").out)
    bound = json.loads(command("plan", *words, "--data", corpus, "--json").out)
    assert bound["net"]["parameters"] < free["net"]["parameters"]
    assert bound["run"]["passes"] == pytest.approx(4)
    assert (free["run"]["dropout"], bound["run"]["dropout"]) == (0.0, 0.1)
    assert bound["budget"]["hours"] < 10
    assert any("Muennighoff" in remark for remark in bound["remarks"])
    assert any("of 10 hours are enough" in remark for remark in bound["remarks"])


def test_too_many_passes_are_advised_against(command: Command, corpus: Path) -> None:
    shown = command("plan", "--tokens", "1e8", "--data", corpus, "--speed", "1e12").out
    assert "get more text" in " ".join(shown.split())


def test_without_a_machine_this_one_is_measured(command: Command) -> None:
    words = ["--parameters", "2e4", "--vocab_size", "256", "--block_size", "16"]
    shown = command("plan", *words)
    assert (shown.code, shown.error) == (0, "")
    assert "measured on" in shown.out
    assert row(shown.out, "money")[0] == "-"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to plan from"),
        (["--parameters", "1e9", "--tokens", "1e9", "--hours", "1", "--gpu", "t4"], "drop one"),
        (["--hours", "1", "--flops", "1e9", "--gpu", "t4"], "keep one"),
        (["--money", "1", "--gpu", "t4"], "--price_per_hour"),
        (["--hours", "1", "--gpu", "h10"], "close: "),
        (["--hours", "-1", "--gpu", "t4"], "--hours -1 has to be above 0"),
        (["--hours", "1", "--devices", "0"], "--devices 0 has to be above 0"),
        (["--hours", "1", "--gpu", "t4", "--output", "x.yaml"], "--output needs --data"),
        (["--data", "nowhere"], "no prepared corpus in nowhere"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str, command: Command) -> None:
    result = command("plan", *words)
    assert result.code in (2, 8)
    assert says in result.error
    assert "\n" not in result.error


@pytest.fixture
def written(command: Command, corpus: Path, tmp_path: Path) -> Path:
    """A config of a few seconds."""
    output = tmp_path / "small.yaml"
    words = ["--parameters", "2e4", "--tokens", "1500", "--block_size", "32", "--speed", "1e9"]
    result = command("plan", *words, "--data", corpus, "--output", output)
    assert result.code == 0
    assert f"make train CONFIG={output}" in result.error
    return output


def test_the_config_trains_as_planned(written: Path, command: Command, tmp_path: Path) -> None:
    run, steps = tmp_path / "run", yaml.safe_load(written.read_text())["trainer"]["max_steps"]
    trained = command(
        *("fit", "--config", written, "--run_dir", run, "--trainer.accelerator=cpu"),
        *("--data.max_val_blocks=4", "--samples=null", "--report=false"),
    )
    assert (trained.code, trained.error) == (0, "")
    assert load(run, steps)["global_step"] == steps


def test_the_config_s_net_has_the_parameters_shown(
    written: Path, command: Command, corpus: Path
) -> None:
    net = TrainingCLI(["--config", str(written)]).model.net
    words = ["--parameters", "2e4", "--tokens", "1500", "--speed", "1e9", "--data", corpus]
    shown = json.loads(command("plan", *words, "--json").out)["net"]
    assert net.parameter_count() == shown["parameters"] == pytest.approx(2e4, rel=0.15)


def test_the_config_opens_with_a_lab_note(written: Path, corpus: Path) -> None:
    text = written.read_text(encoding="utf-8")
    note = text.partition("\nrun_dir:")[0]
    assert text.startswith("# ")
    asked = "--parameters 20000 --tokens 1500 --speed 1000000000"
    assert f"lmtemplate plan {asked} --data {corpus} --block_size 32\n" in note
    assert all(word in note for word in ("make train", "hardware", "result"))
    assert yaml.safe_load(text)["run_dir"] == "runs/small"


def test_a_file_that_is_there_stays_as_it_is(written: Path, command: Command, corpus: Path) -> None:
    before = written.read_bytes()
    result = command("plan", "--data", corpus, "--speed", "1e9", "--output", written)
    assert result.code == 2
    assert "is not overwritten" in result.error
    assert written.read_bytes() == before


def test_claims_are_printed_with_their_verdicts(command: Command) -> None:
    text = command("plan", "--claims").out
    assert text.startswith("right    7B parameters on 1T tokens")
    assert "wrong    100M parameters, 100M tokens: days on a GPU" in text
    assert len(json.loads(command("plan", "--claims", "--json").out)) == text.count("\n") - sum(
        line.startswith(" ") for line in text.splitlines()
    )
