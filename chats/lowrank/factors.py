"""A difference of two weights as a product of two thin factors, and what it does to a layer's output.

With W⁻ = W⁺ + up · down, the output of the second weight is that of the first plus up · (down · x). So ONE pass of the
first model serves both models of a pair: the product is added to the rows of the batch that are the second model's.

A LoRA (Hu et al. 2021, arXiv 2106.09685) is such a difference from its base; the difference of two LoRAs on one base is
one too, of the sum of their ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CONVOLUTIONS = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


@dataclass(frozen=True)
class LowRank:
    """Δ = up · down, [out, in, *kernel] as the weight itself: the product sums over the rank.

    ``down`` is [rank, in] for a Linear, [rank, in, *kernel] for a convolution; ``up`` is [out, rank] for both.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def placed(self, start: int, rows: int) -> LowRank:
        """The same difference as a part of a larger weight, such as a layer that q, k and v are fused into: its outputs
        are those from ``start`` on, of ``rows`` in all."""
        up = self.up.new_zeros(rows, self.rank)
        up[start : start + self.up.shape[0]] = self.up
        return LowRank(self.down, up)


def from_lora(up: Tensor, down: Tensor, alpha: float | None = None, mid: Tensor | None = None) -> LowRank:
    """A LoRA's tensors as one difference, in fp32.

    Args:
        up: [out, rank] or [out, rank, 1, ...].
        down: [rank, in] or [rank, in, *kernel]; with ``mid`` [rank, in, 1, ...].
        alpha: the LoRA is scaled by alpha / rank; None leaves it as it is.
        mid: the core of a Tucker-decomposed convolution, [rank, rank, *kernel].
    """
    up, down = up.float().flatten(1), down.float()
    if mid is not None:
        down = torch.einsum("rs...,si->ri...", mid.float(), down.flatten(1))
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    return LowRank(down, up * scale)


def combine(terms: Sequence[tuple[float, LowRank]]) -> LowRank:
    """Σ coefficient · Δ as one difference: factors side by side, the rank is the sum of the ranks.

    Args:
        terms: coefficients (strengths, with their signs) and differences of one weight.
    """
    down = torch.cat([difference.down for _, difference in terms])
    up = torch.cat([coefficient * difference.up for coefficient, difference in terms], dim=1)
    return LowRank(down, up)


def add_to_linear(output: Tensor, inputs: Tensor, difference: LowRank, rows: slice) -> None:
    """Adds Δ · x to some rows of a Linear's output, in place.

    Args:
        output: [batch, ..., out].
        inputs: what the layer was given, [batch, ..., in].
        difference: in the dtype and on the device of ``inputs``.
        rows: of the batch.
    """
    hidden = functional.linear(inputs[rows], difference.down)
    chosen = output[rows]
    if chosen.is_contiguous():
        # One kernel that reads and writes the output in place, instead of a product and a sum.
        chosen.view(-1, chosen.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), difference.up.t())
    else:
        chosen.add_(functional.linear(hidden, difference.up))


def add_to_conv(
    output: Tensor,
    inputs: Tensor,
    difference: LowRank,
    rows: slice,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> None:
    """Adds Δ ∗ x to some rows of a convolution's output, in place.

    Args:
        output: [batch, out, *size].
        inputs: what the layer was given, [batch, in, *size].
        difference: in the dtype and on the device of ``inputs``.
        rows: of the batch.
        stride, padding, dilation: the layer's own.
    """
    convolve = CONVOLUTIONS[difference.down.ndim]
    hidden = convolve(inputs[rows], difference.down, stride=stride, padding=padding, dilation=dilation)
    pointwise = difference.up.reshape(*difference.up.shape, *[1] * (difference.down.ndim - 2))
    output[rows].add_(convolve(hidden, pointwise))
