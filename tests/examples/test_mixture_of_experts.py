"""A net of experts: causal, balanced, and its own term in the record."""

from pathlib import Path

import pytest
import torch

from examples.mixture_of_experts import ExpertGPT, Experts
from lmtemplate.record import read_record
from tests.examples.conftest import Train


def net(**settings: float) -> ExpertGPT:
    torch.manual_seed(0)
    made = ExpertGPT(11, 8, n_layer=2, n_head=2, n_embd=16, **settings)
    for parameter in made.parameters():  # what begins at zero would hide everything behind it
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def test_future_tokens_cannot_change_past_logits() -> None:
    model, tokens = net().eval(), torch.randint(11, (3, 8))
    changed = torch.cat((tokens[:, :5], torch.randint(11, (3, 3))), dim=1)
    torch.testing.assert_close(model(changed)[:, :5], model(tokens)[:, :5])


def test_each_token_gets_its_expert_s_output_times_its_share() -> None:
    torch.manual_seed(0)
    experts, x = Experts(16, 4), torch.randn(2, 5, 16)
    expected = torch.stack(
        [
            (share := experts.router(row).softmax(-1)).max() * experts.experts[share.argmax()](row)
            for row in x.flatten(0, 1)
        ]
    )
    torch.testing.assert_close(experts(x).flatten(0, 1), expected)


@pytest.mark.parametrize(("skew", "expected"), [(0.0, 1.0), (100.0, 4.0)])
def test_the_balance_is_1_for_equal_shares_and_e_for_one_expert(
    skew: float, expected: float
) -> None:
    experts, x = Experts(16, 4), torch.randn(4, 16).abs()
    torch.nn.init.zeros_(experts.router.weight)  # equal likelihoods, whoever is chosen
    experts.router.weight.data[0] = skew
    experts(x)
    assert experts.balance is not None
    assert experts.balance.item() == pytest.approx(expected)


def test_the_balance_alone_reaches_every_router() -> None:
    model, tokens = net(), torch.randint(11, (3, 8))
    model(tokens)
    model.extra_objectives(tokens)["balance"].backward()
    for block in model.blocks:
        assert block.mlp.router.weight.grad.abs().sum() > 0


def test_a_token_costs_one_expert_however_many_there_are() -> None:
    few, many = net(n_expert=1), net(n_expert=4)
    routers = 2 * 16 * (4 - 1)
    assert many.flops_per_token() - few.flops_per_token() == 6 * routers


@pytest.mark.slow
def test_the_balance_is_in_the_record_at_the_steps_of_the_loss(
    train: Train, tmp_path: Path
) -> None:
    train(tmp_path / "run", "mixture_of_experts")
    record = read_record(tmp_path / "run")
    balance = record.values["train/balance"]
    assert len(balance) == len(record.steps) == 6
    assert all(0.01 * 0.8 < value < 0.01 * 4.001 for value in balance)
