"""What Lightning leaves out of a checkpoint -> there, and back exactly."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lmtemplate.callbacks.state import all_finite, random_states, set_random_states

from lmtemplate.callbacks import SafeCheckpointIO
from tests.runs import contents


@pytest.mark.parametrize("seed", [0, 1])
def test_random_states_come_back_exactly(seed: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), np.random.normal(), float(torch.rand(()))

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    np.random.normal()  # leaves a second Gaussian for the next call
    states = random_states()
    expected = draw(), draw()
    set_random_states(states)
    assert (draw(), draw()) == expected


def test_random_states_are_plain_enough_for_weights_only(tmp_path: Path) -> None:
    torch.save(random_states(), tmp_path / "states")
    set_random_states(torch.load(tmp_path / "states", weights_only=True))


def test_lightning_can_neither_leave_a_torn_file_nor_load_one(tmp_path: Path) -> None:
    door = SafeCheckpointIO({"config": {"a": 1}})
    door.save_checkpoint({"state_dict": {}, "global_step": 1}, str(tmp_path / "a.ckpt"))
    assert contents(tmp_path).keys() == {"a.ckpt", "SHA256SUMS"}
    loaded = door.load_checkpoint(str(tmp_path / "a.ckpt"), map_location="cpu")
    assert loaded == {"config": {"a": 1}, "state_dict": {}, "global_step": 1}


@pytest.mark.parametrize("place", ["weights", "moments"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(place: str, bad: float) -> None:
    net = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(7)).sum().backward()
    optimizer.step()
    trainer = SimpleNamespace(optimizers=[optimizer], lightning_module=net)
    assert all_finite(trainer)  # type: ignore[arg-type]
    tensor = net.weight.data if place == "weights" else optimizer.state[net.weight]["exp_avg_sq"]
    tensor[3, 4] = bad
    assert not all_finite(trainer)  # type: ignore[arg-type]
