"""A metric of one's own: measured by every validation, watched by early stopping."""

from pathlib import Path

import pytest

from tests.examples.conftest import Train
from tests.runs import curve


@pytest.mark.slow
def test_one_guess_is_accuracy_and_all_guesses_never_improve(train: Train, tmp_path: Path) -> None:
    run, set_k = tmp_path / "run", '--model.metrics=[{"class_path":"examples.metric.TopAccuracy",'
    train(run, "metric", set_k + '"init_args":{"k":1}}]')
    assert curve(run, "val/top_accuracy") == curve(run, "val/accuracy")

    all_of_them, once = set_k + '"init_args":{"k":257}}]', "--early_stopping.patience=1"
    train(tmp_path / "all", "metric", all_of_them, once)
    # best at the validation of step 0, of step 4 at the latest; then patience 1 ends the run
    points = curve(tmp_path / "all", "val/top_accuracy")
    assert {value for _, value in points} == {1.0}
    assert points[-1][0] < 12
