"""`lmtemplate plan`: a table that adds up, JSON, and a config that trains."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from lmtemplate.cli import TrainingCLI
from lmtemplate.study.plan import compute_budget
from lmtemplate.study.plan.compute_budget import read_corpus
from tests.conftest import Command
from tests.runs import load


def row(text: str, name: str) -> list[str]:
    """The words after a name in the note on top."""
    (found,) = [line for line in text.splitlines() if line.startswith(f"#   {name} ")]
    return found.removeprefix(f"#   {name}").split()


def test_the_note_turns_parameters_into_everything_else(command: Command) -> None:
    shown = command("plan", "--parameters", "1e9", "--gpu", "a100", "--devices", "8").out
    net = 20 * 12 * 1920**2 + 2 * 32768 * 1920 + 1920  # the nearest in usual proportions
    flops, (says, *_) = 6 * net * 20 * net, shown.splitlines()
    assert says.startswith("# 1.01B parameters on 20.2B tokens:")
    assert row(shown, "cost")[0] == f"{flops:.3g}"
    assert row(shown, "speed")[:2] == [f"{0.4 * 312e12:.3g}", "FLOP/s"]
    hours = flops / (0.4 * 312e12 * 8) / 3600
    assert row(shown, "time")[:2] == [str(int(hours)), "h"]
    assert row(shown, "loss")[0] == f"{1.69 + 406.4 / net**0.34 + 410.7 / (20 * net) ** 0.28:.2f}"
    assert "An estimate" in shown
    assert yaml.safe_load(shown)["trainer"]["devices"] == 8


@pytest.mark.parametrize(
    "limit", [("--flops", 5.88e21), ("--hours", 13_087.6), ("--tokens", 1.4e11)]
)
def test_each_of_the_others_turns_into_7b_parameters(
    limit: tuple[str, float], command: Command
) -> None:
    shown = command("plan", *limit, "--gpu", "a100", "--json")
    assert json.loads(shown.out)["parameters"] == pytest.approx(7e9, rel=0.02)


def test_two_of_three_determine_the_third(command: Command) -> None:
    shown = command("plan", "--parameters", "1e8", "--tokens", "1e8", "--speed", "1e12", "--json")
    made = json.loads(shown.out)
    assert made["hours"] == pytest.approx(6 * made["parameters"] * 1e8 / 1e12 / 3600)


@pytest.mark.parametrize("limit", ["hours", "flops"])
def test_the_sizes_that_are_shown_take_the_budget_that_is_shown(
    limit: str, command: Command
) -> None:
    budget = {"hours": 24.0, "flops": 24 * 3600 * 1e8}[limit]
    shown = command("plan", f"--{limit}", budget, "--speed", "1e8", "--vocab_size", 512, "--json")
    made, tables = json.loads(shown.out), 2 * 512
    layers, width = (made["net"][key] for key in ("n_layer", "n_embd"))
    count = 12 * layers * width**2 + (tables + 1) * width
    tokens = made["max_steps"] * made["tokens_per_step"]
    assert made["parameters"] == count
    assert made[limit] == budget
    assert 6 * count * tokens == pytest.approx(24 * 3600 * 1e8, rel=2e-3)


@pytest.mark.parametrize(
    ("tokens", "verdict"), [("1e9", "undertrained"), ("2e10", "near"), ("1e11", "overtrained")]
)
def test_the_ratio_is_judged(tokens: str, verdict: str, command: Command) -> None:
    shown = command("plan", "--parameters", "1e9", "--tokens", tokens, "--gpu", "h100").out
    assert f"tokens per parameter, {verdict}:" in shown


def test_what_does_not_fit_on_a_gpu_is_said_with_what_would(command: Command) -> None:
    shown = command("plan", "--parameters", "7e9", "--gpu", "h100").out
    said = " ".join(shown.replace("# ", "").split())
    assert "DOES NOT FIT" in said
    assert "It would on h200" in said
    assert "on h100 (80 GB) about 4" in said
    made = json.loads(command("plan", "--parameters", "4e9", "--gpu", "h100", "--json").out)
    assert made["fits"]
    assert made["memory"] < 80e9


def test_a_net_that_has_to_recompute_takes_a_third_more_time(command: Command) -> None:
    words = ["plan", "--parameters", "1e9", "--block_size", "8192", "--json", "--gpu"]
    tight, wide = (json.loads(command(*words, gpu).out) for gpu in ("h100 24gb", "h100"))
    assert tight["net"]["gradient_checkpointing"]
    assert not wide["net"]["gradient_checkpointing"]
    assert tight["hours"] / wide["hours"] == pytest.approx(4 / 3)


def test_a_config_that_cannot_run_is_not_written(
    command: Command, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "large.yaml"
    words = ["--parameters", "7e10", "--tokens", "1e6", "--gpu", "h100", "--data", corpus]
    result = command("plan", *words, "--output", output)
    assert (result.code, output.exists()) == (2, False)
    assert result.error.startswith("DOES NOT FIT")


@pytest.mark.parametrize("devices", [1, 3, 16])
@pytest.mark.parametrize("parameters", [2e5, 1e8, 7e9])
def test_steps_times_tokens_are_the_tokens_asked_for(
    parameters: float, devices: int, command: Command
) -> None:
    words = ["--parameters", parameters, "--devices", devices, "--gpu", "h200", "--json"]
    run = json.loads(command("plan", *words).out)
    assert run["max_steps"] * run["tokens_per_step"] == pytest.approx(
        20 * run["parameters"], rel=0.01
    )
    parts = run["batch_size"] * run["block_size"] * run["accumulate"] * devices
    assert run["tokens_per_step"] == parts
    assert run["accumulate"] > 1 or parameters < 7e9  # the activations of 900 sequences do not fit


def test_a_corpus_says_its_vocabulary_and_tokens(corpus: Path) -> None:
    read = read_corpus(corpus)
    assert read.vocab_size == 257  # bytes and end-of-text
    assert read.tokens == (corpus / "train_000000.bin").stat().st_size // 2 - 512
    assert read.longest == (corpus / "val_000000.bin").stat().st_size // 2 - 512 - 1


def test_a_small_text_gives_a_smaller_model_more_epochs_and_dropout(
    command: Command, corpus: Path
) -> None:
    words = ["--hours", "10", "--speed", "1e12"]
    free = json.loads(command("plan", *words, "--json").out)
    bound = json.loads(command("plan", *words, "--data", corpus, "--json").out)
    assert bound["parameters"] < free["parameters"]
    assert bound["epochs"] == pytest.approx(4)
    assert (free["net"]["dropout"], bound["net"]["dropout"]) == (0.0, 0.1)
    assert bound["hours"] < 10
    assert any("of 10 hours are enough" in remark for remark in bound["remarks"])


def test_too_many_epochs_are_advised_against(command: Command, corpus: Path) -> None:
    shown = command("plan", "--tokens", "1e8", "--data", corpus, "--speed", "1e12").out
    assert "beyond 4 new text is better" in shown


def test_a_net_s_own_budget_is_spent_though_the_text_repeats(
    command: Command, corpus: Path
) -> None:
    words = ["--parameters", "2e4", "--flops", "1.2e11", "--data", corpus, "--speed", "1e12"]
    made = json.loads(command("plan", *words, "--json").out)
    assert 6 * made["parameters"] * made["tokens"] == pytest.approx(1.2e11)
    assert made["epochs"] > 4


@pytest.mark.parametrize("parameters", [2e5, 3e5, 5e5, 7e5, 1.5e6, 3e6])
def test_of_a_budget_and_tokens_that_are_both_given_nothing_is_said_to_be_left(
    command: Command, parameters: float
) -> None:
    words = ["--tokens", "1e8", "--flops", 6e8 * parameters, "--vocab_size", 512]
    made = json.loads(command("plan", *words, "--speed", "1e12", "--json").out)
    assert made["tokens"] == 1e8
    assert not [remark for remark in made["remarks"] if "are enough" in remark]


@pytest.mark.slow
def test_without_a_machine_this_one_is_measured(command: Command) -> None:
    words = ["--parameters", "2e4", "--vocab_size", "256", "--block_size", "16"]
    shown = command("plan", *words)
    assert (shown.code, "measuring this machine" in shown.error) == (0, True)
    assert "measured on" in shown.out


def test_the_net_follows_the_measured_speed(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(net: dict[str, int], *_: int) -> tuple[float, str]:  # small nets are slow
        return min(1e13, 1e9 * net["n_embd"] * net["n_layer"]), "measured"

    monkeypatch.setattr(compute_budget, "measure", measure)
    made = json.loads(command("plan", "--hours", "1", "--json").out)
    speed = made["device"]["speed"]
    assert 6 * made["parameters"] * made["tokens"] == pytest.approx(3600 * speed)
    assert speed == measure(made["net"])[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "a plan needs one of"),
        (["--parameters", "1e9", "--tokens", "1e9", "--hours", "1", "--gpu", "t4"], "drop one"),
        (["--hours", "1", "--flops", "1e9", "--gpu", "t4"], "keep one"),
        (["--hours", "1", "--gpu", "h10"], "'h10' is not known"),
        (["--hours", "-1", "--gpu", "t4"], "--hours -1 has to be above 0"),
        (["--hours", "inf", "--gpu", "t4"], "hours (command line): expected a number"),
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


def test_a_block_has_to_fit_into_the_corpus(command: Command, corpus: Path) -> None:
    words = ["plan", "--data", corpus, "--speed", "1e9"]
    assert "tokens at most" in command(*words, "--block_size", 10**6).error
    assert "keep one" in command(*words, "--vocab_size", 100).error


@pytest.fixture
def written(
    command: Command, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A config of a few seconds."""
    output = tmp_path / "a line\nb: 1" / "small.yaml"
    output.parent.mkdir()
    words = ["--parameters", "2e4", "--tokens", "1500", "--block_size", "32", "--speed", "1e9"]
    monkeypatch.setattr(sys, "argv", ["/bin/lmtemplate", "plan", *words])
    result = command("plan", *words, "--data", corpus, "--output", output)
    assert result.code == 0
    assert f"make train CONFIG='{output}'" in result.error
    return output


