"""Words after a verb -> its own flags, and what is left for fit."""

from argparse import ArgumentTypeError

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.study.experiments.flags import SEEDS, split_words, whole


def test_a_verb_takes_its_own_flags_and_leaves_those_of_fit() -> None:
    words = ["--seeds=3", "--data.path", "data/x", "--json", "--trainer.max_steps=5"]
    own, others = split_words("compare-optimizers", words, SEEDS)
    assert (own.seeds, own.json) == (3, True)
    assert others == ["--data.path", "data/x", "--trainer.max_steps=5"]


def test_a_flag_is_not_shortened_for_fit_has_others_that_begin_so() -> None:
    own, others = split_words("fit", ["--seed=3"], SEEDS)
    assert own.seeds is None
    assert others == ["--seed=3"]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_a_count_is_a_whole_number_from_1_on(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"from 1 on, got {text}"):
        whole(text)
    with pytest.raises(ConfigError, match="fit: argument --seeds"):
        split_words("fit", [f"--seeds={text}"], SEEDS)
