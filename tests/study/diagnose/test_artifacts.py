"""What a run directory leads to, and what is said where it leads nowhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from lmtemplate.checkpoint.compatibility import build_net
from lmtemplate.checkpoint.files import read
from lmtemplate.checkpoint.resume import resolve
from lmtemplate.data.shards import Shards
from lmtemplate.errors import CheckpointError, ConfigError, DataError
from lmtemplate.run_dir import read_json, write_json
from lmtemplate.study.diagnose.artifacts import (
    STRETCHES,
    RunCorpus,
    open_artifacts,
    open_model,
    open_run_corpus,
    sample,
)
from tests.study.corpora import write_corpus


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def change(run: Path, key: str, value: object) -> None:
    """Set data.KEY in config.yaml."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"][key] = value
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


def test_a_small_split_is_taken_whole(corpus: Path) -> None:
    shards = Shards(corpus, "val")
    everything = shards.gather(np.arange(shards.tokens))
    np.testing.assert_array_equal(sample(shards, 10**6), everything)
    np.testing.assert_array_equal(sample(shards, 10**6, among=100), everything[:100])


def test_a_large_split_is_sampled_from_its_start_to_its_end(tmp_path: Path) -> None:
    tokens = np.arange(6400) // 160
    corpus = write_corpus(tmp_path / "data", {"train": tokens})
    taken = sample(Shards(corpus.folder, "train", corpus.index), 640)
    assert len(taken) == 640
    assert (taken[0], taken[-1]) == (tokens[0], tokens[-1])
    assert len(np.unique(taken)) == len(np.unique(tokens))
    size = 640 // STRETCHES
    assert all(np.ptp(taken[i : i + size]) <= 1 for i in range(0, 640, size))


def test_a_validation_of_few_blocks_reads_their_tokens_alone(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "data", {"val": np.arange(40)})
    short = RunCorpus(corpus.folder, corpus.index, validated=3 * 8 + 1)
    np.testing.assert_array_equal(short.validation_tokens(1000), np.arange(25))


@pytest.mark.slow
def test_a_run_leads_to_its_corpus_and_its_best_weights(run: Path, corpus: Path) -> None:
    artifacts = open_artifacts(run)
    assert artifacts.missing == ()
    assert artifacts.corpus is not None
    assert artifacts.model is not None
    assert artifacts.corpus.folder == corpus
    weights = build_net(read(resolve(run, "best"))).state_dict()
    assert all(
        (weights[name] == value.cpu()).all()
        for name, value in artifacts.model.net.state_dict().items()
    )
    assert artifacts.model.planned_steps == 12


@pytest.mark.slow
def test_without_weights_the_net_stays_unread(run: Path) -> None:
    artifacts = open_artifacts(run, deep=False)
    assert (artifacts.model, artifacts.missing) == (None, ())


@pytest.mark.slow
def test_a_corpus_that_is_gone_is_named_and_the_model_is_still_there(
    run: Path, tmp_path: Path
) -> None:
    change(run, "path", str(tmp_path / "nowhere"))
    artifacts = open_artifacts(run)
    assert artifacts.corpus is None
    assert artifacts.model is not None
    (reason,) = artifacts.missing
    assert "nowhere" in reason


@pytest.mark.slow
def test_a_run_knows_how_many_tokens_its_validation_reads(run: Path) -> None:
    change(run, "max_val_blocks", 3)
    change(run, "max_train_blocks", 2)
    corpus = open_run_corpus(run)
    assert corpus.validated == 3 * 16 + 1
    for split, most in (("train", 2), ("val", 3)):
        inputs, _, among = corpus.batch(split, 16, 9)
        assert (len(inputs), among.item()) == (most, most)


@pytest.mark.slow
def test_another_corpus_under_the_same_path_is_refused(run: Path) -> None:
    manifest = read_json(run / "manifest.json")
    assert manifest is not None
    manifest["data"]["fingerprint"] = "0" * 64
    write_json(run / "manifest.json", manifest)
    with pytest.raises(DataError, match="another corpus"):
        open_run_corpus(run)


@pytest.mark.slow
def test_a_config_without_data_is_refused(run: Path) -> None:
    change(run, "block_size", None)
    with pytest.raises(DataError, match=r"names no data\.block_size"):
        open_run_corpus(run)


@pytest.mark.slow
def test_a_run_without_checkpoints_is_named(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_model(run)
    assert any("no checkpoint" in reason for reason in open_artifacts(run).missing)


@pytest.mark.slow
def test_a_class_from_elsewhere_needs_permission(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = read(resolve(run, "best"))
    state["config"]["model"]["net"]["class_path"] = "elsewhere.Net"
    monkeypatch.setattr("lmtemplate.study.diagnose.artifacts.read", lambda path: state)
    with pytest.raises(ConfigError, match="--allow elsewhere"):
        open_model(run)
    assert any("--allow elsewhere" in reason for reason in open_artifacts(run).missing)
