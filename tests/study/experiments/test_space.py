"""What `--over` says -> the settings of trials; Optuna's answers do not depend on a kill."""

import numpy as np
import pytest

from lmtemplate.errors import ConfigError
from lmtemplate.study.experiments.space import (
    Trial,
    choose_sampler,
    grid,
    importances,
    is_hopeless,
    main_effects,
    parse_over,
    parse_space,
    suggest,
)


def trials_of(losses: dict[tuple[str, str], float]) -> list[Trial]:
    """Complete trials over lr and seed."""
    return [
        Trial(number, {"lr": lr, "seed": seed}, "complete", loss)
        for number, ((lr, seed), loss) in enumerate(losses.items())
    ]


def test_a_grid_is_every_combination_and_the_last_key_changes_fastest() -> None:
    points = grid(parse_space(["lr=1e-4..1e-1:log:4", "n=2..4:3", "seed=1, 2"]))
    assert len(points) == 4 * 3 * 2
    assert [point["seed"] for point in points[:4]] == ["1", "2", "1", "2"]
    assert {point["n"] for point in points} == {"2", "3", "4"}
    rates = sorted({float(point["lr"]) for point in points})
    assert np.diff(np.log10(rates)) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr", "is not KEY=SPEC"),
        ("lr=", "is not KEY=SPEC"),
        ("lr=1,,2", "has an empty value"),
        ("lr=1..x", "is no range"),
        ("lr=1..1e999:3", "is no range"),
        ("lr=-1e308..1e308:3", "is no range"),
        ("lr=2..1", "LOW below HIGH"),
        ("lr=0..1:log", "LOW above 0"),
        ("lr=0..1:1", "two POINTS or more"),
    ],
)
def test_what_is_no_specification_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_over(text)


def test_a_key_that_is_there_twice_and_a_sweep_over_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="lr is there twice"):
        parse_space(["lr=1,2", "lr=3,4"])
    with pytest.raises(ConfigError, match="needs --over"):
        parse_space([])


def test_a_range_without_points_is_searched_and_no_grid() -> None:
    space = parse_space(["lr=1e-4..1e-1:log"])
    assert choose_sampler(space, None) == "tpe"
    assert choose_sampler(parse_space(["lr=1,2"]), None) == "grid"
    with pytest.raises(ConfigError, match="needs its number of points"):
        choose_sampler(space, "grid")


def test_a_suggestion_is_the_same_after_a_kill_and_lies_in_the_space() -> None:
    space = parse_space(["lr=1e-4..1e-1:log", "n=2..8", "act=relu,gelu"])
    known = list[Trial]()
    for number in range(15):
        settings = suggest(space, known, number, "tpe", seed=1)
        assert settings == suggest(space, known, number, "tpe", seed=1)
        assert 1e-4 <= float(settings["lr"]) <= 1e-1
        assert 2 <= int(settings["n"]) <= 8
        assert settings["act"] in ("relu", "gelu")
        loss = (np.log10(float(settings["lr"])) + 2) ** 2
        known.append(Trial(number, settings, "complete", loss))
    assert len({trial.settings["lr"] for trial in known}) == 15


def test_tpe_looks_where_losses_were_low() -> None:
    """Against random search on the same budget, from the same seeds."""
    space, late = parse_space(["lr=1e-6..1:log"]), dict[str, list[float]]()
    for sampler in ("random", "tpe"):
        known = list[Trial]()
        for number in range(40):
            settings = suggest(space, known, number, sampler, seed=3)  # type: ignore[arg-type]
            loss = abs(np.log10(float(settings["lr"])) + 2)
            known.append(Trial(number, settings, "complete", loss))
        late[sampler] = [trial.loss or 0.0 for trial in known[20:]]
    assert np.median(late["tpe"]) < 0.7 * np.median(late["random"])


def test_a_trial_worse_than_the_median_is_hopeless() -> None:
    space = parse_space(["lr=1,2,3,4"])
    done = [
        Trial(number, {"lr": str(number + 1)}, "complete", 1.0, {10: 3.0 + number, 20: 1.0})
        for number in range(3)
    ]
    assert is_hopeless(space, done, {10: 4.5})
    assert not is_hopeless(space, done, {10: 3.5})
    assert not is_hopeless(space, done, {10: 4.5, 20: 0.9})
    assert not is_hopeless(space, done[:2], {10: 9.0})  # too few to compare with


def test_main_effects_are_those_of_an_analysis_of_variance() -> None:
    """loss = 3 a + b without interaction: the variance splits 9 to 1."""
    space = parse_space(["lr=0,1", "seed=0,1"])
    losses = {(a, b): 3.0 * int(a) + int(b) for a in "01" for b in "01"}
    assert main_effects(space, trials_of(losses)) == pytest.approx({"lr": 0.9, "seed": 0.1})


def test_what_decides_the_loss_is_the_important_key() -> None:
    space = parse_space(["lr=1e-4..1e-1:log", "seed=0..1000"])
    draws = np.random.default_rng(0)
    known = []
    for number in range(40):
        lr, seed = 10 ** draws.uniform(-4, -1), int(draws.integers(0, 1000))
        loss = abs(np.log10(lr) + 2)
        known.append(Trial(number, {"lr": f"{lr:.6g}", "seed": str(seed)}, "complete", loss))
    shares = importances(space, known)
    assert shares["lr"] > 0.8
