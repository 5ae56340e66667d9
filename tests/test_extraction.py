"""Factors of a difference against torch's own decomposition, and against the residual that they leave."""

import pytest
import torch

from chats.lowrank import factorize, relative_error, weight_difference

SHAPES = {
    "wide": (12, 30),
    "tall": (30, 12),
    "convolution": (10, 4, 3, 3),
    "tall convolution": (40, 4, 3, 3),
    "volume": (6, 4, 3, 2, 2),
}


def random_difference(shape, seed=0, decay=0.7) -> torch.Tensor:
    """Singular values that fall off, as those of trained differences do."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).flatten(1)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * values * decay ** torch.arange(len(values)) @ right).reshape(shape)


def product(factors) -> torch.Tensor:
    return torch.tensordot(factors.up.double(), factors.down.double(), dims=1)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rank", [1, 4])
def test_factors_are_the_truncated_svd(shape, rank):
    delta = random_difference(shape)
    factors = factorize(delta, rank)
    assert factors.up.shape == (shape[0], rank)
    assert factors.down.shape == (rank, *shape[1:])
    left, values, right = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    best = (left[:, :rank] * values[:rank] @ right[:rank]).reshape(shape)
    torch.testing.assert_close(product(factors), best, rtol=0, atol=1e-6 * values[0].item())
    # Each factor carries the square root of the singular values.
    torch.testing.assert_close(factors.up.norm(dim=0).double(), values[:rank].sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(factors.down.flatten(1).norm(dim=1).double(), values[:rank].sqrt(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rank", [1, 3, None])
def test_the_retained_energy_is_the_residuals(shape, rank):
    delta = random_difference(shape)
    factors = factorize(delta, rank)
    residual = ((delta - product(factors)).norm() / delta.norm()).item()
    assert factors.retained_energy == pytest.approx(1 - residual**2, abs=1e-7)
    assert relative_error(delta, factors.up, factors.down) == pytest.approx(residual, rel=1e-9)
    assert rank is None or factors.retained_energy < 1 - 1e-6


def test_a_hand_made_difference():
    # Singular values 4, 2 and 1: 16, 4 and 1 of 21.
    delta = torch.diag(torch.tensor([1.0, 4.0, 2.0]))
    assert factorize(delta, rank=1).retained_energy == pytest.approx(16 / 21)
    assert factorize(delta, rank=2).retained_energy == pytest.approx(20 / 21)
    assert [factorize(delta, energy=energy).rank for energy in (0.5, 16 / 21, 16.1 / 21, 20 / 21, 20.1 / 21, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert factorize(delta, rank=1, energy=0.99).rank == 1
    assert factorize(delta, rank=99).rank == 3


def test_a_target_energy_takes_the_smallest_rank():
    delta = random_difference((40, 60), decay=0.95)
    values = torch.linalg.svdvals(delta)
    shares = values.square().cumsum(0) / values.square().sum()
    for energy in (0.6, 0.9, 0.99, 0.9999):
        factors = factorize(delta, energy=energy)
        assert factors.retained_energy >= energy > shares[factors.rank - 2].item()


def test_full_rank_gives_the_weight_back():
    base = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    target = base + 1e-3 * torch.randn(48, 64, generator=torch.Generator().manual_seed(2))
    delta = weight_difference(base, target)
    assert torch.equal(delta, target.double() - base.double())
    torch.testing.assert_close(base + product(factorize(delta)).float(), target, rtol=0, atol=1e-6)


def test_singular_values_far_apart_are_all_kept():
    # Beneath 1e-8 of the largest, eigenvalues of the Gram matrix drown in its rounding; the projection does not.
    left, right = (
        torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(i)))[0]
        for i in (1, 2)
    )
    delta = left * torch.logspace(0, -10, 8, dtype=torch.float64) @ right
    assert relative_error(delta, factorize(delta).up, factorize(delta).down) < 1e-7


def test_a_difference_of_low_rank_has_no_more_factors_than_that():
    generator = torch.Generator().manual_seed(3)
    delta = torch.randn(20, 2, generator=generator, dtype=torch.float64) @ torch.randn(
        2, 30, generator=generator, dtype=torch.float64
    )
    assert factorize(delta).rank == 2


def test_no_difference_no_factors():
    weight = torch.randn(4, 5)
    assert factorize(weight_difference(weight, weight.clone())) is None


def test_half_precision_factors_report_their_rounding():
    delta = random_difference((30, 30)) * 1e-4
    factors = factorize(delta)
    exact, rounded = (
        relative_error(delta, factors.up.to(dtype), factors.down.to(dtype)) for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact < 1e-6 < 1e-4 < rounded < 1e-2


def test_inputs_are_left_alone():
    base, target = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    before = target.clone()
    delta = weight_difference(base, target)
    again = delta.clone()
    relative_error(delta, factorize(delta).up, factorize(delta).down)
    assert torch.equal(target, before)
    assert torch.equal(delta, again)
