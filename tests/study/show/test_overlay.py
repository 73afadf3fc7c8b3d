"""The figure of `compare`: a look for each arm, and buttons that move all curves."""

from pathlib import Path

import numpy as np
import pytest

from lmtemplate.study.experiments.arms import Arm
from lmtemplate.study.show.overlay import overlay
from lmtemplate.study.show.page import BITS
from tests.study.experiments.seeded import arms_of
from tests.study.show.test_page import (
    FLOPS_PER_TOKEN,
    INITIAL,
    LOSSES,
    SECONDS_PER_STEP,
    TOKENS_PER_STEP,
    write_run,
)

PER_STEP = {
    "steps": 1,
    "tokens": TOKENS_PER_STEP,
    "flops": TOKENS_PER_STEP * FLOPS_PER_TOKEN,
    "seconds": SECONDS_PER_STEP,
}


@pytest.fixture
def arms(tmp_path: Path) -> list[Arm]:
    return arms_of([write_run(tmp_path / "slow", lr=0.1), write_run(tmp_path / "fast", lr=0.2)])


def test_no_two_arms_look_the_same(arms: list[Arm]) -> None:
    many = arms[:1] * 20
    looks = [
        (trace.line.color, trace.line.dash)
        for trace in overlay(many, [str(n) for n in range(20)]).data
        if trace.mode == "lines+markers"
    ]
    assert len({*looks}) == len(many)


def test_buttons_move_curves_to_where_steps_times_their_cost_are(arms: list[Arm]) -> None:
    figure = overlay(arms, ["slow", "fast"])
    buttons = dict(zip(PER_STEP, figure.layout.updatemenus[0].buttons, strict=True))
    for axis, button in buttons.items():
        for trace, x in zip(figure.data, button.args[0]["x"], strict=True):
            steps = [0, *LOSSES] if trace.mode == "lines+markers" else range(5, 41, 5)
            assert list(x) == pytest.approx([step * PER_STEP[axis] for step in steps])
        assert button.args[1]["xaxis.title.text"].startswith(("training FLOPs", "optimizer", axis))
    assert [list(x) for x in buttons["steps"].args[0]["x"]] == [list(t.x) for t in figure.data]


def test_validation_is_thick_and_training_thin_in_one_colour(arms: list[Arm]) -> None:
    train, val, *others = overlay(arms, ["slow", "fast"]).data
    assert list(val.y) == [INITIAL, *LOSSES.values()]
    assert val.line.width > train.line.width
    assert val.line.color == train.line.color
    assert val.line.color not in {trace.line.color for trace in others}


def test_runs_of_different_tokenizers_are_drawn_in_bits_per_byte(tmp_path: Path) -> None:
    arms = arms_of([write_run(tmp_path / name, tokenizer=name) for name in "ab"])
    figure = overlay(arms, ["a", "b"])
    assert figure.layout.yaxis.title.text == "bits per byte"
    assert len(figure.data) == 2  # the training loss is in nats per token
    run = arms[0].runs[0]
    bits = [run.record.initial[BITS], *run.logged(BITS)[1]]
    assert list(figure.data[0].y) == pytest.approx(bits)


def test_an_unfinished_run_is_not_drawn_over_flops(arms: list[Arm], tmp_path: Path) -> None:
    arms = [arms[0], *arms_of([write_run(tmp_path / "young", finished=False)])]
    buttons = overlay(arms, ["slow", "young"]).layout.updatemenus[0].buttons
    assert np.isnan(buttons[[*PER_STEP].index("flops")].args[0]["x"][-1]).all()
