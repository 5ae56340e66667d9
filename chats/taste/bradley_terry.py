"""How sure the comparisons of a few pictures are of each pair's order, by the model of Bradley and Terry (1952)."""

from __future__ import annotations

import math
from collections.abc import Iterable

# Variance of a picture's strength before any comparison. With it every maximum is finite, also that of a picture that
# won all its comparisons.
PRIOR_VARIANCE = 1.0
NEWTON_STEPS = 50
TOLERANCE = 1e-9


def fit(count: int, wins: Iterable[tuple[int, int, float]]) -> tuple[list[float], list[list[float]]]:
    """Strengths of ``count`` pictures and their covariance.

    P(i is liked better than j) = 1 / (1 + exp(s_j − s_i)) (Bradley and Terry, "Rank analysis of incomplete block
    designs", Biometrika 39, 1952), with s ~ N(0, PRIOR_VARIANCE) for each: the maximum of the posterior by Newton's
    method, and the inverse of its negative Hessian there (Laplace's approximation).

    Args:
        count: pictures, numbered from 0.
        wins: (winner, loser, weight); a tie is half a win for each.
    """
    wins = list(wins)
    strengths = [0.0] * count
    for _ in range(NEWTON_STEPS):
        gradient, hessian = _slope(strengths, wins)
        covariance = _inverse(hessian)
        steps = [sum(map(float.__mul__, row, gradient)) for row in covariance]
        strengths = [strength + step for strength, step in zip(strengths, steps, strict=True)]
        if max(map(abs, steps), default=0.0) < TOLERANCE:
            break
    return strengths, _inverse(_slope(strengths, wins)[1])


def doubt(strengths: list[float], covariance: list[list[float]], one: int, other: int) -> float:
    """How little the order of two pictures is known: minus the distance of their strengths in standard deviations of
    that distance, so 0 where either order is as likely."""
    variance = covariance[one][one] + covariance[other][other] - 2 * covariance[one][other]
    return -abs(strengths[one] - strengths[other]) / math.sqrt(variance)


def _slope(strengths: list[float], wins: list[tuple[int, int, float]]) -> tuple[list[float], list[list[float]]]:
    """Gradient and negative Hessian of the logarithm of the posterior."""
    count = len(strengths)
    gradient = [-strength / PRIOR_VARIANCE for strength in strengths]
    hessian = [[1 / PRIOR_VARIANCE if row == column else 0.0 for column in range(count)] for row in range(count)]
    for winner, loser, weight in wins:
        surprise = 1 / (1 + math.exp(strengths[winner] - strengths[loser]))
        gradient[winner] += weight * surprise
        gradient[loser] -= weight * surprise
        curvature = weight * surprise * (1 - surprise)
        hessian[winner][winner] += curvature
        hessian[loser][loser] += curvature
        hessian[winner][loser] -= curvature
        hessian[loser][winner] -= curvature
    return gradient, hessian


def _inverse(matrix: list[list[float]]) -> list[list[float]]:
    """Of a symmetric positive definite matrix, by Gauss and Jordan without pivoting, which it does not need."""
    size = len(matrix)
    rows = [[*row, *(1.0 if at == column else 0.0 for column in range(size))] for at, row in enumerate(matrix)]
    for pivot in range(size):
        scale = 1 / rows[pivot][pivot]
        own = rows[pivot] = [value * scale for value in rows[pivot]]
        for at, row in enumerate(rows):
            if at != pivot and (factor := row[pivot]):
                rows[at] = [value - factor * other for value, other in zip(row, own, strict=True)]
    return [row[size:] for row in rows]
