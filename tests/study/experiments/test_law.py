"""Losses of nets and amounts of data -> the law that made them."""

import numpy as np
import pytest

from lmtemplate.study.experiments import law as law_module
from lmtemplate.study.experiments.law import Law, fit_law, interval

HOFFMANN = Law(1.69, 406.4, 0.34, 410.7, 0.28)  # Hoffmann et al. 2022, equation 10
SIZES = np.repeat([1e6, 3e6, 1e7, 3e7], 4)
TOKENS = np.tile([1e7, 1e8, 1e9, 1e10], 4)


Fitted = tuple[Law, list[Law]]


def fitted(losses: np.ndarray, resampled: int = 0) -> Fitted:
    """The law of these losses of all sizes and tokens; each resampled one is a fit of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(law_module, "RESAMPLED", resampled)
        return fit_law(SIZES.tolist(), TOKENS.tolist(), losses.tolist())


@pytest.fixture(scope="module")
def exact() -> Fitted:
    return fitted(HOFFMANN.loss(SIZES, TOKENS), 8)


def test_the_law_that_made_losses_is_found_again(exact: Fitted) -> None:
    law, _ = exact
    found = (law.E, law.A, law.a, law.B, law.b)
    assert found == pytest.approx((1.69, 406.4, 0.34, 410.7, 0.28), rel=1e-3)


def test_a_run_gone_wrong_moves_the_law_little() -> None:
    """Huber's loss: in squares, one loss that is 30 % too high would move it far."""
    losses = HOFFMANN.loss(SIZES, TOKENS)
    losses[5] *= 1.3
    law, _ = fitted(losses)
    assert float(law.loss(1e8, 1e11)) == pytest.approx(float(HOFFMANN.loss(1e8, 1e11)), rel=0.02)


def test_intervals_hold_the_truth_and_shrink_with_the_noise(exact: Fitted) -> None:
    errors = np.random.default_rng(1).normal(0, 0.01, len(SIZES))
    _, noisy = fitted(HOFFMANN.loss(SIZES, TOKENS) * np.exp(errors), 8)
    (low, high), (lower, higher) = (
        interval([float(law.loss(1e8, 1e10)) for law in laws]) for laws in (noisy, exact[1])
    )
    assert low < float(HOFFMANN.loss(1e8, 1e10)) < high
    assert higher - lower < (high - low) / 100


def test_the_best_split_has_the_lowest_loss_for_its_flops() -> None:
    """Against a search over all splits of as much compute."""
    parameters, tokens = HOFFMANN.best_split(1e20)
    assert 6 * parameters * tokens == pytest.approx(1e20)
    sizes = np.geomspace(1e7, 1e11, 4001)
    searched = sizes[HOFFMANN.loss(sizes, 1e20 / (6 * sizes)).argmin()]
    assert parameters == pytest.approx(searched, rel=0.01)


def test_a_law_of_losses_that_fall_in_one_step_can_be_asked_far_beyond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only a power of 26 would fall as fast, and 1e12 to that power is no float."""
    monkeypatch.setattr(law_module, "RESAMPLED", 0)
    sizes, tokens = np.repeat([5e4, 9e4, 1.6e5, 3e5], 3), np.tile([1e5, 2e5, 4e5], 4)
    law, _ = fit_law(sizes.tolist(), tokens.tolist(), [20.0] * 3 + [3.0] * 9)
    assert float(law.loss(1e12, 1e12)) == pytest.approx(3, rel=0.05)


def test_a_law_in_which_nets_do_not_matter_is_split_without_overflow() -> None:
    parameters, tokens = Law(1.0, 1e-5, 0.01, 1e5, 0.01).best_split(6e12)
    assert (parameters, tokens) == pytest.approx((1.0, 1e12))
