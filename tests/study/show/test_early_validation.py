"""The first steps of a run -> an estimate of the validation loss, which changes nothing else."""

from pathlib import Path

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.record import read_record
from lmtemplate.study.show.early_validation import EarlyValidation, early_steps
from tests.runs import equal, load, train


def test_early_steps_are_logged_ones_before_the_first_validation() -> None:
    assert early_steps(12, 5, 124) == {5, 10, 15, 20, 25, 35, 45, 60, 75, 95}
    assert early_steps(4, 1, 16) == {1, 2, 4, 8}
    assert early_steps(12, 5, 5) == early_steps(12, 5, 4) == set()


def test_of_all_sequences_it_is_the_validation_loss_and_training_does_not_see_it(
    corpus: Path, tmp_path: Path
) -> None:
    flags = ["--trainer.log_every_n_steps=1", "--model.net.dropout=0.1", "--trainer.max_steps=3"]
    flags += ["--trainer.val_check_interval=3"]
    early = train(tmp_path / "early", corpus, *flags, "--early_validation.blocks=9999")
    often = [*flags, "--early_validation=null", "--trainer.val_check_interval=1"]
    plain = train(tmp_path / "plain", corpus, *often)
    estimates = read_record(early).values["val/early_loss"][:2]
    assert estimates == pytest.approx(read_record(plain).val_loss[:2], rel=1e-6)
    assert equal(load(early, 3)["state_dict"], load(plain, 3)["state_dict"])


def test_no_points_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"early_validation\.points=0 has to be from 1"):
        EarlyValidation(points=0)
