"""Nets of known behaviour -> what is seen of them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lmtemplate.models import GPT
from lmtemplate.models.base import LanguageModel
from lmtemplate.study.diagnose.probes import (
    change_from_later_tokens,
    look_at_outputs,
    measure_losses,
    still_tensors,
)

IDS, LENGTH = 13, 12


def trained(**settings: Any) -> GPT:
    """A small GPT whose logits are not zero."""
    torch.manual_seed(0)
    net = GPT(IDS, LENGTH, n_layer=1, n_head=2, n_embd=16, **settings).eval()
    torch.nn.init.normal_(net.head.weight)
    return net


class Echo(LanguageModel):
    """Is sure that the token `ahead` places after its input comes: 0 is the input itself."""

    def __init__(self, ahead: int) -> None:
        super().__init__(IDS, LENGTH)
        self.ahead = ahead

    def forward(self, tokens: Tensor, caches: list[Any] | None = None) -> Tensor:
        return 9.0 * F.one_hot(tokens.roll(-self.ahead, 1), IDS).float()


class Undecided(GPT):
    """Dropout stays active in eval mode."""

    def train(self, mode: bool = True) -> "Undecided":
        super().train(True)
        return self


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(IDS, (4, LENGTH), generator=torch.Generator().manual_seed(1))


def test_a_causal_net_is_not_changed_by_later_tokens(tokens: Tensor) -> None:
    change, largest = change_from_later_tokens(trained(), tokens)
    assert change < 1e-5 < largest


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_net_that_reads_ahead_is_changed_by_all_of_its_logits(ahead: int, tokens: Tensor) -> None:
    assert change_from_later_tokens(Echo(ahead), tokens) == (9.0, 9.0)


def test_what_a_net_draws_is_not_taken_for_reading_ahead(tokens: Tensor) -> None:
    net = Undecided(IDS, LENGTH, n_layer=1, n_head=2, n_embd=16, dropout=0.5)
    torch.nn.init.normal_(net.head.weight)
    assert change_from_later_tokens(net, tokens)[0] < 1e-5
    assert look_at_outputs(net, tokens) == (True, False)
    assert look_at_outputs(trained(), tokens) == (False, False)


def test_probabilities_are_no_logits(tokens: Tensor) -> None:
    net = trained()
    net.register_forward_hook(lambda module, inputs, output: output.softmax(-1))
    assert look_at_outputs(net, tokens) == (False, True)


@pytest.mark.parametrize("shift", [0, 1])
def test_the_token_that_a_net_predicts_is_found_with_its_loss(shift: int, tokens: Tensor) -> None:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    net = Echo(shift)
    if shift:
        targets = inputs.roll(-1, 1)
    found = measure_losses(net, inputs, targets, among=4)
    sure = math.log(math.exp(9) + IDS - 1) - 9
    assert (found.shift, found.error) == (shift, 0.0)
    assert found.shift_loss == pytest.approx(sure, rel=1e-3)


def test_the_loss_is_that_of_validation_and_its_error_shrinks_with_what_is_read() -> None:
    text = torch.randint(IDS, (32, LENGTH + 1), generator=torch.Generator().manual_seed(2))
    net, inputs, targets = trained(), text[:, :-1], text[:, 1:]
    expected = F.cross_entropy(net(inputs).flatten(0, 1), targets.flatten()).item()
    part, whole = (measure_losses(net, inputs, targets, among) for among in (1000, 32))
    assert part.loss == pytest.approx(expected, rel=1e-5)
    assert part.error > whole.error == 0


def test_tensors_that_only_decayed_have_not_moved() -> None:
    net = trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "head" in name:
                parameter.add_(0.01 * torch.randn_like(parameter))
            elif "embedding" in name:
                parameter.mul_(0.9)
    assert set(still_tensors(net, before)) == {n for n, _ in net.named_parameters()} - {
        "head.weight"
    }
