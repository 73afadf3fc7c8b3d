"""The memory of a training step, beside what torch itself counts for the same net."""

import pytest
import torch
import torch.nn.functional as F

from lmtemplate.hardware import PEAK_TFLOPS
from lmtemplate.loss import training_loss
from lmtemplate.models import GPT, layers
from lmtemplate.optimizers import MuonAdamW
from lmtemplate.study.plan.compute_budget import known_gpu
from lmtemplate.study.plan.memory import USABLE, MicroBatch, free_memory, larger_gpus
from lmtemplate.study.plan.scaling_laws import Sizes

NET: Sizes = {"n_layer": 3, "n_head": 2, "n_embd": 128}
B, T, V = 4, 64, 512


def test_weights_gradients_and_moments_are_those_of_a_net_that_has_made_a_step() -> None:
    net = GPT(V, T, **NET)
    optimizer = MuonAdamW().build(net)
    tokens = torch.randint(V, (B, T))
    training_loss(net, tokens, tokens).objective.backward()
    optimizer.step()
    held = [t for p in net.parameters() for t in (p, p.grad, *optimizer.state[p].values())]
    counted = sum(t.nbytes for t in held if t is not None and t.dim())  # less AdamW's step counts
    assert MicroBatch(NET, V, T).memory.state == counted


def saved_bytes(net: GPT, autocast: bool) -> int:
    """What autograd keeps of a forward pass, each storage once, beside parameters and tables."""
    own = {t.untyped_storage().data_ptr() for t in [*net.parameters(), *net.buffers()]}
    kept = dict[int, torch.Tensor]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.randint(V, (B, T))
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        training_loss(net, tokens, tokens)
    return sum(kept[place].untyped_storage().nbytes() for place in kept.keys() - own)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_within_a_twentieth_of_what_autograd_keeps(
    width: int, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: float) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)  # as on a GPU: not widened

    monkeypatch.setattr(layers, "causal_attention", attention)
    net = GPT(V, T, **NET, gradient_checkpointing=recompute)
    said = MicroBatch(NET, V, T, B, recompute, width).memory.activations
    if recompute:  # one block's own, which the backward pass makes, and its weights in 16 bits
        said -= B * T * NET["n_embd"] * (16 + 15 * width)
        said -= width * 12 * NET["n_layer"] * NET["n_embd"] ** 2 if width < 4 else 0
    gradient_of_head = 4 * V * NET["n_embd"]
    counted = saved_bytes(net, autocast=width < 4) - gradient_of_head
    assert said == pytest.approx(counted, rel=0.05)


def test_a_run_on_an_h200_took_nearly_what_is_said() -> None:
    """124M parameters, 32 blocks of 1,024, compiled: 17.1 GB were measured."""
    work = MicroBatch({"n_layer": 12, "n_head": 12, "n_embd": 768}, 50304, 1024, 32)
    assert work.memory.total == pytest.approx(17.1e9, rel=0.15)


def test_a_step_is_split_so_that_its_parts_fit_and_recomputes_only_if_it_must() -> None:
    work = MicroBatch({"n_layer": 12, "n_head": 12, "n_embd": 768}, 50304, 1024)
    for memory in (80e9, 24e9, 10e9, 4e9):
        part = work.split(48, memory)
        assert part is not None
        assert part.memory.total <= USABLE * memory
        assert (part.batch_size == 48) == (memory > 30e9)
        assert part.gradient_checkpointing == (memory < 5e9)
    assert work.split(48, 2e9) is None


def test_7b_parameters_fit_on_no_80_gb_and_a_net_that_is_named_instead_does() -> None:
    work = MicroBatch({"n_layer": 33, "n_head": 32, "n_embd": 4096}, 32768, 2048)
    assert work.split(1, 80e9) is None
    assert 3e9 < work.largest_net(80e9) < 5e9
    assert larger_gpus(work.memory.total)[0].startswith("h200")


@pytest.mark.parametrize(
    ("name", "gb"),
    [("NVIDIA H100 80GB HBM3", 80), ("a100 40gb", 40), ("h100 nvl", 94), ("NVIDIA L4", 24)],
)
def test_the_memory_of_a_gpu_is_known_by_its_name(name: str, gb: int) -> None:
    assert known_gpu(name)[1] == gb * 1e9


def test_every_known_gpu_has_its_memory() -> None:
    assert all(8 <= gb <= 288 for *_, gb in PEAK_TFLOPS)


def test_the_free_memory_of_this_machine_is_below_what_it_has() -> None:
    free = free_memory(torch.device("cpu"))
    assert 1e8 < free < 1e13