@pytest.mark.slow
def test_the_config_trains_as_planned(written: Path, command: Command, tmp_path: Path) -> None:
    run, steps = tmp_path / "run", yaml.safe_load(written.read_text())["trainer"]["max_steps"]
    trained = command(
        *("fit", "--config", written, "--run_dir", run, "--trainer.accelerator=cpu"),
        *("--data.max_val_blocks=4", "--samples=null", "--report=false"),
    )
    assert (trained.code, trained.error) == (0, "")
    assert load(run, steps)["global_step"] == steps


@pytest.mark.slow
def test_the_config_has_the_net_that_was_shown_and_a_note(
    written: Path, command: Command, corpus: Path
) -> None:
    words = ["--parameters", "2e4", "--tokens", "1500", "--speed", "1e9", "--data", corpus]
    shown = json.loads(command("plan", *words, "--json").out)
    net = TrainingCLI(["--config", str(written)]).model.net
    assert net.parameter_count() == shown["parameters"] == pytest.approx(2e4, rel=0.15)
    text = written.read_text(encoding="utf-8")
    note, _, settings = text.partition("\nrun_dir:")
    assert "lmtemplate plan --parameters 2e4 --tokens 1500 --block_size 32 --speed 1e9\n" in note
    assert re.search("make train CONFIG='.*a line b: 1/small.yaml'\n", note)
    assert all(line.startswith("#") for line in note.splitlines())
    assert yaml.safe_load(f"run_dir:{settings}")["run_dir"] == "runs/small"


def test_a_file_that_is_there_stays_as_it_is(written: Path, command: Command, corpus: Path) -> None:
    before = written.read_bytes()
    result = command("plan", "--data", corpus, "--speed", "1e9", "--output", written)
    assert result.code == 2
    assert "is not overwritten" in result.error
    assert written.read_bytes() == before
