"""The noise scale of simulated gradients, and of a net whose gradients are taken one by one."""

import numpy as np
import pytest
import torch

from lmtemplate.loss import cross_entropy
from lmtemplate.models import GPT2
from lmtemplate.study.understand.noise_scale import (
    advice,
    estimate,
    measure_noise,
    steps_and_data,
)


@pytest.mark.parametrize(("small", "big"), [(1, 16), (4, 64)])
def test_simulated_gradients_have_the_noise_that_was_put_in(small: int, big: int) -> None:
    random, trials = np.random.default_rng(0), 4000
    true, spread = np.array([0.3, -0.2, 0.1]), np.array([1.0, 2.0, 0.5])
    noise = random.normal(size=(trials, big, 3)) * spread
    gradients = true + noise
    of_small = np.square(gradients.reshape(trials, big // small, small, 3).mean(2)).sum(-1).mean()
    of_big = np.square(gradients.mean(1)).sum(-1).mean()
    squared, trace = estimate(float(of_small), float(of_big), small, big)
    assert squared == pytest.approx((true**2).sum(), rel=0.1)
    assert trace == pytest.approx((spread**2).sum(), rel=0.02)


def test_a_net_s_noise_is_the_variance_of_its_gradients_taken_one_by_one() -> None:
    torch.manual_seed(0)
    net = GPT2(13, 6, n_layer=1, n_head=1, n_embd=8).double().eval()
    inputs, targets = torch.randint(13, (2, 24, 6))
    rows = []
    for one, wanted in zip(inputs, targets, strict=True):
        net.zero_grad()
        cross_entropy(net(one[None]), wanted[None]).objective.backward()
        rows.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    gradients = torch.stack(rows).numpy()
    net.zero_grad()
    noise = gradients.var(0, ddof=1).sum()
    squared = np.square(gradients.mean(0)).sum() - noise / len(gradients)
    found = measure_noise(net, inputs, targets)
    assert found["noise"] == pytest.approx(noise, rel=1e-5)
    assert found["squared_gradient"] == pytest.approx(squared, rel=1e-4)
    assert found["scale"] == pytest.approx(noise / squared, rel=1e-4)
    quarter = gradients[:6]
    noise = quarter.var(0, ddof=1).sum()
    squared = np.square(quarter.mean(0)).sum() - noise / 6
    assert found["scale_in_quarters"][0] == pytest.approx(
        noise / squared if squared > 0 else None, rel=1e-3
    )
    assert all(p.grad is None for p in net.parameters())


def test_a_batch_of_the_noise_scale_takes_twice_the_steps_and_the_data() -> None:
    assert steps_and_data(32, 32.0) == (2, 2)
    for batch in (1, 10, 1000):
        steps, data = steps_and_data(batch, 32.0)
        assert (steps - 1) * (data - 1) == pytest.approx(1)  # the paper's hyperbola


def test_the_advice_counts_in_tokens_and_says_when_nothing_can_be_said() -> None:
    known = {"sequences": 64, "scale": 32.0, "scale_in_quarters": [30.0, 36.0, None, 33.0]}
    text = advice(known, batch=16, block_size=10)
    assert "320 tokens (300 to 360 in 3 quarters" in text
    assert "3 times the fewest steps and 1.5 times the least data" in text
    hidden = advice({"sequences": 64, "scale": None}, batch=16, block_size=10)
    assert "batches far larger than 640 tokens" in hidden
