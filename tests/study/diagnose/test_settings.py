"""Settings far from anything usual are named; usual ones, and those of no number, are not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmtemplate.study.diagnose.settings import extreme_setting
from tests.study.records import FACTS, trend

OPTIMIZER, NET = "model.optimizer.init_args.", "model.net.init_args."


def named(settings: dict[str, Any], **logged: float) -> str | None:
    """The setting that is blamed for a run that learned nothing."""
    facts = replace(FACTS, settings=settings)
    finding = extreme_setting(trend(np.full(100, 5.0), facts, **logged), facts)
    return finding and finding.says.partition(" is ")[0]


@pytest.mark.parametrize(
    ("key", "usual", "extreme"),
    [
        (OPTIMIZER + "eps", 1e-8, 1.0),
        (OPTIMIZER + "betas", [0.9, 0.95], [0.9999, 0.95]),
        (OPTIMIZER + "momentum", 0.95, 0.9999),
        (NET + "dropout", 0.2, 0.9),
        (NET + "logit_cap", 15.0, 0.5),
        ("data.block_size", 256, 2),
    ],
)
def test_a_setting_is_named_where_it_explains_the_run(
    key: str, usual: object, extreme: object
) -> None:
    assert named({key: usual}) is None
    assert named({key: extreme}) == key
    assert named({key: None}) is None


def test_a_clip_that_leaves_little_of_gradients_is_named() -> None:
    clip = {"trainer.gradient_clip_val": 1e-4}
    assert named(clip, optim__grad_norm=1.0) == "trainer.gradient_clip_val"
    assert named({"trainer.gradient_clip_val": 1.0}, optim__grad_norm=1.0) is None
    assert named({}, optim__grad_norm=1.0) is None
