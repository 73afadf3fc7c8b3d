"""Text -> shards -> run directory -> metrics and text: what each verb leaves for the next."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtemplate.__main__ import run as run_words
from lmtemplate.data.datamodule import TokenData
from tests.conftest import Command
from tests.runs import contents, curve, events, load, steps, train

V = 257  # ids of the byte tokenizer


@pytest.fixture
def run(diverged: Path) -> Path:
    return diverged


def test_the_first_validation_is_the_entropy_of_guessing(run: Path) -> None:
    step, loss = curve(run, "val/loss")[0]
    assert step == 0
    assert loss == pytest.approx(math.log(V), rel=0.02)


def test_events_lie_directly_in_the_run(run: Path) -> None:
    assert len(list(run.glob("events.out.tfevents.*"))) == 1
    assert not (run / "lightning_logs").exists()


def test_the_run_directory_holds_what_is_documented_and_nothing_else(run: Path) -> None:
    names = {path.name for path in run.iterdir() if not path.name.startswith("events.")}
    names -= {"uncommitted.diff"}  # where the repository has changes
    assert names == {"config.yaml", "manifest.json", "summary.json", "checkpoints", "validation"}


def test_the_metric_names_are_the_documented_ones(run: Path) -> None:
    documented = {"train/loss", "val/loss", "val/perplexity", "val/accuracy", "val/bits_per_byte"}
    documented |= {"optim/lr", "optim/grad_norm", "speed/tokens_per_second", "data/tokens"}
    assert documented | {"data/epoch"} <= set(events(run).Tags()["scalars"])


@pytest.mark.parametrize("metric", ["perplexity", "bits_per_byte"])
def test_derived_metrics_follow_from_the_loss(run: Path, corpus: Path, metric: str) -> None:
    data = TokenData(corpus, block_size=16, batch_size=8, max_val_blocks=8)
    _, targets = next(iter(data.val_dataloader()))
    bytes_per_token = data.token_bytes[targets].double().mean().item()
    formula: dict[str, Callable[[float], float]] = {
        "perplexity": math.exp,
        "bits_per_byte": lambda loss: loss / (math.log(2) * bytes_per_token),
    }
    for (_, loss), (_, value) in zip(
        curve(run, "val/loss"), curve(run, f"val/{metric}"), strict=True
    ):
        assert value == pytest.approx(formula[metric](loss), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 3])
def test_validation_is_at_exact_optimizer_steps(
    corpus: Path, tmp_path: Path, accumulate: int
) -> None:
    run = train(tmp_path / "run", corpus, f"--trainer.accumulate_grad_batches={accumulate}")
    assert steps(run, "val/loss") == [0, 4, 8, 12]
    assert steps(run, "train/loss") == steps(run, "optim/lr") == [2, 4, 6, 8, 10, 12]
    per_step = 4 * 16 * accumulate
    assert curve(run, "data/tokens") == [(s, s * per_step) for s in (2, 4, 6, 8, 10, 12)]
    for step in (8, 12):
        assert load(run, step)["global_step"] == step
        assert load(run, step)["TokenData"]["sequences"] == step * 4 * accumulate


@pytest.mark.slow
def test_accumulated_steps_equal_one_large_batch(corpus: Path, tmp_path: Path) -> None:
    flags = ["--trainer.precision=32-true", "--model.optimizer=lmtemplate.optimizers.SGD"]
    large = train(tmp_path / "large", corpus, "--data.batch_size=8", *flags)
    small = [*flags, "--data.batch_size=2", "--trainer.accumulate_grad_batches=4"]
    accumulated = train(tmp_path / "small", corpus, *small)
    for tag in ("val/loss", "train/loss", "optim/grad_norm"):
        one, other = curve(large, tag), curve(accumulated, tag)
        assert [s for s, _ in one] == [s for s, _ in other]
        assert [v for _, v in other] == pytest.approx([v for _, v in one], rel=1e-6)


def test_every_checkpoint_loads_as_weights_only(run: Path) -> None:
    paths = sorted((run / "checkpoints").rglob("*.ckpt"))
    assert len(paths) > 10
    for path in paths:
        checkpoint = torch.load(path, weights_only=True)
        assert path.name == f"step-{checkpoint['global_step']:09d}.ckpt"
        assert "net.embedding.weight" in checkpoint["state_dict"]


@pytest.mark.slow
def test_reading_a_run_changes_nothing_in_it(run: Path, command: Command) -> None:
    before = contents(run)
    command("validate", run)
    command("generate", run, "--max_new_tokens", 3)
    assert contents(run) == before


def test_the_text_alone_goes_to_standard_output(run: Path, command: Command) -> None:
    shown = command("generate", run, "--prompt", "The ", "--max_new_tokens", 5)
    assert shown.code == 0
    assert shown.out.startswith("The ")
    assert shown.out.endswith("\n")
    assert shown.error == ""


def test_the_same_seed_writes_the_same_text(run: Path, command: Command) -> None:
    words = ["generate", run, "--prompt=The ", "--max_new_tokens=20"]
    assert command(*words, "--seed=1").out == command(*words, "--seed=1").out
    assert command(*words, "--seed=1").out != command(*words, "--seed=2").out


def test_generate_needs_neither_config_nor_data(
    run: Path, tmp_path: Path, command: Command
) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(run / "checkpoints" / "step-000000018.ckpt", alone)
    words = ["--prompt=The ", "--max_new_tokens=5"]
    shown = command("generate", tmp_path, "--checkpoint", alone, *words)
    assert shown.out == command("generate", run, "--checkpoint=latest", *words).out


@pytest.fixture
def begun(corpus: Path, tmp_path: Path, run: Path) -> Callable[..., dict[str, Any]]:
    """Begin a run from another one's weights; returns its checkpoint at step 0."""

    def begin(source: Path, *flags: str) -> dict[str, Any]:
        began = train(tmp_path / "new", corpus, "--init_from", source, *flags)
        path = began / "checkpoints/milestones/step-000000000.ckpt"
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
        return checkpoint

    return begin


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "file"])
def test_init_from_begins_with_the_weights_of_a_run_or_file(
    run: Path, begun: Callable[..., dict[str, Any]], kind: str
) -> None:
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    source = load(run, best["step"] if kind == "run" else 18)
    path = run if kind == "run" else run / "checkpoints/step-000000018.ckpt"
    first = begun(path)
    assert first["global_step"] == 0
    for name, weight in source["state_dict"].items():
        assert torch.equal(first["state_dict"][name], weight)


