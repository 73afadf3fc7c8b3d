"""What `plan` predicted, kept in a config."""

import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.study.plan.planned import Planned


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_speed_that_no_training_has_is_refused(speed: float) -> None:
    with pytest.raises(ConfigError, match=r"planned.tokens_per_second=.* has to be above 0"):
        Planned(speed)


def test_the_loss_may_be_unknown() -> None:
    Planned(1.0)
    Planned(1.0, val_loss=3.2)
