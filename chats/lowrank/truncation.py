"""The difference of two weights as two low-rank factors: the truncated singular value decomposition.

Eckart and Young: no other pair of factors of that rank comes closer in the Frobenius norm, so what is lost is exactly
the energy (the sum of squares) of the singular values that were cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import LowRank


@dataclass(frozen=True)
class TruncatedDifference(LowRank):
    """up · down ≈ Δ, the square root of each singular value on either side, so that both fit the range of half
    precision.

    ``retained_energy`` is 1 − ‖Δ − up·down‖² / ‖Δ‖², from the singular values.
    """

    retained_energy: float


def weight_difference(base: Tensor, target: Tensor) -> Tensor:
    """Δ = target − base in float64, where neither half nor single precision loses anything.

    Both have one shape, and neither is changed.
    """
    return target.to(torch.float64, copy=True).sub_(base)


def factorize(difference: Tensor, rank: int | None = None, energy: float | None = None) -> TruncatedDifference | None:
    """The best factors of a difference.

    The singular vectors of the shorter side are the eigenvectors of the Gram matrix ΔΔᵀ (or ΔᵀΔ), in float64: several
    times faster than a full decomposition, and of the shorter side's size. The other side is Δ projected on them, so
    the product is Δ projected on an orthonormal basis, whatever the rounding of small eigenvalues.

    Args:
        difference: [out, in, *kernel], of any float type.
        rank: at most this rank; None for as many as the shape allows.
        energy: the smallest rank that retains this share of ‖Δ‖² (above 0, up to 1), within ``rank``; None for all of
            ``rank``.

    Returns:
        float32 factors, or None for a difference of zero.
    """
    assert rank is None or rank >= 1
    assert energy is None or 0 < energy <= 1
    shape = difference.shape
    matrix = difference.to(torch.float64).flatten(1)  # [out, in · kernel]
    total = torch.linalg.vector_norm(matrix).square().item()
    if total == 0:
        return None
    short_out = matrix.shape[0] <= matrix.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.T if short_out else matrix.T @ matrix)  # ascending
    count = _rank(eigenvalues.flip(0), total, rank, energy)
    vectors = vectors[:, -count:].flip(1)  # [shorter side, count]
    # [count, longer side]: each row is a singular value times a unit vector.
    projected = vectors.T @ matrix if short_out else (matrix @ vectors).T
    singular = torch.linalg.vector_norm(projected, dim=1)
    # Beneath this a direction is rounding of the decomposition itself, and dividing by its root would blow it up.
    real = singular > singular.max() * len(eigenvalues) * torch.finfo(torch.float64).eps
    singular, vectors, projected = singular[real], vectors[:, real], projected[real]
    root = singular.sqrt()
    short, long = vectors * root, projected / root[:, None]
    up, down = (short, long) if short_out else (long.T, short.T)
    return TruncatedDifference(
        up=up.to(torch.float32),
        down=down.to(torch.float32).reshape(-1, *shape[1:]),
        retained_energy=min(1.0, singular.square().sum().item() / total),
    )


def in_rank_of(difference: LowRank, fresh: Tensor) -> LowRank:
    """Factors of another rank that begin as a given difference, to be trained on: the difference itself and zeros where
    there is room, else the best of that rank (:func:`factorize`).

    Args:
        fresh: first values of a ``down`` of the rank that is wanted, [rank, in, *kernel]. Its last rows stand for the
            ranks that are not needed; their ``up`` is zero, so that they change nothing and can learn.
    """
    rank = fresh.shape[0]
    if difference.rank > rank:
        product = difference.up.double() @ difference.down.double().flatten(1)
        shorter = factorize(product.reshape(-1, *fresh.shape[1:]), rank)
        if shorter is None:
            return LowRank(fresh, difference.up.new_zeros(difference.up.shape[0], rank))
        difference = shorter
    down = torch.cat([difference.down.to(fresh), fresh[difference.rank :]])
    missing = difference.up.new_zeros(difference.up.shape[0], rank - difference.rank)
    return LowRank(down, torch.cat([difference.up, missing], dim=1))


def relative_error(difference: Tensor, up: Tensor, down: Tensor) -> float:
    """‖Δ − up·down‖ / ‖Δ‖ of the factors as they are, in whatever precision they were stored."""
    matrix = difference.to(torch.float64).flatten(1)
    up, down = up.to(torch.float64).flatten(1), down.to(torch.float64).flatten(1)
    # Some rows at a time: the whole product would be as large as the difference.
    parts = zip(torch.split(up, 128), torch.split(matrix, 128), strict=True)
    lost = sum((torch.linalg.vector_norm(u @ down - rows).square() for u, rows in parts), start=matrix.new_zeros(()))
    return float(lost.sqrt() / torch.linalg.vector_norm(matrix))


def _rank(eigenvalues: Tensor, total: float, rank: int | None, energy: float | None) -> int:
    """How many of the eigenvalues σ², largest first, to keep."""
    most = len(eigenvalues) if rank is None else min(rank, len(eigenvalues))
    if energy is None:
        return most
    cumulative = eigenvalues.clamp(min=0).cumsum(0)
    # Sums of rounded numbers: a target met but for the last bit is met.
    reached = cumulative >= energy * total * (1 - torch.finfo(torch.float64).eps)
    needed = len(eigenvalues) - int(reached.sum()) + 1
    return min(most, needed)
