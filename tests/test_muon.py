"""Gradients -> Muon's update: directions kept, singular values evened out."""

import pytest
import torch
from torch import Tensor, nn

from lmtemplate.muon import MuonAdamWOptimizer, orthogonalise
from lmtemplate.optimizers import MuonAdamW


def conditioned(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A random matrix with singular values from 0.01 to 1."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(
        torch.randn(rows, columns, generator=generator), full_matrices=False
    )
    return u * torch.linspace(1, 0.01, min(rows, columns)) @ vh


def flat(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def in_singular_basis(update: Tensor, direction: Tensor) -> Tensor:
    """U' update V for the decomposition U S V' of the direction."""
    u, _, vh = torch.linalg.svd(direction.double(), full_matrices=False)
    return u.T @ update.double() @ vh.T


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16), (1, 8)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonalised_matrices_keep_directions_and_lose_singular_values(
    shape: tuple[int, int], scale: float
) -> None:
    matrices = torch.stack([conditioned(*shape, seed=seed) for seed in range(3)])
    for result, matrix in zip(orthogonalise(matrices * scale), matrices, strict=True):
        rotated = in_singular_basis(result, matrix)
        values = rotated.diagonal()
        assert values.min() > 0.6
        assert values.max() < 1.3
        assert (rotated - values.diag()).abs().max() < 1e-3


def test_a_zero_gradient_is_orthogonalised_to_zero() -> None:
    assert not orthogonalise(torch.zeros(2, 4, 4)).any()


class Hidden(nn.Module):
    """Two shapes of hidden matrices and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size = 999
        self.tall = nn.Parameter(conditioned(48, 16))
        self.wide = nn.ParameterList(conditioned(16, 32, seed) for seed in (1, 2))


def muon(net: nn.Module, **settings: float) -> MuonAdamWOptimizer:
    optimizer = MuonAdamW(**settings).build(net)
    optimizer.matmul_dtype = torch.float32  # on a machine with fast bfloat16, too
    return optimizer


def test_muon_steps_along_the_orthogonalised_nesterov_momentum() -> None:
    net = Hidden()
    optimizer = muon(net, lr=0.1, momentum=0.9, weight_decay=0.5)
    momenta = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for step in range(4):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        for number, (name, parameter) in enumerate(net.named_parameters()):
            gradient = conditioned(*parameter.shape, seed=10 * step + number)
            parameter.grad = gradient
            momenta[name] = 0.9 * momenta[name] + 0.1 * gradient
        optimizer.step()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            direction = 0.1 * parameter.grad + 0.9 * momenta[name]
            scale = max(1, parameter.size(0) / parameter.size(1)) ** 0.5
            update = (before[name] * (1 - 0.1 * 0.5) - parameter.detach()) / (0.1 * scale)
            rotated = in_singular_basis(update, direction)
            assert rotated.diagonal().min() > 0.6
            assert rotated.diagonal().max() < 1.3
            assert (rotated - rotated.diagonal().diag()).abs().max() < 2e-3


def test_muon_in_bfloat16_points_the_same_way() -> None:
    def update(dtype: torch.dtype) -> Tensor:
        net = Hidden()
        optimizer = muon(net)
        optimizer.matmul_dtype = dtype
        before = flat(net)
        for parameter in net.parameters():
            parameter.grad = conditioned(*parameter.shape, seed=7)
        optimizer.step()
        return flat(net) - before

    exact, rounded = update(torch.float32), update(torch.bfloat16)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99
