"""Settings on both sides of what is usual -> which one is blamed, and where."""

from dataclasses import replace

import numpy as np
import pytest

from lmtemplate.record import Floats
from lmtemplate.study.diagnose.finding import FAULTS, Facts
from lmtemplate.study.diagnose.settings import extreme_setting
from lmtemplate.study.diagnose.verdict import judge
from tests.study.records import FACTS, START, power_law, record, trend


@pytest.mark.parametrize(
    ("key", "sound", "extreme"),
    [
        ("model.optimizer.init_args.eps", 1e-8, 1.0),
        ("model.optimizer.init_args.betas", [0.9, 0.999], [0.999, 0.9999]),
        ("model.optimizer.init_args.momentum", 0.95, 0.9999),
        ("model.net.init_args.dropout", 0.2, 0.9),
        ("model.net.init_args.logit_cap", 15.0, 0.5),
        ("model.label_smoothing", 0.1, 0.95),
        ("trainer.gradient_clip_val", 1.0, 1e-4),
        ("data.block_size", 256, 1),
    ],
)
def test_a_setting_far_from_anything_usual_is_blamed_where_little_is_learned(
    key: str, sound: object, extreme: object
) -> None:
    stuck = record(np.linspace(START, 3.9, 100), optim__grad_norm=0.5)
    usual = judge(stuck, replace(FACTS, settings={key: sound})).findings[0]
    blamed = judge(stuck, replace(FACTS, settings={key: extreme})).findings[0]
    assert (usual.name, blamed.name) == ("learning_rate_too_low", "extreme_setting")
    assert blamed.says.startswith(f"{key} is ")
    learned = record(power_law(), optim__grad_norm=0.5)
    assert judge(learned, replace(FACTS, settings={key: extreme})).healthy


@pytest.mark.parametrize(
    ("clip", "share", "loss", "said"),
    [
        (1e-4, 1.0, np.linspace(START, 3.9, 100), ["extreme_setting"]),
        (1e-4, 1.0, power_law(), ["clipped"]),  # Adam looks at their direction alone
        (1e-4, 0.5, power_law(), []),
        (1e-4, None, power_law(), ["clipped"]),  # the share was not logged
        (1.0, 0.95, power_law(), []),
        (None, None, power_law(), []),
    ],
)
def test_gradients_clipped_far_below_their_norm_are_told(
    clip: float | None, share: float | None, loss: Floats, said: list[str]
) -> None:
    logged = {} if share is None else {"optim__clipped_share": share}
    facts = replace(FACTS, settings={"trainer.gradient_clip_val": clip})
    found = judge(record(loss, optim__grad_norm=1.5, **logged), facts)  # type: ignore[arg-type]
    assert [of.name for of in found.findings if of.name in ("clipped", *FAULTS)] == said


@pytest.mark.parametrize(
    ("clip", "parameters", "said"),
    [
        (0.01, 10_000, []),  # 10,000 elements of 0.01 are a gradient of norm 1
        (1e-7, 10_000, ["clipped"]),
        (1e-7, None, []),
    ],
)
def test_a_clip_by_value_is_measured_by_the_longest_gradient_that_it_leaves(
    clip: float, parameters: int | None, said: list[str]
) -> None:
    settings = {"trainer.gradient_clip_val": clip, "trainer.gradient_clip_algorithm": "value"}
    facts = replace(FACTS, parameters=parameters, settings=settings)
    logged = {"optim__grad_norm": 0.9, "optim__clipped_share": 1.0}
    found = judge(record(power_law(), **logged), facts)  # type: ignore[arg-type]
    assert [of.name for of in found.findings if of.name in ("clipped", *FAULTS)] == said


@pytest.mark.parametrize("value", [None, "x", [], [None], {}, True])
def test_a_setting_of_another_type_is_left_alone(value: object) -> None:
    settings = {"model.optimizer.init_args.eps": value} if value is not True else {}
    assert extreme_setting(trend(power_law()), Facts(settings=settings)) is None
