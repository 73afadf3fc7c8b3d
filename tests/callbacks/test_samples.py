"""Weights -> text in TensorBoard, the same for the same weights, and nothing else changed."""

from pathlib import Path

import pytest
import torch

from lmtemplate.callbacks.samples import Samples
from lmtemplate.cli import TrainingCLI
from lmtemplate.errors import ConfigError
from lmtemplate.module import LitLanguageModel
from tests.conftest import Command
from tests.runs import equal, events, load, train

PROMPTS = '--samples.prompts=["", "The "]'
SHORT = ["--trainer.max_steps=4", "--trainer.val_check_interval=2", "--model.net.dropout=0.2"]


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "run", corpus, PROMPTS, *SHORT)


def texts(run: Path, number: int) -> dict[int, str]:
    """Step -> sample, as TensorBoard holds it."""
    logged = events(run).Tensors(f"samples/{number}/text_summary")
    return {event.step: event.tensor_proto.string_val[0].decode() for event in logged}


def test_a_sample_is_written_at_every_validation(run: Path) -> None:
    assert list(texts(run, 1)) == list(texts(run, 2)) == [0, 2, 4]


def test_a_sample_begins_with_its_prompt(run: Path) -> None:
    assert all(text.startswith("    The ") for text in texts(run, 2).values())


@pytest.mark.slow
def test_the_last_sample_is_what_generate_writes(run: Path, command: Command) -> None:
    words = ["--prompt", "The ", "--max_new_tokens=5", "--temperature=0.8", "--seed=1338"]
    written = command("generate", run, "--checkpoint=latest", *words).out
    lines = [line.removeprefix("    ") for line in texts(run, 2)[4].splitlines()]
    assert lines == written.removesuffix("\n").splitlines()


@pytest.mark.slow
def test_sampling_does_not_change_the_training(run: Path, corpus: Path, tmp_path: Path) -> None:
    silent = train(tmp_path / "run", corpus, "--samples=null", *SHORT)
    for key in ("state_dict", "optimizer_states", "random_states"):
        assert equal(load(run, 4)[key], load(silent, 4)[key])


@pytest.fixture
def cli(corpus: Path) -> TrainingCLI:
    words = ["--data.path", str(corpus), "--data.block_size=8", "--model.net.n_embd=16"]
    return TrainingCLI([*words, "--model.net.n_layer=1", "--model.net.n_head=2"], [])


@pytest.mark.slow
def test_the_same_weights_write_the_same_text(cli: TrainingCLI) -> None:
    samples = Samples(prompts=("a", "b"), max_new_tokens=20)
    torch.nn.init.normal_(cli.model.net.head.weight)
    first = samples.write(cli.model, cli.datamodule)
    torch.rand(5)
    assert samples.write(cli.model, cli.datamodule) == first
    assert list(first) == ["a", "b"]


@pytest.mark.slow
def test_the_net_and_the_random_state_are_left_as_they_were(cli: TrainingCLI) -> None:
    module: LitLanguageModel = cli.model
    module.net.train()
    before = torch.get_rng_state()
    Samples(max_new_tokens=20).write(module, cli.datamodule)
    assert module.net.training
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_an_untrained_net_writes_another_text_after_each_prompt(cli: TrainingCLI) -> None:
    """Its logits are equal whatever it has read: with one seed, so would the texts be."""
    texts = Samples(prompts=("a", "b", "c"), max_new_tokens=20).write(cli.model, cli.datamodule)
    assert len({*texts.values()}) == 3


@pytest.mark.slow
def test_another_seed_writes_another_text(cli: TrainingCLI) -> None:
    torch.nn.init.normal_(cli.model.net.head.weight)
    texts = [
        Samples(max_new_tokens=20, temperature=2.0, seed=seed).write(cli.model, cli.datamodule)
        for seed in (1, 2, 1)
    ]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("name", ["max_new_tokens", "temperature"])
def test_a_number_below_0_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"samples\.{name}=-1 has to be 0 or more"):
        Samples(**{name: -1})  # type: ignore[arg-type]