@pytest.mark.slow
def test_init_from_begins_with_a_fresh_optimizer_and_the_first_block(
    run: Path, begun: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    begun(run, "--trainer.max_steps=4")
    saved = load(tmp_path / "new", 4)
    assert {float(state["step"]) for state in saved["optimizer_states"][0]["state"].values()} == {4}
    assert saved["TokenData"] == {"sequences": 16}
    assert steps(tmp_path / "new", "val/loss") == [0, 4]


@pytest.mark.slow
def test_init_from_another_architecture_or_tokenizer_is_refused(
    run: Path, fit: Command, tmp_path: Path
) -> None:
    mistake = fit(tmp_path / "new", "--init_from", run, "--model.net.n_embd=64")
    assert mistake.code == 3
    assert "another architecture" in mistake.error
    words = ["--input", "grammar:200", "--output", str(tmp_path / "data"), "--tokenizer", "char"]
    run_words(["prepare", *words])
    mistake = fit(tmp_path / "new", "--init_from", run, "--data.path", tmp_path / "data")
    assert mistake.code == 3
    assert "another tokenizer" in mistake.error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(corpus: Path, tmp_path: Path) -> None:
    flags = ["--model.net.dropout=0.1", "--trainer.max_steps=4"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, corpus, *flags, f"--seed_everything={seed}")
    weights = [load(tmp_path / name, 4)["state_dict"]["net.head.weight"] for name in "abc"]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def read_strictly(path: Path) -> dict[str, Any]:
    """JSON without NaN and infinity, which the standard does not know."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path} holds {constant}")

    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return content


def test_the_summary_says_what_came_of_it(run: Path) -> None:
    summary = read_strictly(run / "summary.json")
    assert summary["stop_reason"] == "trainer.max_steps"
    assert summary["step"] == summary["max_steps"] == 18
    assert summary["best"] == read_strictly(run / "checkpoints" / "best.json")
    assert summary["last_val_loss"] == pytest.approx(curve(run, "val/loss")[-1][1], abs=1e-6)
    assert summary["tokens"] == 18 * 4 * 16
    assert summary["parameters"] == sum(w.numel() for w in load(run, 18)["state_dict"].values())
    assert summary["tokens_per_second"] > 0
    assert summary["mfu"] is None  # a CPU has no known peak


def test_the_manifest_says_what_was_run(run: Path, corpus: Path) -> None:
    content = read_strictly(run / "manifest.json")
    index = read_strictly(corpus / "index.json")
    assert content["seed"] == 1337
    assert content["data"]["fingerprint"] == index["fingerprint"]
    assert content["data"]["tokenizer_sha256"] == index["tokenizer"]["sha256"]
    assert content["settings"]["model"]["optimizer"]["init_args"]["lr"] == 60
    assert content["hardware"]["device"] == "cpu"
    assert content["versions"]["torch"] == torch.__version__
    assert content["git"].keys() == {"commit", "dirty"}
