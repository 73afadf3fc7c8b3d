"""Weights of all steps -> their average: the arithmetic mean, or an exponential moving average."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from lmtemplate.callbacks.weight_averaging import WeightAveraging
from lmtemplate.errors import ConfigError

WEIGHTS = [3.0, -1.0, 4.0, 1.5, 9.0]  # of one parameter, after each step


def averaged(callback: WeightAveraging) -> float:
    """What torch's averaged model, which Lightning's callback keeps, holds after these steps."""
    net = torch.nn.Linear(1, 1, bias=False)
    model = AveragedModel(net, avg_fn=callback.average)
    for weight in WEIGHTS:
        torch.nn.init.constant_(net.weight, weight)
        model.update_parameters(net)
    return float(model.module.weight.detach())


@pytest.mark.parametrize("start_step", [0, 2])
def test_without_a_decay_it_is_the_mean_of_the_steps_that_count(start_step: int) -> None:
    counted = WEIGHTS[start_step:]
    average = averaged(WeightAveraging(decay=None, start_step=start_step))
    assert average == pytest.approx(sum(counted) / len(counted))


@pytest.mark.parametrize("start_step", [0, 2])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_with_a_decay_each_step_weighs_decay_times_the_next(decay: float, start_step: int) -> None:
    first, *later = WEIGHTS[start_step:]
    shares = [(1 - decay) * decay**age for age in reversed(range(len(later)))]
    expected = first * decay ** len(later) + sum(map(float.__mul__, shares, later))
    assert averaged(WeightAveraging(decay, start_step)) == pytest.approx(expected)


@pytest.mark.parametrize("setting", [{"decay": 1.0}, {"decay": -0.1}, {"start_step": -1}])
def test_a_setting_that_makes_no_sense_is_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=rf"weight_averaging\.{next(iter(setting))}="):
        WeightAveraging(**setting)  # type: ignore[arg-type]


def test_a_state_that_counts_in_words_is_refused_when_it_is_restored() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        WeightAveraging().load_state_dict({"latest_update_step": "x"})
