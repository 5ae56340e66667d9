"""Low-rank differences against dense arithmetic: W⁻ x = W⁺ x + up (down x) on the rows of the second model, W⁺ x on the
others."""

import pytest
import torch
from torch.nn import functional

from chats.lowrank import LowRank, add_to_conv, add_to_linear, combine, from_lora


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def difference(out=6, rank=2, inputs=(5,), seed=0):
    return LowRank(noise(rank, *inputs, seed=seed), noise(out, rank, seed=seed + 1))


def dense(low):
    """Δ itself, [out, in, *kernel]."""
    return torch.tensordot(low.up, low.down, dims=1)


def test_the_difference_of_two_loras_with_strengths_and_alphas():
    """Δ = 0.8 · (4/2) · up⁻ down⁻ − 1.5 · (3/3) · up⁺ down⁺, in one difference of rank 2 + 3."""
    minus = (noise(6, 2), noise(2, 5, seed=1))
    plus = (noise(6, 3, seed=2), noise(3, 5, seed=3))
    low = combine([(0.8, from_lora(*minus, alpha=4.0)), (-1.5, from_lora(*plus, alpha=3.0))])
    expected = 0.8 * 2 * minus[0] @ minus[1] - 1.5 * plus[0] @ plus[1]
    assert low.rank == 5
    assert torch.allclose(dense(low).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_lora_without_alpha_has_scale_one():
    up, down = noise(6, 2), noise(2, 5)
    assert torch.allclose(dense(from_lora(up, down)).double(), up @ down, rtol=1e-5, atol=1e-5)


def test_a_tucker_core_folds_into_the_kernel():
    """The three convolutions of a LoCon with a core, one after the other, against the one kernel."""
    up, down, mid = noise(6, 2, 1, 1), noise(2, 5, 1, 1, seed=1), noise(2, 2, 3, 3, seed=2)
    x = noise(1, 5, 7, 7, seed=3)
    in_turn = functional.conv2d(functional.conv2d(functional.conv2d(x, down), mid), up)
    kernel = dense(from_lora(up, down, mid=mid)).double()
    assert kernel.shape == (6, 5, 3, 3)
    assert torch.allclose(functional.conv2d(x, kernel), in_turn, rtol=1e-5, atol=1e-5)


def test_a_part_of_a_fused_layer_changes_its_own_outputs_alone():
    low = difference(out=4).placed(4, 12)
    whole = dense(low)
    assert whole.shape == (12, 5)
    assert torch.equal(whole[:4], torch.zeros(4, 5, dtype=torch.float64))
    assert torch.equal(whole[8:], torch.zeros(4, 5, dtype=torch.float64))
    assert torch.allclose(whole[4:8], dense(difference(out=4)))


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 4), slice(1, 3), slice(0, 4), slice(2, 2)])
@pytest.mark.parametrize("middle", [(), (3,), (3, 2)])
def test_linear_rows(rows, middle):
    low, weight = difference(), noise(6, 5, seed=5)
    x = noise(4, *middle, 5, seed=6)
    output = x @ weight.T
    expected = output.clone()
    expected[rows] = x[rows] @ (weight + dense(low)).T
    add_to_linear(output, x, low, rows)
    assert torch.allclose(output, expected, rtol=1e-12, atol=1e-12)
    others = torch.ones(4, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(output[others], (x @ weight.T)[others])  # to the bit


def test_an_output_that_is_not_contiguous():
    low, weight = difference(), noise(6, 5, seed=5)
    x = noise(4, 3, 5, seed=6)
    output = (x @ weight.T).transpose(1, 2).contiguous().transpose(1, 2)
    assert not output.is_contiguous()
    add_to_linear(output, x, low, slice(1, 3))
    assert torch.allclose(output[1:3], x[1:3] @ (weight + dense(low)).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "dilation"),
    [((9,), 2, 1, 1), ((9, 8), 2, 1, 1), ((9, 8), 1, 2, 2), ((5, 6, 7), 1, 1, 1)],
)
def test_convolution_rows(size, stride, padding, dilation):
    dims = len(size)
    low, weight = difference(inputs=(5, *[3] * dims)), noise(6, 5, *[3] * dims, seed=5)
    options = {
        name: (value,) * dims for name, value in (("stride", stride), ("padding", padding), ("dilation", dilation))
    }
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[dims]
    x = noise(4, 5, *size, seed=6)
    output = convolve(x, weight, **options)
    before = output.clone()
    add_to_conv(output, x, low, slice(1, 3), **options)
    assert torch.allclose(output[1:3], convolve(x[1:3], weight + dense(low), **options), rtol=1e-12, atol=1e-12)
    assert torch.equal(output[[0, 3]], before[[0, 3]])
