"""Factors of a difference against torch's own decomposition, and against the residual that they leave."""

import math

import pytest
import torch

from chats.lowrank.truncation import _rank, factorize, relative_error, weight_difference

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_whatever_the_differences_precision_the_arithmetic_is_double(dtype):
    # Singular values 2⁸ and 2⁻⁸, exact in fp16. Squared they are 2¹⁶, which fp16 has not (its largest is 65504), and
    # 2⁻¹⁶, which beside 2¹⁶ is nothing in fp32, whose numbers have 24 bits. Their roots are exact too.
    delta = torch.diag(torch.tensor([2.0**8, 2.0**-8], dtype=torch.float64))
    factors = factorize(delta.to(dtype))
    assert factors.rank == 2
    assert torch.equal(product(factors), delta)
    # What leaves is single, as files hold it at most, and a number that a table can print.
    assert (factors.up.dtype, factors.down.dtype) == (torch.float32, torch.float32)
    assert type(factors.retained_energy) is type(factorize(delta.to(dtype), rank=1).retained_energy) is float
    assert relative_error(delta.to(dtype), factors.up, factors.down) == 0.0
    # Without the small value the error is 2⁻⁸ / √(2¹⁶ + 2⁻¹⁶), which is 2⁻¹⁶ to nine digits.
    one = factorize(delta.to(dtype), rank=1)
    assert relative_error(delta.to(dtype), one.up, one.down) == pytest.approx(2.0**-16)


def test_the_error_of_a_large_difference_in_half_precision():
    # Four elements of 60000 have the norm 120000, which is infinite in fp16: all would seem to be carried.
    delta = torch.full((2, 2), 60000.0, dtype=torch.float16)
    assert relative_error(delta, torch.zeros(2, 1), torch.zeros(1, 2)) == 1.0


def test_a_share_of_the_energy_is_met_to_the_last_bits_but_not_to_single_precisions():
    # The second direction has 4·10⁻⁸ of the energy: 1.0 asks for it. A rank that falls short by fp32's last bit,
    # 1.2·10⁻⁷, would leave it out.
    delta = torch.diag(torch.tensor([1.0, 2e-4], dtype=torch.float64))
    assert factorize(delta, energy=1.0).rank == 2
    assert factorize(delta, energy=1 - 1e-7).rank == 1


def test_energies_below_zero_are_rounding_and_take_none_away():
    # A Gram matrix has no negative eigenvalues, its decomposition has: 4 and 1 are all of 5, whatever follows them.
    assert _rank(torch.tensor([4.0, 1.0, -1e-9], dtype=torch.float64), total=5.0, rank=None, energy=1.0) == 2


def test_no_more_than_all_of_the_energy_is_retained():
    # The sum of squares of the singular values and that of the elements are rounded apart, and in about half of all
    # differences the first is the larger.
    energies = [factorize(random_difference((6, 9), seed, decay=1.0)).retained_energy for seed in range(20)]
    assert max(energies) == 1.0
    assert min(energies) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (8, 4, 3, 3)])
def test_the_decomposition_is_of_the_shorter_side(shape, monkeypatch):
    """Its time grows with the cube of the side: a feed-forward layer of 10,240 × 1,280 would take 512 times as long."""
    sides = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (sides.append(matrix.shape), eigh(matrix))[1])
    factorize(random_difference(shape))
    assert sides == [(min(shape[0], math.prod(shape[1:])),) * 2]


def test_the_error_of_many_rows_is_that_of_all_of_them():
    # 300 rows are taken in three parts, the last of them short. Each row is off by 1 of its 2 in one place: ½ overall.
    delta = torch.zeros(300, 4, dtype=torch.float64)
    delta[:, 0] = 2.0
    up, down = torch.ones(300, 1), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert relative_error(delta, up, down) == pytest.approx(0.5)
    # A convolution's `up` as LoRA files hold it, with a kernel of 1 × 1.
    assert relative_error(delta.reshape(300, 1, 2, 2), up[..., None, None], down.reshape(1, 1, 2, 2)) == pytest.approx(
        0.5
    )


def test_factors_of_a_smaller_weight_have_no_error():
    # 256 rows are two parts and 128 are one: the second would be left out of the sum without a word.
    with pytest.raises(ValueError, match="zip"):
        relative_error(torch.ones(256, 4), torch.ones(128, 1), torch.ones(1, 4))


@pytest.mark.parametrize("truncation", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.5}])
def test_what_names_no_truncation_is_the_callers_mistake(truncation):
    # A rank of 0 would cut at [-0:], which is everything; a share of 0 or of more than all has no smallest rank.
    with pytest.raises(AssertionError):
        factorize(torch.eye(3), **truncation)
