"""Formulas written out by hand: they give what torch, autograd and the net itself give."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lmtemplate.models.base import LanguageModel
from lmtemplate.models.gpt import GPT
from lmtemplate.models.gpt2 import GPT2
from lmtemplate.study.understand.forward import copy_of, stages_by_hand, stages_of_modules

SIZES: Any = {"vocab_size": 50, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
NETS = {
    "GPT": lambda: GPT(**SIZES),
    "GPT with shared keys": lambda: GPT(**SIZES, n_kv_head=2, mlp="gelu", logit_cap=None),
    "GPT without extras": lambda: GPT(
        **SIZES, mlp="swiglu", tied=True, qk_norm=False, token_shift=False
    ),
    "GPT2": lambda: GPT2(**SIZES),
    "GPT2 as nanoGPT": lambda: GPT2(**SIZES, mlp="exact_gelu", bias=False),
}


def trained(name: str) -> LanguageModel:
    """A net whose weights are all away from where they begin, many at zero."""
    torch.manual_seed(0)
    net = NETS[name]().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net


TOKENS = torch.arange(3, 16)


@pytest.mark.parametrize("name", NETS)
def test_logits_and_all_that_modules_put_out_are_the_nets_own(name: str) -> None:
    net = trained(name)
    modules, logits = stages_of_modules(net, TOKENS)
    outputs = {stage.name: stage.value for stage in modules}
    stages = stages_by_hand(net, TOKENS)
    torch.testing.assert_close(stages[-1].value, logits.detach(), atol=2e-6, rtol=1e-5)
    compared = [stage for stage in stages if stage.name in outputs]
    assert len(compared) >= 2 + 3 * 2  # embedding, logits; attention, MLP, stream of each block
    for stage in compared:
        torch.testing.assert_close(stage.value, outputs[stage.name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_attention_adds_up_to_one_over_earlier_tokens(name: str) -> None:
    stages = stages_by_hand(trained(name), TOKENS)
    found = [stage.value for stage in stages if stage.name.endswith(" weights")]
    assert [tuple(weights.shape) for weights in found] == [(4, 13, 13)] * 2  # (H, T, T)
    for weights in found:
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 13))
        assert not weights.triu(1).any()


def test_another_architecture_has_no_formulas() -> None:
    class Mine(GPT):
        def forward(self, tokens: Tensor, caches: object = None) -> Tensor:
            return 2 * super().forward(tokens)

    assert stages_by_hand(Mine(**SIZES), TOKENS) == []


def test_a_net_that_keeps_tensors_of_its_forward_pass_is_copied_whole() -> None:
    net = GPT(**SIZES, tied=True)
    tokens = torch.arange(5)[None]
    kept = net(tokens)
    net.kept = [kept]  # as `extra_objectives` may need it; torch copies no such tensor
    copy = copy_of(net)
    assert torch.equal(copy(tokens), kept)
    assert torch.equal(copy.kept[0], kept)
    assert not {*map(id, copy.parameters())} & {*map(id, net.parameters())}
    assert len([*copy.parameters()]) == len([*net.parameters()])  # what was tied is tied
    assert all(p.requires_grad for p in copy.parameters())
